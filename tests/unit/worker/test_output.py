"""The sending side of a connection: order, back-pressure, who may write."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from quiesce.worker.net.output import Output


@pytest.fixture
def pair() -> Iterator[tuple[Output, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(20)
    output = Output(ours)
    yield output, theirs
    if not output.closed:
        output.release()
    theirs.close()


def _read(output: Output, theirs: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        output.flush()
        data += theirs.recv(65536)
    return data


def test_order_of_everything_that_is_queued(
    pair: tuple[Output, socket.socket], tmp_path: os.PathLike[str]
) -> None:
    output, theirs = pair
    path = f"{tmp_path}/f"
    with open(path, "wb") as file:
        file.write(b"f" * 50_000)
    fd = os.open(path, os.O_RDONLY)
    want = b""
    for i in range(200):
        piece = bytes([i]) * 700
        output.push(None, piece)
        want += piece
    output.push_file(None, fd, 10, 40_000)
    output.push(None, b"head", b"b" * 100_000)
    want += b"f" * 40_000 + b"head" + b"b" * 100_000
    assert output.queued <= len(want) - 40_000
    assert _read(output, theirs, len(want)) == want
    assert (output.queued, output.pending, output.sent) == (0, False, len(want))


def test_who_has_lost_the_connection_writes_nothing(pair: tuple[Output, socket.socket]) -> None:
    """A thread may be in the middle of its answer when ours, a 503, has been given in its place."""
    output, theirs = pair
    mine, other = object(), object()
    output.exchange = mine
    fd = os.open("/dev/null", os.O_RDONLY)
    assert output.push(other, b"late") and output.push_file(other, fd, 0, 1)
    output.push(mine, b"mine")
    assert theirs.recv(100) == b"mine"
    with pytest.raises(OSError):
        os.fstat(fd)


def test_client_that_goes_releases_whoever_waits(pair: tuple[Output, socket.socket]) -> None:
    output, theirs = pair
    output.push(None, bytes(1_000_000))
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(output.wait_below(10)))
    waiting.start()
    while output._waiter is None:
        pass
    theirs.close()
    output.flush()
    waiting.join(20)
    assert results == [False]
    assert output.push(None, b"x") and output.queued == 0


def test_waiter_goes_on_when_enough_was_taken(pair: tuple[Output, socket.socket]) -> None:
    output, theirs = pair
    output.push(None, bytes(300_000))
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(output.wait_below(100_000)))
    waiting.start()
    while output._waiter is None:
        pass
    _read(output, theirs, 250_000)
    waiting.join(20)
    assert results == [True]


def test_file_that_shrank_breaks_the_connection(
    pair: tuple[Output, socket.socket], tmp_path: os.PathLike[str]
) -> None:
    output, _ = pair
    path = f"{tmp_path}/f"
    with open(path, "wb") as file:
        file.write(b"short")
    output.push_file(None, os.open(path, os.O_RDONLY), 0, 100)
    output.flush()
    assert output.broken
