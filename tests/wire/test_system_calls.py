"""What a request costs in system calls: one recv, one send, and epoll is told nothing.

Counted as the serving thread sees it: every function in C that it calls.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest

from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.loops import asyncio_loop
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.net import answering
from wire.serving import Served, read_reply, read_to_end
from wire.test_answers import hello

REQUESTS = 20
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
KERNEL = ("socket.", "epoll.", "eventfd")  # of the qualified names


def _wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})


def _served(kind: str) -> Served:
    if kind == "asgi":
        loop = AsyncioLoop()
        return Served(AsgiApp(_asgi, loop), loop=loop)
    if kind == "native":
        return Served(NativeApp(hello))
    return Served(WsgiApp(_wsgi), threads=4 if kind == "wsgi-pool" else 1)


@pytest.fixture(autouse=True)
def no_turn_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is: ASGI applications would be called in another one."""
    monkeypatch.setattr(asyncio_loop, "_LONG_NS", 1 << 62)


class Calls:
    """Counts the serving thread's calls into the kernel, from :meth:`begin` to :meth:`end`."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.count: Counter[str] = Counter()

    def on_event(self, frame: FrameType, event: str, arg: Any) -> None:
        # asyncio reads from a socket of its own when it is woken, as by us here.
        if event == "c_call" and "asyncio/" not in frame.f_code.co_filename:
            name = getattr(arg, "__qualname__", "")
            if name.startswith(KERNEL):
                self.count[name] += 1

    def begin(self) -> None:
        self._served.do(lambda: sys.setprofile(self.on_event))

    def end(self) -> None:
        """What wakes the loop for this is not counted."""
        woken = self.count.copy()
        self._served.do(lambda: sys.setprofile(None))
        self.count = Counter({name: n for name, n in woken.items() if not name.startswith("epoll.poll")})


@pytest.mark.parametrize("request_", [GET, POST], ids=["get", "post"])
@pytest.mark.parametrize("kind", ["native", "wsgi", "wsgi-pool", "asgi"])
def test_a_request_is_one_recv_and_one_send(kind: str, request_: bytes) -> None:
    served = _served(kind)
    try:
        with served.connect() as sock:
            for count in (3, REQUESTS):  # the first ones may find something to make
                calls = Calls(served)
                calls.begin()
                for _ in range(count):
                    sock.sendall(request_)
                    assert read_reply(sock).status == 200
                calls.end()
            expected = {"socket.recv": REQUESTS}
            if kind != "wsgi-pool":  # there the pool's thread sends, and does not wake us
                expected["socket.send"] = REQUESTS
            assert calls.count == expected
    finally:
        served.close()


@pytest.mark.parametrize("kind", ["native", "wsgi", "asgi"])
def test_a_connection_for_each_request_is_accept_recv_send_close(kind: str) -> None:
    """Whoever is answered at once is never shown to epoll; and nobody is waited for who said that nothing follows."""
    served = _served(kind)
    try:
        for count in (3, REQUESTS):
            calls = Calls(served)
            clients: list[socket.socket] = []

            def ask(count: int = count, calls: Calls = calls, clients: list[socket.socket] = clients) -> None:
                # In the loop's thread: when it accepts them, their requests are there.
                for _ in range(count):
                    clients.append(served.connect())
                    clients[-1].sendall(CLOSE)
                sys.setprofile(calls.on_event)

            served.do(ask)
            for client in clients:
                assert read_to_end(client).endswith(b"ok\n" if kind != "native" else b"Hello")
            served.until(lambda: served.daemon.open == 0)
            calls.end()
        calls.count.pop("eventfd_read", None)  # until() wakes the loop
        del calls.count["socket.fileno"]  # which asks nobody
        accepts = calls.count.pop("socket._accept")
        assert REQUESTS <= accepts <= REQUESTS + 2  # the last one of a burst may find nobody
        assert calls.count == dict.fromkeys(("socket.recv", "socket.send", "socket.close"), REQUESTS)
    finally:
        served.close()


@pytest.mark.parametrize("before", [1, 4], ids=["new heads", "heads that came before"])
def test_an_answer_does_not_wait_for_one_that_may_take_its_time(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for a request that changes something: should we die in it, this answer would be lost."""
    for at_once_ns, requests, sends in ((0, GET * 4, 4), (1 << 62, (GET + POST) * 2, 4)):
        monkeypatch.setattr(answering, "AT_ONCE_NS", at_once_ns)
        served = _served("native")
        try:
            with served.connect() as sock:
                for _ in range(before):
                    sock.sendall(GET)
                    assert read_reply(sock).status == 200
                calls = Calls(served)
                calls.begin()
                sock.sendall(requests)
                rest = b""
                for _ in range(4):
                    rest = read_reply(sock, before=rest).rest
                calls.end()
                assert calls.count == {"socket.recv": 1, "socket.send": sends}
        finally:
            served.close()


@pytest.mark.parametrize("kind", ["native", "wsgi", "asgi"])
def test_pipelined_requests_share_a_recv_and_a_send(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "AT_ONCE_NS", 1 << 62)  # however slow this machine is
    served = _served(kind)
    try:
        with served.connect() as sock:
            for _ in range(4):  # it has been accepted, and its head is known
                sock.sendall(GET)
                assert read_reply(sock).status == 200
            calls = Calls(served)
            calls.begin()
            sock.sendall(GET * 16)
            rest = b""
            for _ in range(16):
                reply = read_reply(sock, before=rest)
                assert reply.status == 200
                rest = reply.rest
            calls.end()
            assert rest == b""
            assert calls.count == {"socket.recv": 1, "socket.send": 1}
    finally:
        served.close()
