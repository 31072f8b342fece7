"""sd_notify on real sockets: what arrives, and what happens when the manager does not read."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.supervisor.notify import Notifier

_NAMES = (f"@quiesce-test-{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else next(_NAMES)


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    """The reading end, as the service manager holds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("\0" + address[1:] if address[0] == "@" else address)
        yield sock


@pytest.fixture
def notifier(manager: socket.socket, address: str) -> Iterator[Notifier]:
    made = Notifier(address)
    yield made
    made.close()


def heard(manager: socket.socket) -> list[dict[str, str]]:
    """All datagrams that are there."""
    found = []
    while True:
        try:
            data = manager.recv(65536)
        except BlockingIOError:
            return found
        assert data.endswith(b"\n")
        found.append(dict(line.split("=", 1) for line in data.decode().splitlines()))


def fill(notifier: Notifier, manager: socket.socket) -> int:
    """Send status until the manager's queue is full; returns how many it holds.

    What was dropped shows only in what arrives, so the queue is filled, counted and filled again.
    """
    for number in range(5000):
        notifier.status(f"filler {number}")
    held = len(heard(manager))
    assert 0 < held < 5000
    for number in range(held):
        notifier.status(f"filler {number}")
    return held


def test_what_we_say_arrives(notifier: Notifier, manager: socket.socket) -> None:
    notifier.status("starting")
    notifier.ready("serving r1")
    notifier.extend_timeout(1.5)
    notifier.stopping()
    notifier.main_pid(42)
    assert heard(manager) == [
        {"STATUS": "starting"},
        {"READY": "1", "STATUS": "serving r1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"STOPPING": "1"},
        {"MAINPID": "42"},
    ]
    assert not notifier.pending


def test_reloading_carries_its_time_in_the_same_datagram(notifier: Notifier, manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading("upgrading to r2")
    after = time.monotonic_ns() // 1000
    (said,) = heard(manager)
    assert said.pop("RELOADING") == "1" and said.pop("STATUS") == "upgrading to r2"
    assert before <= int(said.pop("MONOTONIC_USEC")) <= after
    assert said == {}


def test_a_text_cannot_add_a_field(notifier: Notifier, manager: socket.socket) -> None:
    notifier.status("r2: bad\nREADY=1\r\nMAINPID=1\0")
    assert heard(manager) == [{"STATUS": "r2: bad READY=1  MAINPID=1 "}]
    notifier.status("žluťoučký \ud800 ✓")
    assert heard(manager) == [{"STATUS": "žluťoučký ? ✓"}]


def test_news_is_dropped_when_the_queue_is_full_and_what_counts_is_kept(
    notifier: Notifier, manager: socket.socket
) -> None:
    held = fill(notifier, manager)
    notifier.status("nobody will miss this")
    assert not notifier.pending
    notifier.reloading()
    notifier.ready("serving r2")
    notifier.stopping()
    assert notifier.pending
    notifier.flush()
    assert notifier.pending, "still full"
    assert len(heard(manager)) == held
    notifier.flush()
    assert not notifier.pending
    said = heard(manager)
    assert [next(iter(each)) for each in said] == ["RELOADING", "READY", "STOPPING"], (
        "in this order, once each"
    )
    notifier.flush()
    assert heard(manager) == []


def test_what_was_kept_goes_before_what_comes(notifier: Notifier, manager: socket.socket) -> None:
    fill(notifier, manager)
    notifier.reloading()
    heard(manager)
    notifier.ready()
    assert [next(iter(each)) for each in heard(manager)] == ["RELOADING", "READY"]
    assert not notifier.pending


def test_what_is_kept_is_bounded(notifier: Notifier, manager: socket.socket) -> None:
    fill(notifier, manager)
    for number in range(1000):
        notifier.ready(f"{number}")
    heard(manager)
    said = []
    for _ in range(3):  # the queue is shorter than what is kept
        notifier.flush()
        said += heard(manager)
    assert not notifier.pending
    assert len(said) == 16 and said[-1]["STATUS"] == "999"


def test_a_manager_that_is_being_replaced_hears_it_later(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address)
    notifier.ready("serving")
    assert notifier.pending
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(address)
        notifier.flush()
        assert heard(manager) == [{"READY": "1", "STATUS": "serving"}]
    notifier.close()
    assert not notifier.pending


def test_the_end_does_not_wait_for_a_manager_that_is_gone(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.stopping()
    assert notifier.pending
    notifier.close()
    assert not notifier.pending


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path", "/" + "x" * 200])
def test_nobody_to_tell(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready("serving")
    notifier.status("x" * 1_000_000)
    notifier.reloading()
    notifier.flush()
    assert not notifier.pending
    notifier.close()
    notifier.close()
    notifier.status("after the end")


def test_the_socket_is_not_inherited_by_workers(notifier: Notifier) -> None:
    assert notifier._sock is not None and not notifier._sock.get_inheritable()
