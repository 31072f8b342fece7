"""The supervisor's view of its keeper: real keepers are killed above a program that has nothing but this link."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.places import tmp_path
from harness.processes import descendants, kill, read_proc, subreaper, sweep, wait_gone
from quiesce.supervisor.keeper_link import spawn_orphan

__all__ = ["tmp_path"]

pytestmark = [pytest.mark.timeout(60)]

PROGRAM = str(Path(__file__).with_name("linked_supervisor.py"))
ALL = [f"n{number}" for number in range(20)]


class Told:
    """What one supervisor after another tells; each has its own connection."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._streams: list[Any] = []
        self._conns: list[socket.socket] = []

    def connected(self) -> None:
        """The next supervisor is there."""
        self._listener.settimeout(20)
        conn, _ = self._listener.accept()
        conn.settimeout(20)
        self._conns.append(conn)
        self._streams.append(conn.makefile("r"))

    def next(self) -> dict[str, Any]:
        """The next line of the newest one."""
        return dict(json.loads(self._streams[-1].readline()))

    def close(self) -> None:
        for each in (*self._streams, *self._conns, self._listener):
            each.close()


class Place:
    """A keeper with the program below it."""

    def __init__(self, directory: Path, watchdog: str) -> None:
        self.told = Told(str(directory / "s"))
        self.errors = directory / "stderr"
        code = (
            "import socket, sys; from quiesce.supervisor.launch import become_keeper; "
            "become_keeper([sys.executable, *sys.argv[1:]], [('web', socket.socket().detach())])"
        )
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, PROGRAM, str(directory / "s"), watchdog], stderr=errors
            )
        self.told.connected()
        self.hello = self.told.next()

    def close(self) -> None:
        self.told.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    before = set(descendants())
    with subreaper():
        with contextlib.ExitStack() as stack:
            stack.callback(sweep, before)
            place = Place(tmp_path, getattr(request, "param", "30"))
            yield place
        place.close()


def test_a_killed_keeper_is_replaced_and_the_next_supervisor_has_everything(place: Place) -> None:
    pid = place.hello["pid"]
    assert (place.hello["keeper"], place.hello["works"]) == (place.process.pid, True)
    assert place.hello["env"] == {}
    place.process.kill()
    place.process.wait()
    news = place.told.next()
    assert news["event"] == "keeper" and news["complete"] and news["pid"] == pid
    why = f"the keeper (pid {place.process.pid}) died, and another one is started"
    assert news["between"] == [False, why], "meanwhile our death would be the end"
    keeper = read_proc(news["keeper"])
    assert keeper is not None and f"--watch {pid} " in keeper.command
    assert news["env"]["QUIESCE_KEEPER"] == str(keeper.pid) and news["env"]["NOTIFY_SOCKET"][0] == "@"
    # It forwards signals, and it is no zombie of ours nor our child.
    kill(keeper.pid, signal.SIGUSR1)
    assert place.told.next()["event"] == "usr1"
    assert os.getsid(keeper.pid) == keeper.pid and keeper.parent != pid
    kill(pid, signal.SIGKILL)
    place.told.connected()
    hello = place.told.next()
    assert hello["pid"] != pid and hello["keeper"] == keeper.pid
    assert hello["names"] == ALL and hello["contents"] == [f"{number} of {pid}" for number in range(20)]
    assert hello["sockets"] == 1, "what the user passed to the first keeper is not with the second"
    # And so on: now it is its child again.
    kill(keeper.pid, signal.SIGKILL)
    assert place.told.next()["complete"]
    errors = place.errors.read_text()
    assert f"WARNING keeper lost; starting another pid={place.process.pid} delay_s=0.0" in errors
    assert f"INFO keeper replaced pid={keeper.pid}" in errors


def test_the_new_keeper_passes_the_status_on(place: Place) -> None:
    pid = place.hello["pid"]
    place.process.kill()
    keeper = place.told.next()["keeper"]
    kill(pid, signal.SIGTERM)
    assert wait_gone(pid) and wait_gone(keeper)
    assert os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]) == 4  # this test is the subreaper


@pytest.mark.slow
def test_keepers_that_die_at_once_are_not_started_as_fast(place: Place) -> None:
    place.process.kill()
    for _ in range(3):
        kill(place.told.next()["keeper"])
    assert place.told.next()["complete"]
    delays = [
        line.rpartition("=")[2] for line in place.errors.read_text().splitlines() if "keeper lost" in line
    ]
    assert delays == ["0.0", "0.5", "1.0", "2.0"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["0.5"], indirect=True)
def test_the_new_keeper_is_a_watchdog_too(place: Place) -> None:
    pid = place.hello["pid"]
    place.process.kill()
    place.told.next()
    assert not wait_gone(pid, 1.0), "its pings go to the new one"
    kill(pid, signal.SIGSTOP)
    place.told.connected()
    assert place.told.next()["names"] == ALL


def test_both_killed_at_once_end_everything(place: Place) -> None:
    pid = place.hello["pid"]
    kill(place.process.pid, signal.SIGSTOP)
    kill(pid, signal.SIGKILL)
    place.process.kill()
    assert wait_gone(pid) and wait_gone(place.process.pid)


def test_an_orphan_is_nobodys_child_and_inherits_what_it_shall(tmp_path: Path) -> None:
    read, write = os.pipe()
    with subreaper():
        program = (
            "import os, sys, signal; blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, []));"
            "os.write(int(sys.argv[1]), b'%d %d %d' % (os.getsid(0), os.getpid(), blocked))"
        )
        pid = spawn_orphan([sys.executable, "-I", "-c", program, str(write)], [write])
        os.close(write)
        assert select.select([read], [], [], 20)[0]
        sid, itself, blocked = map(int, os.read(read, 100).split())
        assert sid == itself == pid and blocked > 20
        os.close(read)
        os.waitpid(pid, 0)
        with pytest.raises(FileNotFoundError):
            spawn_orphan(["/nowhere/python"], [])
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
