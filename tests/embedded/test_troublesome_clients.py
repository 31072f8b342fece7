"""Slow, silent, flooding and vanishing clients, in every mode: each limit holds, and nobody leaves anything behind."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedded.serving import CLOSE, GET, Running, Setup, running
from quiesce import Connection, Limits, Response, Stage, Termination
from wire.serving import PATIENCE_S, read_reply, read_to_end

QUICK = {"external-select-run_from_select", "thread-epoll"}  # the others in `./dev test`
RESET = b"\1\0\0\0\0\0\0\0"
POST = b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nHello123"
CHUNKED = (
    b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nHello\r\n3\r\n123\r\n0\r\nDigest: abc\r\n\r\n"
)
NEVER = GET.replace(b" / ", b" /never ")
EXPECTS = POST.replace(b"Content", b"Expect: 100-continue\r\nContent", 1)
BIG = bytes(20_000_000)


class Visits:
    """What the handler saw of each client, and how its requests ended: by the client's address."""

    def __init__(self) -> None:
        self.noting = True
        self.suspended: list[Connection] = []
        self.seen: set[Any] = set()
        self.ends: dict[Any, list[Termination]] = {}
        self.events: dict[Any, list[str]] = {}

    def handler(self, connection: Connection) -> Response | None:
        self.seen.add(connection.peer)
        if connection.request.path == "/big":
            return Response(BIG)
        if connection.request.path == "/never":
            self.suspended.append(connection)
            connection.suspend()
            return None
        if connection.stage is Stage.HEAD:
            connection.state = b""
        connection.state += connection.upload.read()
        return Response(connection.state or b"Hello") if connection.stage is Stage.END else None

    def completed(self, connection: Connection, state: object, why: Termination) -> None:
        if self.noting:
            self.ends.setdefault(connection.peer, []).append(why)

    def connection(self, connection: Connection, begins: bool) -> None:
        self.events.setdefault(connection.peer, []).append("started" if begins else "closed")

    @property
    def options(self) -> dict[str, Any]:
        return {
            "access_handler": self.handler,
            "on_completed": self.completed,
            "on_connection": self.connection,
            "allow_suspend": True,
        }


