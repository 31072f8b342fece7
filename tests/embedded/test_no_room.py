"""A client for whom there is no thread, or no place in the sets of select, is told so, and nobody waits for it."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce import Daemon, Mode, Poller, Request, Response
from wire.serving import PATIENCE_S, read_reply, read_to_end

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def hello(request: Request) -> Response:
    return Response(b"hello")


def _connect(daemon: Daemon) -> socket.socket:
    sock = socket.create_connection(daemon.info.address, timeout=PATIENCE_S)
    sock.settimeout(PATIENCE_S)
    return sock


def test_no_thread_for_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def few(thread: threading.Thread, *more: Any) -> None:
        if thread.name == "quiesce-client" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread, *more)

    monkeypatch.setattr(threading.Thread, "start", few)
    with Daemon(hello, host="127.0.0.1", port=0, mode=Mode.THREAD_PER_CONNECTION) as daemon:
        with _connect(daemon) as first:
            assert read_reply(first).status == 503
        with _connect(daemon) as second:
            second.sendall(GET)
            assert read_reply(second).body == b"hello"
        assert refused
    # The end of the block has waited for every thread that serves somebody.


@pytest.fixture
def low_descriptors_taken() -> Iterator[None]:
    """None is left below 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("needs a limit of 2,048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < 1023:
        taken.append(os.dup(taken[0]))
    yield
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("mode", [Mode.THREAD, Mode.THREAD_PER_CONNECTION])
def test_a_descriptor_that_select_cannot_watch(mode: Mode, request: pytest.FixtureRequest) -> None:
    with Daemon(hello, host="127.0.0.1", port=0, mode=mode, poller=Poller.SELECT) as daemon:
        request.getfixturevalue("low_descriptors_taken")
        with _connect(daemon) as sock:
            assert read_to_end(sock).startswith(b"HTTP/1.1 503 ")
        assert daemon.wait_drained(PATIENCE_S), "it is still counted"
