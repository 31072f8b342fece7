"""The box itself: a real systemd boots in it, and nothing is left of it."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbox.box import Box, require_boxes
from sdbox.state import find, need, rundir

pytestmark = [pytest.mark.slow, pytest.mark.root]

# Says READY=1 to systemd from its main process, then waits for ever.
NOTIFYING = """
import os, signal, socket
address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1\\nSTATUS=here I am", address)
signal.pause()
"""
UNIT = f"""
[Service]
Type=notify
ExecStart={sys.executable} /tmp/notifying.py
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    require_boxes()
    # This interpreter, wherever it lies: a box has a /tmp of its own, and a checkout may lie in ours.
    prefixes = {sys.prefix, sys.base_prefix}
    with Box("box", [f"{prefix}:ro" for prefix in sorted(prefixes) if not prefix.startswith("/usr")]) as box:
        yield box


def test_systemd_is_pid_1_and_no_unit_failed(box: Box) -> None:
    assert (box.root / "proc/1/comm").read_text() == "systemd\n"
    assert box.run("systemctl", "is-system-running").stdout == "running\n"


def test_exit_status_and_output_are_passed_on(box: Box) -> None:
    result = box.run("sh", "-c", "cat; echo gone wrong >&2; exit 7", stdin="hello")
    assert (result.returncode, result.stdout, result.stderr) == (7, "hello", "gone wrong\n")


def test_its_namespaces_are_its_own(box: Box) -> None:
    for kind in ("mnt", "net", "pid", "cgroup", "uts", "ipc"):
        inside = box.run("readlink", f"/proc/self/ns/{kind}").stdout.strip()
        assert inside.startswith(kind) and inside != os.readlink(f"/proc/self/ns/{kind}")


def test_a_notify_service_starts_and_stops(box: Box) -> None:
    (box.root / "tmp/notifying.py").write_text(NOTIFYING)
    (box.root / "etc/systemd/system/notifying.service").write_text(UNIT)
    assert box.run("systemctl", "daemon-reload").returncode == 0
    assert box.run("systemctl", "start", "notifying").returncode == 0, box.journal()
    shown = box.run("systemctl", "show", "-p", "ActiveState,StatusText", "notifying").stdout
    assert "ActiveState=active" in shown and "StatusText=here I am" in shown
    assert box.run("systemctl", "stop", "notifying").returncode == 0


def test_nothing_is_left_of_a_box() -> None:
    require_boxes()
    with Box("gone") as box:
        state = need(box.name)
        warden = os.pidfd_open(state.warden)
    try:
        assert select.select([warden], [], [], 0)[0], "its warden is still there"
        assert find(box.name) is None
        assert not Path(state.cgroup).exists()
        assert not Path(rundir(box.name)).exists()
    finally:
        os.close(warden)