def held() -> tuple[int, int]:
    """Descriptors of this process, and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@contextlib.contextmanager
def nothing_stays(setup: Setup, visits: Visits, **options: Any) -> Iterator[Running]:
    """A daemon; in the end, and before it is stopped, it holds what it held in the beginning."""
    with running(setup, **visits.options, **options) as served:
        before = held()
        yield served
        served.until(lambda: served.daemon.connections == 0)
        # Not more; less where something of an earlier test was still about to end.
        served.until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
        assert all(events == ["started", "closed"] for events in visits.events.values())
        visits.noting = False
        assert served.ask(CLOSE).body == b"Hello"  # and it serves on


def name_of(sock: socket.socket) -> Any:
    return sock.getsockname()


def drip(sock: socket.socket, piece: bytes = b"x") -> bytes:
    """Send so busily that a timeout of silence would be put off for ever; what is said then."""
    sock.settimeout(0.01)
    for _ in range(int(PATIENCE_S / 0.01)):
        try:
            return sock.recv(1000)
        except TimeoutError:
            sock.send(piece)
    raise AssertionError("nobody minds")


# -- times ----------------------------------------------------------------------------------------


def test_header_time_who_never_says_anything(setup: Setup) -> None:
    visits = Visits()
    with nothing_stays(setup, visits, limits=Limits(header_timeout=0.1)) as served, served.connect() as sock:
        assert read_to_end(sock) == b""
    assert visits.ends == {}


def test_header_time_who_drips_its_head(setup: Setup) -> None:
    visits = Visits()
    with nothing_stays(setup, visits, limits=Limits(header_timeout=0.15)) as served, served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert drip(sock).startswith(b"HTTP/1.1 408 ")
    assert visits.ends == {}


def test_body_time_who_falls_silent(setup: Setup) -> None:
    visits = Visits()
    with nothing_stays(setup, visits, limits=Limits(body_timeout=0.1)) as served, served.connect() as sock:
        sock.sendall(POST[:-2])
        assert read_reply(sock).status == 408
        name = name_of(sock)
        assert read_to_end(sock) == b""
    assert visits.ends == {name: [Termination.TIMEOUT_REACHED]}


def test_body_rate_who_drips_its_body(setup: Setup) -> None:
    visits = Visits()
    limits = Limits(body_min_rate=1_000_000, body_grace=0.1)
    with nothing_stays(setup, visits, limits=limits) as served, served.connect() as sock:
        sock.sendall(POST.replace(b"8", b"500000"))
        assert drip(sock).startswith(b"HTTP/1.1 408 ")
        name = name_of(sock)
    assert visits.ends == {name: [Termination.TIMEOUT_REACHED]}


def test_idle_time(setup: Setup) -> None:
    visits = Visits()
    with nothing_stays(setup, visits, limits=Limits(idle_timeout=0.1)) as served, served.connect() as sock:
        sock.sendall(GET)
        assert read_reply(sock).body == b"Hello"
        assert read_to_end(sock) == b""
        name = name_of(sock)
    assert visits.ends == {name: [Termination.COMPLETED_OK]}


def test_send_time_who_takes_nothing_of_its_answer(setup: Setup) -> None:
    visits = Visits()
    with (
        nothing_stays(setup, visits, limits=Limits(send_timeout=0.15)) as served,
        served.connect(receive_buffer=4096) as sock,
    ):
        sock.sendall(GET.replace(b" / ", b" /big "))
        sock.recv(1)
        name = name_of(sock)
        served.until(lambda: served.daemon.connections == 0)
        assert visits.ends == {name: [Termination.TIMEOUT_REACHED]}


def test_linger_time_who_never_closes_and_talks_on(setup: Setup) -> None:
    visits = Visits()
    limits = Limits(linger_timeout=PATIENCE_S, linger_time=0.2)
    with nothing_stays(setup, visits, limits=limits) as served, served.connect() as sock:
        sock.sendall(CLOSE)
        read_to_end(sock)
        name = name_of(sock)
        with contextlib.suppress(OSError):  # a reset, at last
            while True:
                sock.send(b"x")
                threading.Event().wait(0.01)
        assert visits.ends == {name: [Termination.COMPLETED_OK]}


# -- sizes ----------------------------------------------------------------------------------------


FLOODS = {
    "line": (b"GET /", b"x" * 10_000),
    "head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 10_000),
    "body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"2710\r\n" + b"x" * 10_000 + b"\r\n",
    ),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_who_floods_us_is_told_and_in_the_end_cut(setup: Setup, flood: str) -> None:
    visits = Visits()
    begin, piece = FLOODS[flood]
    limits = Limits(body_bytes=100_000, linger_bytes=500_000)
    with nothing_stays(setup, visits, limits=limits) as served, served.connect() as sock:
        name = name_of(sock)
        sock.sendall(begin)
        served.until(lambda: name in visits.seen or flood != "body")
        sent = 0
        with contextlib.suppress(OSError):  # we are cut, in the middle of it
            while sent < 100_000_000:
                sent += sock.send(piece)
        assert sent < 50_000_000  # what the kernels hold, and what was thrown away
    assert visits.ends == ({name: [Termination.WITH_ERROR]} if flood == "body" else {})


@pytest.mark.parametrize(
    ("begin", "more", "status"),
    [
        (b"GET /", b"x" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 40_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", b"", 413),
    ],
    ids=["line", "head", "body"],
)
def test_who_asks_for_too_much_is_told_so(setup: Setup, begin: bytes, more: bytes, status: int) -> None:
    visits = Visits()
    with nothing_stays(setup, visits, limits=Limits(body_bytes=100_000)) as served:
        with served.connect() as sock:
            sock.sendall(begin + more)
            assert read_reply(sock).status == status
            assert read_to_end(sock) == b""
        served.until(lambda: served.daemon.connections == 0)
    assert visits.ends == {}


@pytest.mark.slow
def test_who_floods_us_while_its_request_waits_is_held_up(setup: Setup) -> None:
    """What is pipelined behind a request that is not answered is read up to a bound, then left to TCP."""
    visits = Visits()
    with nothing_stays(setup, visits) as served, served.connect() as sock:
        sock.sendall(GET.replace(b" / ", b" /never "))
        name = name_of(sock)
        served.until(lambda: name in visits.seen)
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100_000_000:
                sent += sock.send(GET * 1000)
        assert sent < 50_000_000
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
    assert visits.ends == {name: [Termination.READ_ERROR]}


# -- vanishing ------------------------------------------------------------------------------------


def by_fin(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        read_to_end(sock)


def by_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def by_silence(sock: socket.socket) -> None:
    """Until we are given up."""
    with contextlib.suppress(OSError):
        read_to_end(sock)


WAYS: dict[str, tuple[Callable[[socket.socket], None], Termination]] = {
    "fin": (by_fin, Termination.CLIENT_ABORT),
    "reset": (by_reset, Termination.READ_ERROR),
    "silence": (by_silence, Termination.TIMEOUT_REACHED),
}


@pytest.mark.parametrize("way", ["fin", "reset", pytest.param("silence", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "request_", [POST, CHUNKED, EXPECTS, GET], ids=["length", "chunked", "expects", "get"]
)
def test_who_stops_after_any_byte_leaves_nothing_behind(setup: Setup, way: str, request_: bytes) -> None:
    """A client for each number of bytes, all at once."""
    visits = Visits()
    end, code = WAYS[way]
    head = request_.index(b"\r\n\r\n") + 4
    options: dict[str, Any] = {"timeout_s": 1.0} if way == "silence" else {}
    with nothing_stays(setup, visits, **options) as served:
        socks: dict[int, socket.socket] = {}
        for count in range(len(request_) + 1):
            socks[count] = served.connect()
            socks[count].sendall(request_[:count])
        names = {count: name_of(sock) for count, sock in socks.items()}
        shown = {names[count] for count in socks if count >= head}
        served.until(lambda: visits.seen >= shown)
        last = socks[len(request_)]
        reply = read_reply(last)
        if reply.status == 100:
            reply = read_reply(last, before=reply.rest)
        assert reply.status == 200
        if (
            way != "silence"
        ):  # everybody has been accepted; who says nothing more may have been given up by now
            served.until(lambda: served.daemon.connections == len(visits.events) == len(socks))
        for sock in socks.values():
            end(sock)
            sock.close()
        served.until(lambda: served.daemon.connections == 0)
        expected = {names[count]: [code] for count in socks if head <= count < len(request_)}
        assert visits.ends == expected | {names[len(request_)]: [Termination.COMPLETED_OK]}


@pytest.mark.parametrize("way", WAYS)
def test_who_stops_in_the_middle_of_its_answer_leaves_nothing_behind(setup: Setup, way: str) -> None:
    visits = Visits()
    options: dict[str, Any] = {"timeout_s": 0.3} if way == "silence" else {}
    with nothing_stays(setup, visits, **options) as served:
        for taken in (1, 100_000):
            with served.connect(receive_buffer=4096) as sock:
                sock.sendall(GET.replace(b" / ", b" /big "))
                left = taken
                while left > 0:
                    left -= len(sock.recv(left))
                name = name_of(sock)
                if way == "silence":
                    served.until(lambda: served.daemon.connections == 0)
                elif way == "reset":
                    by_reset(sock)
                # Else: closed with unread bytes in it, which is a reset as well.
            served.until(lambda: served.daemon.connections == 0)
            expected = Termination.TIMEOUT_REACHED if way == "silence" else Termination.READ_ERROR
            assert visits.ends.pop(name) == [expected]


def test_who_half_closes_while_it_waits_gets_its_answer(setup: Setup) -> None:
    """A client's FIN behind a whole request is no vanishing."""
    visits = Visits()
    with nothing_stays(setup, visits) as served, served.connect() as sock:
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        assert read_reply(sock).body == b"Hello"
        name = name_of(sock)
        assert sock.recv(1) == b""
    assert visits.ends == {name: [Termination.COMPLETED_OK]}


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


@pytest.mark.parametrize("case", ["upload is held up", "half-closed before"])
def test_who_resets_while_nothing_is_asked_of_it_is_noticed(setup: Setup, case: str) -> None:
    """select has no question for such a socket, so it is looked at now and then."""
    visits = Visits()
    with nothing_stays(setup, visits) as served, served.connect() as sock:
        name = name_of(sock)
        sock.sendall(POST[:-4].replace(b"/up", b"/never") if case == "upload is held up" else NEVER)
        served.until(lambda: name in visits.seen)
        if case == "half-closed before":
            sock.shutdown(socket.SHUT_WR)
            served.until(lambda: visits.suspended[0].client._eof)  # the daemon has read its FIN
        reset(sock)
        served.until(lambda: served.daemon.connections == 0)
        assert visits.ends == {name: [Termination.READ_ERROR]}
