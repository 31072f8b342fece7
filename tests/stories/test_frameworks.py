"""Flask and FastAPI, each release in a directory and a virtualenv of its own, behind a `current` link."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps import Notes, build, link
from harness import Port, running
from harness.venvs import cached_venv
from harness.verdict import Changes, assert_all_well, assert_serves
from load import LoadClient, everything

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("flavour", ["flask", "fastapi"])
def test_an_upgrade_to_another_directory_with_another_virtualenv(
    flavour: str, tmp_path: Path, notes: Notes, port: Port, session_cache: Path
) -> None:
    releases = []
    for name in ("v1", "v2"):
        release = build(tmp_path, name, notes, flavour)
        venv = cached_venv(session_cache, f"{flavour}-{name}", [flavour])
        # A link, as some deployment tools make it: who resolves the interpreter's path loses the virtualenv.
        (release.path / ".venv").symlink_to(venv)
        releases.append(release)
    v1, v2 = releases
    current = tmp_path / "current"
    link(current, v1.path)
    changes = Changes()
    with running(
        tmp_path / "instance", v1, "--interface", "auto", binds=[port.address], path=current
    ) as instance:
        with LoadClient(instance.target, *everything(2.0)) as load:
            load.wait_answers(50)
            link(current, v2.path)
            changes.ok(instance, "v2", "upgrade")
            load.wait_answers(50)
            changes.ok(instance, "v1", "rollback")
            load.wait_answers(50)
            report = load.stop()
        print(report.answers, f"longest gap {report.longest_gap_s:.3f} s")
        assert_all_well(report, notes)
        changes.assert_no_old_answers(report)
        assert_serves(instance, v1, 2)
    if flavour == "fastapi":
        events = notes.lines("lifespan")
        assert events.count("startup") == events.count("shutdown") == 6, events
