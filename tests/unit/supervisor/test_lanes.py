"""A lane: real sockets, real descriptors in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from quiesce.shared.fdpass import close_all, recv_fds, send_fds
from quiesce.shared.logs import Log
from quiesce.supervisor import fdnames
from quiesce.supervisor.lanes import Lane, Lanes


class Store:
    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        self.kept[name] = os.dup(fd)  # as a manager does

    def drop(self, name: str) -> None:
        os.close(self.kept.pop(name))

    def sync(self, then: object) -> None:
        raise AssertionError("nobody waits for it here")


@pytest.fixture
def store() -> Iterator[Store]:
    before = len(os.listdir("/proc/self/fd"))
    it = Store()
    yield it
    close_all(list(it.kept.values()))
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"


def fill(lane: Lane, packets: int, each: int) -> None:
    pairs = [socket.socketpair() for _ in range(each)]
    for _ in range(packets):
        send_fds(lane.writing, b"x", [pair[0].fileno() for pair in pairs])
    for pair in pairs:
        pair[0].close()
        pair[1].close()


def test_both_ends_are_stored_before_anybody_can_be_told(store: Store) -> None:
    lanes = Lanes(store, Log(2))
    lane = lanes.make("r1")
    assert lane is not None and lanes.get(lane.key) is lane and list(lanes) == [lane]
    assert set(store.kept) == {fdnames.lane_read(lane.key), fdnames.lane_write(lane.key)}
    assert not os.get_inheritable(lane.reading.fileno()) and not os.get_inheritable(lane.writing.fileno())
    another = lanes.make("r1")
    assert another is not None and another.name != lane.name, (
        "a worker may hold those of two generations of one release"
    )
    lanes.drop(another)
    lanes.drop(lane)
    lanes.drop(lane)
    assert not store.kept and lanes.get(lane.key) is None


def test_how_many_lie_in_it(store: Store) -> None:
    lanes = Lanes(store, Log(2))
    lane = lanes.make("r1")
    assert lane is not None and lane.depth() == 0
    fill(lane, 3, 20)
    assert lane.depth() == 60
    close_all(recv_fds(lane.reading, 99, 253)[1])
    assert lane.depth() == 40
    lanes.close()
    assert lane.depth() == 0
    assert len(store.kept) == 2, "the next supervisor's"


def test_an_end_comes_behind_what_was_sent(store: Store) -> None:
    lanes = Lanes(store, Log(2))
    lane = lanes.make("r1")
    assert lane is not None
    fill(lane, 1, 5)
    lane.end()
    lane.end()
    with pytest.raises(BrokenPipeError):
        lane.writing.send(b"x", socket.MSG_NOSIGNAL)
    assert lane.depth() == 5
    data, fds = recv_fds(lane.reading, 99, 253)
    close_all(fds)
    assert data and recv_fds(lane.reading, 99, 253) == (b"", []), (
        "although the write end is still open, and stored"
    )
    lanes.close()


def test_the_next_supervisor_finds_it_by_name_with_all_that_lies_in_it(store: Store) -> None:
    before = Lanes(store, Log(2))
    lane = before.make("r1")
    assert lane is not None
    fill(lane, 2, 7)
    before.close()
    kept = {name: os.dup(fd) for name, fd in store.kept.items()}
    after = Lanes(store, Log(2))
    again = after.recall(lane.key, "r1", kept)
    assert again is not None and (again.name, again.depth(), kept) == (lane.name, 14, {})
    after.close()


def test_half_a_lane_is_none_and_is_left_to_be_closed(store: Store) -> None:
    lanes = Lanes(store, Log(2))
    fd = os.dup(2)
    kept = {fdnames.lane_read("0" * 16): fd}
    assert lanes.recall("0" * 16, "r1", kept) is None and kept == {fdnames.lane_read("0" * 16): fd}
    assert lanes.recall("", "r1", {}) is None, "a state that knows no lanes"
    os.close(fd)
