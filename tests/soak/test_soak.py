"""Many upgrades under load: descriptors, threads, children and memory of the supervisor stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, footprint, running
from harness.instance import held
from harness.verdict import Changes, assert_all_well
from load import LoadClient, busy, download, fresh, idle, late, pipelined, post, upload

FULL = os.environ.get("QUIESCE_SOAK") == "full"
UPGRADES = 200 if FULL else 10
pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(3600 if FULL else 240)]
# With think times: the soak asks whether anything grows, not how fast two cores are.
MIX = (
    fresh(2, think_s=0.02),
    busy(1, think_s=0.005),
    pipelined(1, think_s=0.1),
    post(1, think_s=0.02),
    upload(1, 1.0),
    download(1, 1.0),
    late(2, 0.3),
    idle(2, 0.7),
)
RSS_KIB = 1024


def test_upgrades_leave_nothing_behind(tmp_path: Path, notes: Notes, port: Port) -> None:
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2", "v3")]
    changes = Changes()
    with running(
        tmp_path / "instance",
        releases[0],
        binds=[port.address],
        rollout={"drain_timeout": '"3s"', "max_generations": "30"},
    ) as instance:
        pid = instance.supervisor_pid
        with LoadClient(instance.target, *MIX, max_seconds=3500) as load:
            load.wait_answers(100)
            first = None
            for done in range(1, UPGRADES + 1):
                release = releases[done % 3]
                changes.ok(instance, release.name, "upgrade", "--release", str(release.path), "--bake", "0.1")
                if done == UPGRADES // 4:
                    instance.settled(2)
                    first = footprint(pid)
                    print(f"after {done}: {held(pid)}")
            instance.settled(2)
            last = footprint(pid)
            print(f"after {UPGRADES}: {held(pid)}")
            report = load.stop()
        assert instance.supervisor_pid == pid
    assert first is not None
    grown = last - first
    print(
        f"{UPGRADES} upgrades, {report.total} answers, grown {grown}, longest gap {report.longest_gap_s:.3f} s"
    )
    assert_all_well(report, notes)
    changes.assert_no_old_answers(report)
    assert (grown.descriptors, grown.threads, grown.children) == (0, 0, 0), grown
    # A quarter of a short run has not seen every code path yet: its allocations are no leak.
    assert grown.rss_kib <= (RSS_KIB if FULL else 2 * RSS_KIB), grown
