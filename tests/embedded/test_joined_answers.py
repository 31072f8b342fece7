"""Answers to pipelined requests go out together where nobody is told of each, and never later than they must."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from embedded.serving import GET, Setup, running
from quiesce import Connection, Daemon, Mode, Poller, Request, Response, Stage, Termination
from quiesce.worker.net import answering
from wire.serving import read_reply

OK = Response(b"ok\n")
OTHER = b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n"
A_THREAD_EACH = Setup(Mode.THREAD_PER_CONNECTION, Poller.POLL)
Serve = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "AT_ONCE_NS", 1 << 62)  # however slow this machine is


class Bench:
    """A daemon that the test turns, with one client: all that was sent is there when it reads."""

    def __init__(self, *handler: Any, **options: Any) -> None:
        self.daemon = Daemon(*handler, mode=Mode.EXTERNAL, listen=False, **options).start()
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.daemon.add_connection(theirs)
        self.calls: Counter[str] = Counter()

    def turn(self, requests: bytes) -> int:
        """Serve them; how often was something sent?"""
        self.sock.sendall(requests)
        before = self.calls["socket.send"]
        sys.setprofile(self._on_event)
        try:
            self.daemon.run()
        finally:
            sys.setprofile(None)
        return self.calls["socket.send"] - before

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            self.calls[getattr(arg, "__qualname__", "")] += 1

    def replies(self, count: int) -> list[bytes]:
        bodies, rest = [], b""
        for _ in range(count):
            reply = read_reply(self.sock, before=rest)
            bodies.append(reply.body)
            rest = reply.rest
        assert rest == b""
        return bodies

    def close(self) -> None:
        self.sock.close()
        self.daemon.stop()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*handler: Any, **options: Any) -> Bench:
        made.append(Bench(*handler, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def told(*nothing: object) -> None:
    """A callback."""


def access(connection: Connection) -> Response | None:
    return OK if connection.stage is Stage.END else None


def test_sixteen_answers_are_one_send(bench: Callable[..., Bench]) -> None:
    for options in ({"handler": lambda request: OK}, {"access_handler": access}):
        one = bench(**options)
        assert one.turn(GET * 16) == 1
        assert one.replies(16) == [b"ok\n"] * 16


def test_an_answer_is_told_to_have_been_sent_when_it_has_been(bench: Callable[..., Bench]) -> None:
    """Somebody waits for the end of each request: it comes before the next one is shown."""
    story: list[str] = []

    def handler(request: Request) -> Response:
        story.append("asked")
        return OK

    def ended(connection: Connection, state: object, why: Termination) -> None:
        assert why is Termination.COMPLETED_OK and connection.info.status == 200
        sent.append(connection.client.sent)
        story.append("ended")

    sent: list[int] = []
    one = bench(handler, on_completed=ended)
    assert one.turn(GET * 3) == 3
    assert story == ["asked", "ended"] * 3
    assert one.replies(3) == [b"ok\n"] * 3
    assert sent == [sent[0], 2 * sent[0], 3 * sent[0]]


def test_a_response_that_is_counted_is_released_when_it_was_sent(bench: Callable[..., Bench]) -> None:
    freed: list[int] = []

    def handler(request: Request) -> Response:
        response = Response.from_buffer(b"counted", free=lambda: freed.append(len(freed)))
        responses.append(response)
        return response

    responses: list[Response] = []
    one = bench(handler)
    assert one.turn(GET * 3) == 3
    assert [response.references for response in responses] == [1, 1, 1] and not freed
    for response in responses:
        response.close()
    assert freed == [0, 1, 2]


@pytest.mark.parametrize("kind", ["raises", "false", "stops", "reads on", "malformed", "aborts"])
def test_what_the_next_request_does_costs_nobody_its_answer(bench: Callable[..., Bench], kind: str) -> None:
    def handler(connection: Connection) -> Response | bool | None:
        if connection.stage is not Stage.END:
            return None
        if connection.request.path != "/other":
            return OK
        if kind == "false":
            return False
        if kind == "stops":
            one.daemon.stop()
        if kind == "aborts":
            return Response.from_reader(fails)
        if kind == "reads on":
            return Response.from_reader(lambda position, most: None if position else b"read\n")
        raise RuntimeError

    def fails(position: int, most: int) -> bytes:
        raise OSError("this reader fails")

    one = bench(access_handler=handler)
    one.turn(GET + (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n" if kind == "malformed" else OTHER))
    first = read_reply(one.sock)
    assert (first.status, first.body) == (200, b"ok\n")
    if kind in ("raises", "malformed", "reads on"):
        status = {"raises": 500, "malformed": 400, "reads on": 200}[kind]
        assert read_reply(one.sock, before=first.rest).status == status


def test_an_answer_does_not_wait_for_a_suspended_request(bench: Callable[..., Bench]) -> None:
    parked: list[Connection] = []

    def handler(connection: Connection) -> Response | None:
        if connection.request.path != "/other" or connection.state:
            return access(connection)
        connection.state = True
        parked.append(connection)
        connection.suspend()
        return None

    one = bench(access_handler=handler, allow_suspend=True)
    one.turn(GET + OTHER)
    assert one.replies(1) == [b"ok\n"]
    parked[0].resume()
    for _ in range(3):
        one.daemon.run()
    assert one.replies(1) == [b"ok\n"]


def test_nor_for_a_handler_that_may_block() -> None:
    """With a thread for each client it may: it waits here for what the client does with the first answer."""
    has_it, waits = socket.socketpair()

    def handler(request: Request) -> Response:
        if request.path == "/other":
            waits.settimeout(10)
            assert waits.recv(1)
        return OK

    with has_it, waits, running(A_THREAD_EACH, handler) as served, served.connect() as sock:
        sock.sendall(GET + OTHER)
        rest = read_reply(sock).rest
        has_it.send(b"x")
        assert read_reply(sock, before=rest).status == 200


def test_a_handler_s_answer_has_a_reference_while_it_is_on_its_way(bench: Callable[..., Bench]) -> None:
    """Also where nobody is told of the connection."""
    large = Response(b"x" * 4_000_000)
    one = bench(lambda request: large)
    one.turn(GET)
    assert large.references == 2
    large.close()
    assert large.references == 1
    one.sock.settimeout(0)
    size = 0
    while size < 4_000_000:
        size += len(one.sock.recv(1 << 20))
        one.daemon.run()
    assert large.references == 0
    one.sock.settimeout(10)
    one.turn(GET)
    assert read_reply(one.sock).status == 500  # nobody has it any more
