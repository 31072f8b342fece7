"""The application's own things stay its own: its modules, its output, its user."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, running
from harness.processes import kill
from harness.venvs import make_venv, site_packages
from harness.verdict import assert_all_well
from load import LoadClient, busy, fresh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
SHADOWS = ("json", "socket", "worker", "supervisor", "quiesce/", "shared/")


def test_modules_of_the_application_are_the_ones_it_gets(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes, behaviour=Behaviour(shadows=SHADOWS)) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        for release in (v1, v2):
            reply = instance.get("/modules")
            assert reply.release == release.name
            assert dict(line.split() for line in reply.payload.splitlines()) == {
                name.rstrip("/"): "True" for name in SHADOWS
            }
            with LoadClient(instance.target, fresh(2), busy(1), max_answers=100) as load:
                assert_all_well(load.wait_report())
            if release is v1:
                instance.ok("upgrade", "--release", str(v2.path))


@pytest.mark.parametrize("flavour", ["wsgi", "asgi"])
def test_printing_neither_blocks_nor_breaks_while_the_supervisor_is_stopped(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes, flavour, Behaviour(print_bytes=1024))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        supervisor = instance.supervisor_pid
        with LoadClient(instance.target, fresh(1), busy(2), max_answers=3000, timeout_s=10) as load:
            kill(supervisor, signal.SIGSTOP)
            try:
                report = load.wait_report(60)
            finally:
                kill(supervisor, signal.SIGCONT)
        assert report.total >= 3000
        assert_all_well(report)
        printed = re.compile("x{1023}")
        instance.ok("status")
    lines = sum(
        printed.search(line) is not None for output in (instance.out, instance.log) for line in output.lines
    )
    assert lines == report.total, "a line was lost, or two became one"


def test_the_environment_of_a_worker(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    config = '[service]\nenv = { SHOP = "corner" }\n'
    with running(
        tmp_path / "instance", v1, binds=[port.address], config=config, env={"GIVEN": "yes"}
    ) as instance:
        env = dict(line.split("=", 1) for line in instance.get("/env").payload.splitlines() if "=" in line)
        assert env["SHOP"] == "corner" and env["GIVEN"] == "yes"
        assert {"QUIESCE_NAME", "QUIESCE_RELEASE", "QUIESCE_LABEL", "QUIESCE_WORKER"} <= env.keys()
        forbidden = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "FDSTORE")
        assert not [name for name in env if name.startswith(forbidden)]
        assert "corner" not in instance.ok("status", "--json").out + instance.log_text()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any user can enter (pytest's own are for their owner)."""
    with tempfile.TemporaryDirectory(prefix="quiesce-stories-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def open_installation(folder: Path) -> Path:
    """Copies of quiesce and of what a worker borrows: the checkout may lie where only its owner may enter."""
    import httptools
    import setproctitle

    import quiesce

    for package in (quiesce, httptools, setproctitle):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop from")
def test_a_pth_file_of_the_release_runs_as_the_user_never_as_root(open_directory: Path, port: Port) -> None:
    import pwd
    import sys

    python = Path("/usr/bin/python3")
    minor = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not python.exists() or python.resolve() != Path(minor).resolve():
        pytest.skip("needs a python of our version that every user may execute")
    nobody = pwd.getpwnam("nobody")
    notes = Notes(open_directory / "notes")
    release = build(open_directory, "v1", notes)
    notes.path.chmod(0o777)
    make_venv(release.path / ".venv", str(python))
    uids = notes.path / "uids"
    line = (
        f"import os; open({str(uids)!r}, 'a').write(f'{{os.getuid()}} {{os.geteuid()}} {{os.getgid()}}\\n')\n"
    )
    (site_packages(release.path / ".venv") / "note.pth").write_text(line)
    config = '[service]\nuser = "nobody"\n'
    env = {"PYTHONPATH": str(open_installation(open_directory / "lib"))}
    with running(
        open_directory / "instance", release, binds=[port.address], config=config, env=env
    ) as instance:
        who = instance.get("/uid").payload.split()
        assert who[:3] == [str(nobody.pw_uid), str(nobody.pw_uid), str(nobody.pw_gid)]
        env = dict(line.split("=", 1) for line in instance.get("/env").payload.splitlines() if "=" in line)
        assert (env["USER"], env["LOGNAME"], env["HOME"]) == ("nobody", "nobody", nobody.pw_dir)
    seen = set(uids.read_text().splitlines())
    assert seen == {f"{nobody.pw_uid} {nobody.pw_uid} {nobody.pw_gid}"}, "the .pth ran as somebody else, too"
