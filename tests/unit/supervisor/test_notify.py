"""sd_notify on real sockets: what arrives, and what happens when the manager does not read."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.manager import Manager, has_writer, serve, turn_until
from quiesce.shared.clock import ManualClock
from quiesce.supervisor import notify
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import GIVE_UP_S, STATE_GIVE_UP_S, Notifier

_NAMES = (f"@quiesce-test-{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else next(_NAMES)


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    made = Manager(address)
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    """On a clock that stands still: nothing is tried again and nothing times out before it is turned."""
    made = Loop(clock)
    made.call_soon(lambda: None)
    yield made
    made.close()


@pytest.fixture
def notifier(manager: Manager, address: str, loop: Loop) -> Iterator[Notifier]:
    before = open_fds()
    made = Notifier(address, loop)
    yield made
    made.close()
    manager.empty()
    assert open_fds() <= before


class Pipe:
    """Its read end shows whether anybody holds the write end."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = True

    def close_writing(self) -> None:
        """The number stays, for those who think that it is open."""
        if self._open:
            self._open = False
            os.close(self.writing)

    def close(self) -> None:
        self.close_writing()
        os.close(self.reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def open_fds() -> set[str]:
    return {entry for entry in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{entry}")}


def turn(loop: Loop, clock: ManualClock, seconds: float = 0.0) -> None:
    """Let time pass, then deal with what is there, without waiting."""
    clock.advance(seconds)
    loop.call_soon(lambda: None)
    loop.turn()


def fill(notifier: Notifier, manager: Manager) -> int:
    """Send status until the manager's queue is full; returns how many it holds.

    What was dropped shows only in what arrives, so the queue is filled, counted and filled again.
    """
    for number in range(5000):
        notifier.status(f"filler {number}")
    held = len(manager.read())
    assert 0 < held < 5000
    for number in range(held):
        notifier.status(f"filler {number}")
    return held


def verbs(said: list[dict[str, str]]) -> list[str]:
    return [next(iter(each)) for each in said]


# What is said


def test_what_we_say_arrives(notifier: Notifier, manager: Manager) -> None:
    notifier.status("starting")
    notifier.ready("serving r1")
    notifier.extend_timeout(1.5)
    notifier.stopping()
    notifier.main_pid(42)
    notifier.watchdog()
    notifier.watchdog_trigger()
    notifier.watchdog_every(2.5)
    notifier.errno(errno.EADDRINUSE, "port 80 is in use")
    notifier.buserror("org.freedesktop.DBus.Error.TimedOut")
    notifier.exit_status(3)
    assert len(manager.read()) > 3  # the queue is short
    notifier.send(NOTIFYACCESS="all")
    manager.read()
    assert manager.heard == [
        {"STATUS": "starting"},
        {"READY": "1", "STATUS": "serving r1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"STOPPING": "1"},
        {"MAINPID": "42"},
        {"WATCHDOG": "1"},
        {"WATCHDOG": "trigger"},
        {"WATCHDOG_USEC": "2500000"},
        {"ERRNO": "98", "STATUS": "port 80 is in use"},
        {"BUSERROR": "org.freedesktop.DBus.Error.TimedOut"},
        {"EXIT_STATUS": "3"},
        {"NOTIFYACCESS": "all"},
    ]
    assert not notifier.pending


def test_reloading_carries_its_time_in_the_same_datagram(notifier: Notifier, manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading("upgrading to r2")
    after = time.monotonic_ns() // 1000
    (said,) = manager.read()
    assert said.pop("RELOADING") == "1" and said.pop("STATUS") == "upgrading to r2"
    assert before <= int(said.pop("MONOTONIC_USEC")) <= after
    assert said == {}


def test_a_text_cannot_add_a_field(notifier: Notifier, manager: Manager) -> None:
    notifier.status("r2: bad\nREADY=1\r\nMAINPID=1\0")
    assert manager.read() == [{"STATUS": "r2: bad READY=1  MAINPID=1 "}]
    notifier.status("žluťoučký \ud800 ✓")
    assert manager.read() == [{"STATUS": "žluťoučký ? ✓"}]


def test_a_long_status_is_cut_rather_than_thrown_away(notifier: Notifier, manager: Manager) -> None:
    """systemd ignores a datagram of more than 4096 bytes, its READY=1 included."""
    notifier.ready("✓" * 5000)
    (said,) = manager.read()
    assert said["READY"] == "1" and set(said["STATUS"]) == {"✓"} and 500 < len(said["STATUS"]) < 1300


# A full queue


def test_news_is_dropped_when_the_queue_is_full_and_what_counts_is_kept(
    notifier: Notifier, manager: Manager
) -> None:
    held = fill(notifier, manager)
    notifier.status("nobody will miss this")
    notifier.watchdog()
    notifier.extend_timeout(5)
    assert not notifier.pending
    notifier.reloading()
    notifier.ready("serving r2")
    notifier.stopping()
    assert notifier.pending
    notifier.flush()
    assert notifier.pending, "still full"
    assert len(manager.read()) == held
    notifier.flush()
    assert not notifier.pending
    assert verbs(manager.read()) == ["RELOADING", "READY", "STOPPING"], "in this order, once each"
    notifier.flush()
    assert manager.read() == []


def test_what_was_kept_goes_before_what_comes(notifier: Notifier, manager: Manager) -> None:
    fill(notifier, manager)
    notifier.reloading()
    manager.read()
    notifier.ready()
    assert verbs(manager.read()) == ["RELOADING", "READY"]
    assert not notifier.pending


def test_states_that_wait_are_bounded(notifier: Notifier, manager: Manager) -> None:
    fill(notifier, manager)
    for number in range(1000):
        notifier.ready(f"{number}")
    manager.read()
    said = []
    for _ in range(3):  # the queue is shorter than what is kept
        notifier.flush()
        said += manager.read()
    assert not notifier.pending
    assert len(said) == 16 and said[-1]["STATUS"] == "999"


def test_the_loop_says_it_as_soon_as_there_is_room(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock
) -> None:
    """By the socket's word, not by the timer: the clock stands still."""
    fill(notifier, manager)
    notifier.ready("serving r2")
    turn(loop, clock)
    assert notifier.pending
    manager.read()
    turn(loop, clock)
    assert manager.read() == [{"READY": "1", "STATUS": "serving r2"}]
    assert not notifier.pending and loop._deadlines.wait_s(clock.now()) is None
    assert notifier._sock is not None and notifier._sock.fileno() not in loop._watched


def test_everything_keeps_its_order(notifier: Notifier, manager: Manager, loop: Loop, pipe: Pipe) -> None:
    fill(notifier, manager)
    answers: list[bool] = []
    notifier.reloading()
    notifier.store("a", pipe.writing)
    notifier.unstore("b")
    notifier.store("b", pipe.reading)
    notifier.barrier(answers.append, 5.0)
    notifier.ready()
    assert len(manager.read()) > 0 and answers == []
    serve(loop, manager)
    turn_until(loop, lambda: not notifier.pending and answers)
    manager.read()
    assert verbs(manager.heard[-6:]) == [
        "RELOADING",
        "FDSTORE",
        "FDSTOREREMOVE",
        "FDSTORE",
        "BARRIER",
        "READY",
    ]
    assert answers == [True] and manager.names == ["a", "b"]


def test_thousands_of_descriptors_go_as_fast_as_the_manager_reads(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock, pipe: Pipe
) -> None:
    """Ten a queue: by a timer of 50 ms they would take longer than their deadline."""
    answers: list[bool] = []
    for number in range(1500):
        notifier.store(f"n{number}", pipe.writing, lambda: pytest.fail("lost"))
    notifier.barrier(answers.append, 5.0)
    while not answers:
        turn(loop, clock)
        manager.read()
    assert answers == [True]
    assert [said["FDNAME"] for said in manager.heard if "FDSTORE" in said] == [f"n{n}" for n in range(1500)]


# A manager that is away


def test_a_manager_that_is_being_replaced_hears_it_later(
    tmp_path: Path, loop: Loop, clock: ManualClock
) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address, loop)
    notifier.ready("serving")
    assert notifier.pending
    turn(loop, clock, 1.0)
    assert notifier.pending
    for _ in range(2):  # the second one comes after we have spoken to the first
        manager = Manager(address)
        turn(loop, clock, 0.1)
        assert manager.read() == [{"READY": "1", "STATUS": "serving"}] and not notifier.pending
        manager.close()
        notifier.ready("serving")
        assert notifier.pending
    notifier.close()
    assert not notifier.pending


def test_who_listens_at_the_same_place_is_told_at_once(
    notifier: Notifier, manager: Manager, address: str
) -> None:
    notifier.ready()
    manager.close()
    successor = Manager(address)
    notifier.status("lost on nobody")
    assert successor.read() == [{"STATUS": "lost on nobody"}]
    successor.close()


def test_what_nobody_hears_is_given_up(tmp_path: Path, loop: Loop, clock: ManualClock, pipe: Pipe) -> None:
    before = open_fds()
    notifier = Notifier(str(tmp_path / "nobody"), loop)
    lost: list[str] = []
    answers: list[bool] = []
    notifier.store("a", pipe.writing, lambda: lost.append("a"))
    notifier.unstore("b")
    notifier.barrier(answers.append, 60.0)
    notifier.ready()
    turn(loop, clock, GIVE_UP_S - 0.01)
    assert lost == [] and answers == []
    turn(loop, clock, 0.1)
    assert lost == ["a"] and answers == [False] and notifier.pending, "READY=1 waits longer"
    turn(loop, clock, STATE_GIVE_UP_S)
    assert not notifier.pending and loop._deadlines.wait_s(clock.now()) is None
    notifier.close()
    assert open_fds() == before


def test_the_end_does_not_wait_for_a_manager_that_is_gone(tmp_path: Path, loop: Loop, pipe: Pipe) -> None:
    before = open_fds()
    notifier = Notifier(str(tmp_path / "nobody"), loop)
    notifier.store("a", pipe.writing)
    notifier.barrier(lambda _: pytest.fail("nobody asks any more"), 1.0)
    notifier.stopping()
    assert notifier.pending
    notifier.close()
    assert not notifier.pending and open_fds() == before


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path", "/" + "x" * 200])
def test_nobody_to_tell(address: str | None, loop: Loop, pipe: Pipe) -> None:
    notifier = Notifier(address, loop)
    lost: list[str] = []
    answers: list[bool] = []
    notifier.ready("serving")
    notifier.status("x" * 1_000_000)
    notifier.reloading()
    notifier.store("a", pipe.writing, lambda: lost.append("a"))
    notifier.unstore("a")
    notifier.barrier(answers.append, 5.0)
    notifier.flush()
    assert not notifier.pending and lost == ["a"] and answers == [False]
    assert notifier.there is bool(address and address.startswith("/x"))
    notifier.close()
    notifier.close()
    notifier.status("after the end")


def test_the_socket_is_not_inherited_by_workers(notifier: Notifier) -> None:
    assert notifier._sock is not None and not notifier._sock.get_inheritable()


# Descriptors and barriers


def test_a_descriptor_travels_as_a_duplicate(notifier: Notifier, manager: Manager, pipe: Pipe) -> None:
    notifier.store("quiesce.state", pipe.writing)
    pipe.close_writing()
    assert manager.read() == [{"FDSTORE": "1", "FDNAME": "quiesce.state"}] and has_writer(pipe.reading)
    os.write(manager.store[0][1], b"it is the same pipe")
    assert os.read(pipe.reading, 100) == b"it is the same pipe"
    notifier.unstore("quiesce.state")
    assert manager.read() == [{"FDSTOREREMOVE": "1", "FDNAME": "quiesce.state"}] and not has_writer(
        pipe.reading
    )


def test_several_travel_together(notifier: Notifier, manager: Manager) -> None:
    pairs = [os.pipe() for _ in range(notify.MAX_FDS)]
    notifier.store_many("check", [writing for _, writing in pairs])
    assert len(manager.read()) == 1 and manager.names == ["check"] * notify.MAX_FDS
    for pair in pairs:
        os.close(pair[0])
        os.close(pair[1])


def test_a_descriptor_that_waits_may_be_closed(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock, pipe: Pipe
) -> None:
    fill(notifier, manager)
    notifier.store("a", pipe.writing)
    pipe.close_writing()
    assert has_writer(pipe.reading)
    manager.read()
    turn(loop, clock)
    manager.read()
    assert manager.names == ["a"] and has_writer(pipe.reading)


def test_a_store_that_waits_is_taken_back(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock, pipe: Pipe
) -> None:
    """Its duplicate would hide for seconds that a worker's channel has been closed."""
    fill(notifier, manager)
    notifier.store("a", pipe.writing)
    notifier.unstore("a")
    pipe.close_writing()
    assert not has_writer(pipe.reading)
    manager.read()
    turn(loop, clock)
    assert verbs(manager.read()) == ["FDSTOREREMOVE"]


def test_a_descriptor_that_is_closed_is_lost_and_stops_nothing(
    notifier: Notifier, manager: Manager, pipe: Pipe
) -> None:
    pipe.close_writing()
    lost: list[str] = []
    notifier.store("a", pipe.writing, lambda: lost.append("a"))
    fill(notifier, manager)
    notifier.store("b", pipe.writing, lambda: lost.append("b"))
    assert lost == ["a", "b"] and not notifier.pending
    manager.read()
    notifier.ready()
    assert verbs(manager.read()) == ["READY"]


def test_without_descriptors_left_nothing_is_promised(
    notifier: Notifier, manager: Manager, pipe: Pipe
) -> None:
    fill(notifier, manager)
    lost: list[str] = []
    answers: list[bool] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd) for fd in open_fds()) + 1
    fillers = [os.dup(0) for _ in range(used)]  # all numbers below are taken
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(fillers[-1] + 1, soft), hard))
    try:
        notifier.store("a", pipe.writing, lambda: lost.append("a"))
        notifier.barrier(answers.append, 5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    assert lost == ["a"] and answers == [False] and not notifier.pending


def test_a_barrier_is_answered_when_all_before_it_is_dealt_with(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock, pipe: Pipe
) -> None:
    answers: list[bool] = []
    notifier.store("a", pipe.writing)
    notifier.barrier(answers.append, 5.0)
    turn(loop, clock)
    manager.read(1)
    turn(loop, clock)
    assert answers == [] and manager.names == ["a"]
    assert manager.read() == [{"BARRIER": "1"}]
    turn(loop, clock)
    assert answers == [True]
    turn(loop, clock, 60.0)
    assert answers == [True], "once"


def test_a_barrier_that_is_not_answered_in_time(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock
) -> None:
    answers: list[bool] = []
    notifier.barrier(answers.append, 2.0)
    turn(loop, clock, 1.9)
    assert answers == []
    turn(loop, clock, 0.2)
    assert answers == [False]
    manager.read()
    turn(loop, clock)
    assert answers == [False]


def test_the_death_of_the_manager_is_no_answer(
    notifier: Notifier, manager: Manager, loop: Loop, clock: ManualClock
) -> None:
    """What was in its queue is closed with it, which looks like an answer."""
    answers: list[bool] = []
    notifier.barrier(answers.append, 2.0)
    manager.close()
    turn(loop, clock)
    assert answers == [False]


# Another manager


def test_a_new_keeper_hears_states_and_no_descriptors_of_the_old_one(
    notifier: Notifier,
    manager: Manager,
    loop: Loop,
    clock: ManualClock,
    pipe: Pipe,
    tmp_path: Path,
) -> None:
    fill(notifier, manager)
    answers: list[bool] = []
    notifier.store("a", pipe.writing)
    notifier.barrier(answers.append, 5.0)
    notifier.ready("serving r1")
    successor = Manager(str(tmp_path / "other"))
    notifier.move_to(successor.address)
    assert answers == [False]
    assert successor.read() == [{"READY": "1", "STATUS": "serving r1"}] and not notifier.pending
    notifier.store("a", pipe.writing)
    notifier.barrier(answers.append, 5.0)
    successor.read()
    turn(loop, clock)
    assert answers == [False, True] and successor.names == ["a"]
    notifier.move_to(None)
    assert not notifier.there
    successor.close()


def test_a_barrier_that_was_sent_to_the_old_manager_says_no(
    notifier: Notifier, manager: Manager, tmp_path: Path
) -> None:
    answers: list[bool] = []
    notifier.barrier(answers.append, 5.0)
    notifier.move_to(str(tmp_path / "other"))
    assert answers == [False]


# The kernel


def test_too_many_descriptors_on_their_way(tmp_path: Path, clock: ManualClock, loop: Loop) -> None:
    """ETOOMANYREFS meets users without CAP_SYS_RESOURCE; it is only "later", and the loop does not spin.

    The condition needs another user, so the errno is made by a socket of our own.
    """

    class Refusing(socket.socket):
        refusals = 5

        def sendmsg(self, buffers: object, ancillary: list[object], *more: object) -> int:  # type: ignore[override]
            if self.refusals and ancillary:
                self.refusals -= 1
                raise OSError(errno.ETOOMANYREFS, "Too many references")
            return super().sendmsg(buffers, ancillary, *more)  # type: ignore[arg-type]

    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.address, loop)
    assert notifier._sock is not None
    notifier._sock.close()
    notifier._sock = Refusing(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifier.store("a", 0, lambda: pytest.fail("lost"))
    notifier.ready()
    notifier.status("news")
    assert manager.read() == [{"STATUS": "news"}], "only news may overtake"
    assert notifier._sock.fileno() not in loop._watched
    for _ in range(3):
        assert notifier.pending
        turn(loop, clock, notify.RETRY_S)
    assert verbs(manager.read()) == ["FDSTORE", "READY"] and not notifier.pending
    notifier.close()
    manager.close()
