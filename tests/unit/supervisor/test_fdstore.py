"""The descriptor store against managers that keep all, some, nothing, or do not answer."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.manager import Manager, has_writer, serve, turn_until
from quiesce.shared.clock import ManualClock
from quiesce.shared.logs import Log
from quiesce.supervisor import fdnames
from quiesce.supervisor.fdstore import ANSWER_TIMEOUT_S, SETTLE_S, FdStore
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier


class Bench:
    """A store, the manager that it talks to, and descriptors to put."""

    def __init__(
        self, folder: Path, keeps: int = 1000, limit: int | None = None, listens: bool = True
    ) -> None:
        self.clock = ManualClock()
        self.loop = Loop(self.clock)
        self.manager = Manager(str(folder / "notify"), keeps, listens)
        self.notifier = Notifier(self.manager.address, self.loop)
        self.log = os.memfd_create("log")
        self.store = FdStore(self.loop, self.notifier, Log(self.log), limit)
        self.fds: dict[str, int] = {}
        self.answers: list[bool] = []
        serve(self.loop, self.manager)

    def put(self, *names: str) -> None:
        for name in names:
            self.fds.setdefault(name, os.memfd_create(name))
            self.store.put(name, self.fds[name])

    def drop(self, name: str) -> None:
        self.store.drop(name)
        os.close(self.fds.pop(name))

    def answer(self) -> bool:
        """Turn until the one question that was asked is answered."""
        turn_until(self.loop, lambda: self.answers)
        return self.answers.pop()

    def measure(self, most: int = 20) -> bool:
        self.store.measure(most, self.answers.append)
        self.settle()
        self.pass_time(SETTLE_S)
        return self.answer()

    def sync(self) -> bool:
        self.store.sync(self.answers.append)
        return self.answer()

    def settle(self) -> None:
        """Let the manager read all that was said."""
        done: list[bool] = []
        self.notifier.barrier(done.append, ANSWER_TIMEOUT_S)
        turn_until(self.loop, lambda: done)

    def go_silent(self) -> None:
        self.loop.unwatch(self.manager.fileno())

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.call_soon(lambda: None)
        self.loop.turn()

    def said(self) -> str:
        return os.pread(self.log, 1 << 16, 0).decode()

    def close(self) -> None:
        self.notifier.close()
        self.manager.close()
        self.loop.close()
        for fd in (*self.fds.values(), self.log):
            os.close(fd)


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    before = set(os.listdir("/proc/self/fd"))
    made = Bench(tmp_path, **getattr(request, "param", {}))
    yield made
    made.close()
    assert set(os.listdir("/proc/self/fd")) <= before, "a pipe of measure() was left open"


def with_manager(**kind: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [kind], indirect=True)


# Measuring


@with_manager(keeps=5)
def test_a_small_store_is_measured(bench: Bench) -> None:
    assert bench.store.works is None and bench.store.room is None and "not known yet" in bench.store.reason
    assert bench.measure(20)
    assert (bench.store.capacity, bench.store.used, bench.store.room) == (5, 0, 5)
    assert bench.store.reason == "" and bench.store.complete
    bench.settle()
    assert bench.manager.store == [], "the pipes are taken out again"


@with_manager(keeps=5)
def test_what_is_there_already_counts(bench: Bench) -> None:
    bench.put("a", "b")
    assert bench.measure(20)
    assert (bench.store.capacity, bench.store.used, bench.store.room) == (5, 2, 3)
    bench.settle()
    assert bench.manager.names == ["a", "b"]


def test_a_large_store_is_known_as_far_as_asked(bench: Bench) -> None:
    assert bench.measure(600)
    assert bench.store.capacity == 600 and bench.store.room == 600
    sent = [said for said in bench.manager.heard if said.get("FDNAME") == fdnames.CHECK and "FDSTORE" in said]
    assert len(sent) == 3


@with_manager(keeps=0)
def test_a_unit_without_a_store(bench: Bench) -> None:
    bench.put("a")
    assert not bench.measure()
    assert bench.store.works is False and bench.store.capacity is None and bench.store.room is None
    assert bench.store.reason.startswith("the unit keeps no descriptors (FileDescriptorStoreMax=0")
    assert not bench.sync()
    bench.settle()
    before = len(bench.manager.heard)
    bench.put("b")
    bench.settle()
    assert [said for said in bench.manager.heard[before:] if "FDSTORE" in said] == [], (
        "each is a line in the journal"
    )
    assert bench.store.kept() == list(bench.fds.items()) and bench.store.used == 0


@with_manager(keeps=0)
def test_descriptors_that_are_let_go_late_are_not_kept(bench: Bench) -> None:
    """systemd 257 on a busy machine: eleven of fifty were open still when it had answered."""
    bench.manager.late = 11
    bench.store.measure(50, bench.answers.append)
    bench.settle()
    assert not bench.answers, "some are gone, so the others may follow"
    bench.manager.let_go()
    bench.pass_time(SETTLE_S)
    assert bench.answers == [False] and bench.store.works is False


@with_manager(keeps=1)
def test_a_store_of_one_is_none(bench: Bench) -> None:
    """systemd 254 closes what does not fit by a helper thread: one seems to be kept for a moment."""
    assert not bench.measure()


@with_manager(listens=False)
@pytest.mark.parametrize("limit", [None, 32])
def test_a_manager_that_does_not_let_us(bench: Bench, limit: int | None) -> None:
    """NotifyAccess= names somebody else; FDSTORE= is in the environment all the same."""
    bench.store._limit = limit
    assert not bench.measure()
    assert "NotifyAccess= does not let us" in bench.store.reason


@with_manager(keeps=32, limit=32)
def test_one_pipe_is_enough_where_the_limit_is_known(bench: Bench) -> None:
    bench.put("a")
    assert bench.measure(1000)
    assert (bench.store.capacity, bench.store.used, bench.store.room) == (32, 1, 31)
    bench.settle()
    assert sum("FDSTORE" in said for said in bench.manager.heard) == 2


@with_manager(keeps=4, limit=4)
def test_a_store_that_is_filled_before_it_is_measured(bench: Bench) -> None:
    bench.put("a", "b", "c", "d", "e", "f")
    assert bench.measure()
    assert bench.store.works and bench.store.room == 0 and not bench.store.complete
    bench.settle()
    assert bench.manager.names == ["a", "b", "c", "d"]


@with_manager(keeps=2, limit=2)
def test_a_store_that_a_predecessor_filled(bench: Bench) -> None:
    bench.put("a", "b")
    bench.settle()
    successor = FdStore(bench.loop, bench.notifier, Log(bench.log), 2)
    for name, fd in bench.fds.items():
        successor.found(name, fd)
    successor.measure(10, bench.answers.append)
    assert bench.answers == [True] and successor.works and successor.room == 0


@with_manager(keeps=0, limit=0)
def test_a_manager_that_says_zero(bench: Bench) -> None:
    assert bench.store.works is False and "FileDescriptorStoreMax=0" in bench.store.reason


def test_nobody_above_us(tmp_path: Path) -> None:
    loop = Loop()
    store = FdStore(loop, Notifier(None, loop), Log(2), None)
    answers: list[bool] = []
    store.put("a", 0)
    store.sync(answers.append)
    store.measure(10, answers.append)
    store.drop("a")
    assert answers == [False, False] and store.works is False and store.kept() == []
    assert store.reason == "there is no service manager and no keeper above this supervisor (--no-keeper)"
    loop.close()


def test_a_manager_that_does_not_answer(bench: Bench) -> None:
    bench.go_silent()
    bench.store.measure(20, bench.answers.append)
    bench.store.sync(bench.answers.append)
    bench.pass_time(ANSWER_TIMEOUT_S - 0.1)
    assert bench.answers == []
    bench.pass_time(0.2)
    assert bench.answers == [False, False]
    assert bench.store.reason == "the service manager did not answer within 5 s"


@with_manager(keeps=5)
def test_what_is_put_while_measuring_is_not_crowded_out(bench: Bench) -> None:
    bench.put("a")
    bench.store.measure(20, bench.answers.append)
    bench.put("b", "c")
    bench.drop("b")
    synced: list[bool] = []
    bench.store.sync(synced.append)
    bench.settle()
    bench.pass_time(SETTLE_S)
    assert bench.answer()
    turn_until(bench.loop, lambda: synced)
    assert synced == [True] and bench.manager.names == ["a", "c"]
    assert (bench.store.capacity, bench.store.room) == (5, 3)


def test_measuring_with_few_descriptors_left(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    gaps = [os.dup(bench.log)]
    while gaps[-1] <= highest:  # numbers below the highest that are free would count as well
        gaps.append(os.dup(bench.log))
    spare = gaps.pop()
    os.close(spare)
    for free, works in ((1, False), (12, True)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + free, hard))
        try:
            bench.store.measure(100, bench.answers.append)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert bench.answer() is works
    assert bench.store.capacity is not None and 2 <= bench.store.capacity <= 6
    for fd in gaps:
        os.close(fd)


# Putting


def test_after_sync_a_successor_would_find_it(bench: Bench) -> None:
    bench.put("a", "b")
    assert bench.sync(), "not measured, and believed"
    assert bench.manager.names == ["a", "b"]
    assert bench.measure()
    bench.put("c")
    assert bench.sync() and bench.manager.names == ["a", "b", "c"]
    assert bench.store.used == 3


def test_what_is_dropped_is_let_go(bench: Bench) -> None:
    reading, writing = os.pipe()
    bench.store.put("a", writing)
    assert bench.sync()
    bench.store.drop("a")
    os.close(writing)
    bench.store.drop("left by a predecessor")
    assert bench.sync() and not has_writer(reading) and bench.store.kept() == []
    assert bench.manager.heard[-2] == {"FDSTOREREMOVE": "1", "FDNAME": "left by a predecessor"}
    os.close(reading)


def test_a_name_is_kept_once(bench: Bench) -> None:
    """systemd keeps both."""
    bench.put("a")
    other = os.memfd_create("other")
    bench.store.put("a", other)
    assert bench.sync() and bench.manager.names == ["a"] and bench.store.kept() == [("a", other)]
    assert os.fstat(bench.manager.store[0][1]).st_ino == os.fstat(other).st_ino
    os.close(other)


@with_manager(keeps=3)
def test_what_does_not_fit_is_said_and_goes_in_when_there_is_room(bench: Bench) -> None:
    assert bench.measure()
    bench.put("a", "b", "c")
    assert bench.sync() and bench.store.room == 0 and bench.store.complete
    bench.put("d")
    assert not bench.sync() and not bench.store.complete
    assert bench.store.reason == (
        "the service manager keeps 3 descriptors and 4 are needed; raise FileDescriptorStoreMax="
    )
    bench.drop("b")
    assert bench.store.complete and bench.store.reason == ""
    bench.settle()
    assert bench.manager.names == ["a", "c", "d"]


def test_found_is_counted_and_not_sent(bench: Bench) -> None:
    fd = os.memfd_create("x")
    bench.store.found("x", fd)
    assert bench.store.used == 1 and bench.sync()
    assert [said for said in bench.manager.heard if "FDSTORE" in said] == []
    os.close(fd)


def test_a_manager_that_is_slow_is_waited_for(bench: Bench) -> None:
    assert bench.measure(100)
    bench.go_silent()
    names = [f"n{number}" for number in range(30)]
    bench.put(*names)
    bench.store.sync(bench.answers.append)
    bench.pass_time(1.0)
    assert bench.answers == []
    serve(bench.loop, bench.manager)
    assert bench.answer() and bench.manager.names == sorted(names)


def test_a_manager_that_is_too_slow_is_asked_again_at_the_next_sync(bench: Bench) -> None:
    assert bench.measure(100)
    bench.go_silent()
    bench.put(*(f"n{number}" for number in range(30)))
    bench.store.sync(bench.answers.append)
    bench.pass_time(ANSWER_TIMEOUT_S + 0.1)
    assert bench.answers == [False] and not bench.store.complete
    assert "was too slow to take" in bench.store.reason
    assert "descriptor could not be given to the service manager name=n29" in bench.said()
    bench.answers.clear()
    serve(bench.loop, bench.manager)
    assert bench.sync() and bench.store.complete and len(bench.manager.store) == 30


# Another manager


def test_a_new_keeper_gets_everything(bench: Bench, tmp_path: Path) -> None:
    bench.put("a", "b")
    assert bench.measure()
    bench.store.sync(bench.answers.append)
    bench.go_silent()
    bench.manager.close()
    bench.manager = Manager(str(tmp_path / "other"))
    serve(bench.loop, bench.manager)
    bench.notifier.move_to(bench.manager.address)
    assert bench.answer() is False, "that one died"
    bench.store.put_all_again()
    assert bench.store.works is None and bench.measure()
    assert bench.sync() and bench.manager.names == ["a", "b"] and bench.store.complete


@with_manager(keeps=3, limit=3)
def test_a_full_store_is_measured_again(bench: Bench) -> None:
    """The pipe would not fit, which proves nothing."""
    assert bench.measure()
    bench.put("a", "b", "c")
    assert bench.sync() and bench.store.room == 0
    assert bench.measure() and bench.store.complete
    bench.manager.empty()
    bench.store.put_all_again()
    assert bench.measure() and bench.sync() and bench.manager.names == ["a", "b", "c"]


def test_a_new_keeper_gets_the_listeners_first(bench: Bench) -> None:
    """Whoever dies over it leaves a part of all; a listener that workers have cannot be bound a second time."""
    assert bench.measure()
    bench.put("a", fdnames.channel("1"), fdnames.listener("1"), "b", fdnames.listener("2"))
    assert bench.sync()
    bench.manager.empty()
    bench.store.put_all_again()
    assert bench.measure() and bench.sync()
    order = [name for name, _ in bench.manager.store]
    assert order == [fdnames.listener("1"), fdnames.listener("2"), "a", fdnames.channel("1"), "b"]


@with_manager(keeps=0)
def test_a_keeper_that_keeps_after_one_that_did_not(bench: Bench, tmp_path: Path) -> None:
    bench.put("a")
    assert not bench.measure()
    bench.manager.keeps = 10
    bench.store.put_all_again()
    assert bench.measure() and bench.sync() and bench.manager.names == ["a"]
    bench.notifier.move_to(None)
    bench.store.put_all_again()
    assert bench.store.works is False and "no keeper" in bench.store.reason
