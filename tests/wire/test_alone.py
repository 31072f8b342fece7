"""The short way of an inline connection (net/alone.py) answers, counts and ends as the general one does."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quiesce import Response
from quiesce.shared.scoreboard import SLOT_FIELDS, Field
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.net.alone import Alone
from quiesce.worker.net.counters import IN_REQUEST_SINCE_NS, Counters, TurnCounters
from quiesce.worker.net.direct import Direct
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.stream import Connection
from wire.serving import StillLoop

BIG = bytes(2 << 20)  # more than a socket takes at once
HELLO = Response(b"hello")
REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",  # twice as often, so that it is known
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /parts HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nBad header\r\n\r\n",
)
HELLO_GET = REQUESTS[0]
SIZE = len(HELLO_GET)
ONE_BY_ONE = [number * SIZE for number in range(1, 6)]
_ZEROS = re.compile(rb"\0{9,}")
_DATE = re.compile(rb"Date: [^\r]*\r\n")


def _body(path: str) -> Any:
    if path == "/raise":
        raise ValueError("for the test")
    return {"/big": BIG, "/parts": [b"a", b"bc"], "/none": b""}.get(path, b"hello")


def _native(request: Any) -> Response:
    path = request.path
    if path == "/":
        return HELLO
    return Response(
        _body(path),
        204 if path == "/none" else 200,
        {"Connection": "close"} if path == "/last" else None,
    )


def _wsgi(environ: Any, start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    body = _body(path)
    start_response(
        "204 No Content" if path == "/none" else "200 OK",
        [("Connection", "close")] if path == "/last" else [],
    )
    return body if isinstance(body, list) else [body]


class Early:
    """Answers at the head, whatever is still to come."""

    interface, streams_body, blocking = "native", True, True

    def handle(self, exchange: Exchange) -> None:
        exchange.respond(HELLO)


APPS: dict[str, Callable[[], Any]] = {
    "early": Early,
    "native": lambda: NativeApp(_native),
    "wsgi": lambda: WsgiApp(_wsgi),
}


class Played:
    """One connection of one kind, whose loop is the test."""

    def __init__(self, kind: type[Connection], app: Any) -> None:
        self.loop = StillLoop()
        self.loop.complain = lambda what, exc=None: None
        self.slot = memoryview(bytearray(8 * SLOT_FIELDS)).cast("Q")
        self.daemon = Daemon(app, self.loop, slot=self.slot, limits=Limits(), connect=kind)  # type: ignore[arg-type]
        self.client, server = socket.socketpair()
        self.client.setblocking(False)
        self.fd = server.fileno()
        self.connection = self.daemon.add_connection(server, peer=("192.0.2.1", 5), local=("192.0.2.2", 80))
        self.said: list[bytes] = []
        for request in REQUESTS[:-2] * 3:  # so that each of them has come before, also what ends a connection
            self.daemon.parser.parse(request[: request.find(b"\r\n\r\n") + 4])

    def play(self, step: bytes | str) -> None:
        if step == "close":
            self.daemon.closing = True
        elif step == "fin":
            self.client.shutdown(socket.SHUT_WR)
        elif isinstance(step, bytes):
            try:
                self.client.send(step)
            except OSError:
                return  # it has closed, or reads no more
        self.turn()

    def turn(self) -> None:
        """Until nothing moves any more; the client reads all."""
        quiet = 0
        for _ in range(1000):
            callback = self.loop.callbacks.get(self.fd)
            if callback is not None:
                callback(1)
            callback = self.loop.callbacks.get(self.fd)
            if callback is not None and self.connection.pending:
                callback(4)
            self.loop.turn()
            quiet = 0 if self.read() else quiet + 1
            if quiet == 4:
                return

    def read(self) -> bool:
        data = b""
        while True:
            try:
                piece = self.client.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                piece = b""
            if not piece:
                if self.said[-1:] != [b"EOF"]:
                    self.said.append(b"EOF")
                break
            data += piece
        if data:
            self.said.append(data)
        return bool(data)

    def result(self) -> object:
        connection = self.connection
        slot = self.slot
        fields = [int(slot[field]) for field in Field if field not in (Field.TURN_NS, Field.ACCEPTING)]
        ended = self.said[-1:] == [b"EOF"]
        said = b"".join(self.said[:-1] if ended else self.said)
        left = (connection.state, connection.busy, connection.served, connection.exchange, connection._input)
        said = _ZEROS.sub(lambda zeros: b"(%d zeros)" % len(zeros[0]), _DATE.sub(b"", said))
        return said, ended, fields, left, connection.sent, connection._reported

    def close(self) -> None:
        self.client.close()
        self.daemon.close()


def _pieces(requests: list[bytes], cuts: list[int], said: str) -> Iterator[bytes | str]:
    data = b"".join(requests)
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    for number, (a, b) in enumerate(zip([0, *at], [*at, len(data)], strict=True)):
        if data[a:b]:
            yield data[a:b]
        if said and number == len(at) // 2:
            yield said


@pytest.mark.parametrize("app", APPS)
@given(
    st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6),
    st.lists(st.integers(0, 2000), max_size=5),
    st.sampled_from(("", "", "close", "fin")),
)
@example([HELLO_GET] * 6, ONE_BY_ONE, "")  # the usual case itself
@example([HELLO_GET] * 6, [2 * SIZE, 4 * SIZE], "")
@example([HELLO_GET] * 6, ONE_BY_ONE, "close")
@example([HELLO_GET] * 6, ONE_BY_ONE, "fin")
@example([REQUESTS[6]] * 2, [len(REQUESTS[6]) - 3, 2 * len(REQUESTS[6]) - 1], "")
@example([*[HELLO_GET] * 4, b"\r\n", *[HELLO_GET] * 2], [*ONE_BY_ONE[:4], 4 * SIZE + 2, 5 * SIZE + 2], "")
@example([*[HELLO_GET] * 3, *[REQUESTS[10]] * 4, HELLO_GET], [*ONE_BY_ONE, 4 * SIZE + 3, 5 * SIZE + 6], "")
@settings(max_examples=60, deadline=None)
def test_both_ways_lead_to_the_same(app: str, requests: list[bytes], cuts: list[int], said: str) -> None:
    _compare(app, requests, cuts, said)


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("request_", sorted(set(REQUESTS)))
def test_both_ways_lead_to_the_same_for_what_came_before(app: str, request_: bytes) -> None:
    """The first one of a connection goes the long way, whatever it is."""
    ends = [SIZE + number * len(request_) for number in range(4)]
    _compare(app, [HELLO_GET, *[request_] * 4], ends, "")
    head = request_.find(b"\r\n\r\n") + 4
    if 4 <= head < len(request_):  # and then comes its body
        _compare(app, [HELLO_GET, *[request_] * 4], [*ends, *(end + head for end in ends)], "")


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("request_", sorted(set(REQUESTS)))
def test_both_ways_lead_to_the_same_in_a_burst(app: str, request_: bytes) -> None:
    for said in ("", "close", "fin"):
        _compare(app, [HELLO_GET] * 3 + [request_, HELLO_GET] * 2, [SIZE], said)
    _compare(app, [HELLO_GET] * 70 + [request_], [SIZE], "")
    several = 3 if b"/big" in request_ else 70  # more than are held
    _compare(app, [HELLO_GET, *[request_] * several, HELLO_GET[:9]], [SIZE], "")


def _compare(app: str, requests: list[bytes], cuts: list[int], said: str) -> None:
    results = []
    for kind in (Connection, Alone, *([Direct] if app == "native" else [])):
        played = Played(kind, APPS[app]())
        try:
            for step in _pieces(requests, cuts, said):
                played.play(step)
            results.append(played.result())
        finally:
            played.close()
    assert all(result == results[0] for result in results), results


def _log(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("app", "options", "kind"),
    [
        (NativeApp(_native), {}, Direct),
        (NativeApp(_native), {"access_log": _log}, Alone),
        (NativeApp(_native), {"ready_path": "/ready"}, Alone),
        (NativeApp(_native), {"threads": 2}, Connection),
        (WsgiApp(_wsgi), {}, Alone),
        (WsgiApp(_wsgi), {"threads": 2}, Connection),
    ],
)
def test_the_short_ways_are_for_an_application_that_runs_in_the_loop(
    app: Any, options: Any, kind: type
) -> None:
    loop = EpollLoop()
    daemon = Daemon(app, loop, **options)
    try:
        assert kind in daemon.connect.__bases__  # type: ignore[attr-defined]  # it is a watched one
    finally:
        daemon.close()
        loop.close()


STATUSES = (0, 101, 200, 302, 404, 503, 999)
CALLS = st.one_of(
    st.tuples(st.just("request"), st.integers(0, 99), st.booleans()),
    st.tuples(st.just("response"), st.sampled_from(STATUSES), st.integers(0, 99), st.sampled_from((0, -1))),
    st.tuples(st.just("connection"), st.sampled_from((1, -1)), st.sampled_from((0, 1))),
    st.tuples(st.just("exchange"), st.integers(0, 99), st.sampled_from(STATUSES), st.integers(0, 99)),
    st.tuples(st.just("traffic"), st.integers(0, 99), st.integers(0, 99)),
    st.tuples(st.just("count"), st.just(int(Field.ERRORS))),
    st.tuples(st.just("turned")),
)  # fmt: skip


@given(st.lists(CALLS, max_size=20))
def test_when_a_turn_is_over_the_slot_says_what_it_would_have_said_at_once(calls: list[Any]) -> None:
    plain, late = Counters(None), TurnCounters(None)
    for counters in (plain, late):
        counters.connection(100, 50)  # nothing gets below 0 from here
    for name, *arguments in [*calls, ("turned",)]:
        if name == "turned":
            plain.slot[IN_REQUEST_SINCE_NS] = 0
            late.turned()
            assert plain.slot.tolist() == late.slot.tolist()
            continue
        for counters in (plain, late):
            getattr(counters, name)(*arguments)
        assert (plain.open, plain.busy) == (late.open, late.busy)


@pytest.mark.parametrize("size", (100, 16 * 1024, 16 * 1024 + 1, 200_000))
def test_an_answer_that_waits_for_the_next_one_waits_with_its_body(size: int) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [body]

    body = bytes(size)
    for _ in range(20):  # it waits only where it took less than a millisecond
        played = Played(Alone, WsgiApp(application))
        played.play(HELLO_GET * 3)
        said = b"".join(played.said)
        played.close()
        assert (said.count(b"HTTP/1.1 200 OK"), said.count(b"\0")) == (3, 3 * size)
