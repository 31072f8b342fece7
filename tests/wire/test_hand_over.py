"""Live connections go from one daemon to another: what moves, what stays, in which order, and what a failure costs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.gate import Gate
from quiesce import Response
from quiesce.shared.fdpass import send_fds
from quiesce.shared.scoreboard import Field
from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.connection import State
from quiesce.worker.core.lane_record import MAX_INPUT_BYTES, Record, decode, packet, write
from quiesce.worker.core.limits import Limits
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.loops.base import ERROR, HANGUP
from quiesce.worker.net import lane_writer, room
from quiesce.worker.net.lane_reader import Lanes
from quiesce.worker.net.lane_writer import Target
from wire.serving import PATIENCE_S, Served, StillLoop, read_reply, read_to_end

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WAIT = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"
BIG = b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n"
BIG_BYTES = 3_000_000
KINDS = ("native", "wsgi", "asgi")


def encode(records: list[Record]) -> bytes:
    return packet([write(record) for record in records])


def make(kind: str, name: bytes, gate: Gate, **options: Any) -> Served:
    """A daemon whose application answers with its name; its /wait lies behind the gate."""

    def body(path: str) -> bytes:
        if path == "/wait":
            gate.wait()
        return bytes(BIG_BYTES) if path == "/big" else name

    if kind == "native":
        return Served(NativeApp(lambda request: Response(body(request.path))), **options)
    if kind == "wsgi":

        def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
            answer = body(environ["PATH_INFO"])
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]

        return Served(WsgiApp(wsgi), **({"threads": 4} | options))

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        answer = await asyncio.to_thread(body, scope["path"])
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    loop = AsyncioLoop()
    return Served(AsgiApp(asgi, loop), loop=loop, **options)


class Moved:
    """What a hand-over said when it had moved what it could."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._figures: list[tuple[int, int]] = []

    def __call__(self, moved: int, left: int) -> None:
        self._figures.append((moved, left))
        self._said.set()

    def figures(self) -> tuple[int, int]:
        assert self._said.wait(PATIENCE_S), "it never said that all have moved"
        (figures,) = self._figures
        return figures

    @property
    def is_said(self) -> bool:
        return self._said.is_set()


class Stage:
    """An old daemon and a new one, and the lane between them."""

    def __init__(self, kind: str = "native", *, reads: bool = True, new: Any = None, **options: Any) -> None:
        self.gate = Gate()
        self.old = make(kind, b"old", self.gate, **options)
        self.new = make(kind, b"new", self.gate, **(options if new is None else options | new))
        self.reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if reads:
            self.read()

    def read(self) -> None:
        self.new.do(lambda: self.new.daemon.add_lane("new", self.reader.dup()))

    def target(self, kind: type[Target] = Target, **options: Any) -> Target:
        return kind("new", self.writer.dup(), os.dup(self.reader.fileno()), **options)

    def hand_over(self, target: Target | None = None) -> Moved:
        moved = Moved()
        target = target or self.target()

        def begin() -> None:
            self.old.daemon.quiesce()
            self.old.daemon.hand_over_to(target, moved)

        self.old.loop.call_soon_threadsafe(begin)
        return moved

    def idle(self, count: int = 1) -> list[socket.socket]:
        """Clients that were answered once."""
        clients = [self.old.connect() for _ in range(count)]
        for client in clients:
            assert ask(client) == b"old"
        return clients

    def arrived(self, count: int) -> None:
        self.new.until(lambda: self.new.daemon.open == count)

    def end_lane(self) -> None:
        self.writer.shutdown(socket.SHUT_WR)

    def field(self, side: Served, field: Field) -> int:
        return side.do(lambda: side.daemon.counters.slot[field])

    def close(self) -> None:
        self.gate.open()
        self.old.close()
        self.new.close()
        self.reader.close()
        self.writer.close()


@contextlib.contextmanager
def staged(kind: str = "native", **options: Any) -> Iterator[Stage]:
    stage = Stage(kind, **options)
    try:
        yield stage
    finally:
        stage.close()


def ask(client: socket.socket, request: bytes = GET) -> bytes:
    client.sendall(request)
    reply = read_reply(client)
    assert reply.get("connection") is None
    return reply.body


def read_bodies(client: socket.socket, count: int) -> tuple[list[bytes], bytes]:
    """So many answers, and what was read behind them."""
    rest, bodies = b"", []
    for _ in range(count):
        reply = read_reply(client, before=rest)
        rest = reply.rest
        bodies.append(reply.body)
    return bodies, rest


def ports(clients: Sequence[socket.socket]) -> set[tuple[str, int]]:
    return {client.getsockname() for client in clients}


# -- what moves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_connection_moves_and_is_answered_there_on_the_same_socket(kind: str) -> None:
    with staged(kind) as stage:
        clients = stage.idle(3)
        assert stage.hand_over().figures() == (3, 0)
        for client in clients:
            for _ in range(3):
                assert ask(client) == b"new"
        assert stage.old.do(lambda: stage.old.daemon.open) == 0
        peers = stage.new.do(lambda: {c.peer for c in stage.new.daemon.roster.all})
        assert peers == ports(clients)
        assert (stage.field(stage.old, Field.HANDED_OUT), stage.field(stage.new, Field.HANDED_IN)) == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_one_moves_when_it_falls_idle(kind: str) -> None:
    with staged(kind) as stage, stage.old.connect() as client:
        client.sendall(WAIT)
        stage.gate.wait_entered()
        moved = stage.hand_over()
        if kind != "native":  # there the loop's own thread is in the handler
            assert moved.figures() == (0, 1)
        stage.gate.open()
        reply = read_reply(client)
        assert (reply.body, reply.get("connection")) == (b"old", None)
        stage.arrived(1)
        assert ask(client) == b"new"


@pytest.mark.parametrize("kind", KINDS)
def test_many_that_are_asked_all_the_time_move_and_each_request_is_answered_once(kind: str) -> None:
    with staged(kind) as stage:
        clients = stage.idle(20)
        answers: list[list[bytes]] = [[] for _ in clients]
        rounds = 60

        def work(client: socket.socket, found: list[bytes]) -> None:
            for _ in range(rounds):
                found.append(ask(client))

        threads = [threading.Thread(target=work, args=pair) for pair in zip(clients, answers, strict=True)]
        for thread in threads:
            thread.start()
        stage.hand_over()
        for thread in threads:
            thread.join(PATIENCE_S)
        for found in answers:
            count = found.count(b"old")
            assert found == [b"old"] * count + [b"new"] * (rounds - count)
        stage.arrived(len(clients))
        assert {ask(client) for client in clients} == {b"new"}


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_the_next_request_of_a_busy_one_is_answered_there_however_quick_it_is(kind: str) -> None:
    """It is in the socket before the loop hears that the one before it was answered by a thread."""
    with staged(kind) as stage, stage.old.connect() as client:
        client.sendall(WAIT)
        stage.gate.wait_entered()
        assert stage.hand_over().figures() == (0, 1)

        def hold_the_loop() -> None:
            stage.gate.open()
            assert read_reply(client).body == b"old"
            client.sendall(GET)

        if kind == "wsgi":
            stage.old.do(hold_the_loop)
        else:
            hold_the_loop()
        assert read_reply(client).body == b"new"
        assert stage.field(stage.old, Field.REQUESTS) == 1


@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_half_a_head_travels(byte_by_byte: bool) -> None:
    with staged() as stage, stage.old.connect() as client:
        client.sendall(GET[:17])
        stage.old.until(lambda: stage.old.daemon.busy == 1)
        assert stage.hand_over().figures() == (1, 0)
        stage.arrived(1)
        assert stage.new.do(lambda: stage.new.daemon.busy) == 1
        for i in range(17, len(GET)) if byte_by_byte else ():
            client.sendall(GET[i : i + 1])
        if not byte_by_byte:
            client.sendall(GET[17:])
        assert read_reply(client).body == b"new"
        assert stage.old.do(lambda: stage.old.daemon.busy) == 0


def test_half_a_head_that_arrived_is_judged_like_any_other() -> None:
    with staged() as stage, stage.old.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        stage.old.until(lambda: stage.old.daemon.busy == 1)
        stage.hand_over()
        stage.arrived(1)
        client.sendall(b"\0\r\n")
        assert read_reply(client).status == 400


def test_one_that_has_said_nothing_moves() -> None:
    with staged() as stage, stage.old.connect() as client:
        stage.old.until(lambda: stage.old.daemon.open == 1)
        assert stage.hand_over().figures() == (1, 0)
        stage.arrived(1)
        (state,) = stage.new.do(lambda: [c.state for c in stage.new.daemon.roster.all])
        assert state is State.FRESH
        assert ask(client) == b"new"


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_what_is_pipelined_behind_an_answer_is_answered_there_in_order_and_once(kind: str) -> None:
    def numbered(number: int) -> bytes:
        return b"GET /?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number

    with staged(kind) as stage, stage.old.connect() as client:
        client.sendall(WAIT + b"".join(map(numbered, range(50))) + GET[:10])
        stage.gate.wait_entered()
        stage.hand_over().figures()
        stage.gate.open()
        bodies, rest = read_bodies(client, 51)
        assert bodies == [b"old"] + [b"new"] * 50
        client.sendall(GET[10:])
        assert read_reply(client, before=rest).body == b"new"
        assert stage.field(stage.old, Field.REQUESTS) == 1
        assert stage.field(stage.new, Field.REQUESTS) == 51


def test_what_is_pipelined_behind_an_answer_given_inline_is_not_parsed_here_any_more() -> None:
    """The order comes in the middle of a burst that the loop works off without a turn in between."""
    with staged() as stage, stage.old.connect() as client:
        target = stage.target()
        answer = stage.old.daemon.app.handle

        def handle(exchange: Any) -> None:
            if exchange.request.path == "/wait":
                stage.old.daemon.hand_over_to(target)
                stage.gate.open()
            answer(exchange)

        stage.old.daemon.app.handle = handle  # type: ignore[method-assign]
        client.sendall(GET * 3 + WAIT + GET * 30 + GET[:9])
        bodies, rest = read_bodies(client, 34)
        assert bodies == [b"old"] * 4 + [b"new"] * 30
        client.sendall(GET[9:])
        assert read_reply(client, before=rest).body == b"new"


def test_nor_is_what_is_behind_one_that_a_handler_was_called_for_directly() -> None:
    with staged() as stage, stage.old.connect() as client:
        for _ in range(4):  # so that it is known
            assert ask(client) == b"old"
        target = stage.target()
        app: Any = stage.old.daemon.app
        handler, called = app.handler, []

        def fourth_hands_over(request: Any) -> Response:
            called.append(request)
            if len(called) == 4:
                stage.old.daemon.hand_over_to(target)
            return handler(request)  # type: ignore[no-any-return]

        app.handler = fourth_hands_over
        client.sendall(GET * 34 + GET[:9])
        bodies, rest = read_bodies(client, 34)
        assert bodies == [b"old"] * 4 + [b"new"] * 30
        client.sendall(GET[9:])
        assert read_reply(client, before=rest).body == b"new"


def test_an_empty_line_in_two_packets_is_no_request_and_does_not_live_longer_by_it() -> None:
    with staged(limits=Limits(header_timeout=0.2)) as stage:
        (client,) = stage.idle()
        (connection,) = stage.old.do(lambda: list(stage.old.daemon.roster.all))
        deadline = connection._deadline
        client.sendall(b"\r")
        stage.old.until(lambda: connection.state is State.HEAD)
        client.sendall(b"\n")
        stage.old.until(lambda: connection.state is State.IDLE)
        assert stage.old.do(lambda: (stage.old.daemon.busy, connection._input)) == (0, b"")
        assert abs(connection._deadline - deadline) < 0.001
        time.sleep(0.3)  # the time that a head would have
        assert ask(client) == b"old", "nobody was owed a 408"


def test_the_end_of_who_had_its_descriptor_before_is_not_its_own() -> None:
    """In one turn a connection leaves, whose client is reset then, and another one gets its number."""
    with staged() as stage:
        (client,) = stage.idle()
        (connection,) = stage.old.do(lambda: list(stage.old.daemon.roster.all))
        stage.old.do(lambda: connection.ready(ERROR | HANGUP))
        assert ask(client) == b"old"


# -- what stays ----------------------------------------------------------------------------------


def test_more_input_than_travels_is_worked_off_first() -> None:
    """In a packet it would not fit; what is left when it has shrunk goes on there."""
    request = b"GET /?%s HTTP/1.1\r\nHost: a\r\n\r\n" % bytes(48 for _ in range(1000))
    count = 2 * MAX_INPUT_BYTES // len(request) + 5
    with staged("wsgi") as stage, stage.old.connect() as client:
        client.sendall(WAIT)
        stage.gate.wait_entered()
        client.sendall(request * count)
        (connection,) = stage.old.do(lambda: list(stage.old.daemon.roster.all))
        stage.old.until(lambda: len(connection._input) == count * len(request))
        stage.hand_over()
        stage.old.until(lambda: stage.old.daemon.moving is not None)
        stage.gate.open()
        bodies, _ = read_bodies(client, count + 1)
        here = bodies.count(b"old")
        assert bodies == [b"old"] * here + [b"new"] * (count + 1 - here)
        assert here - 1 >= count - MAX_INPUT_BYTES // len(request)
        assert ask(client) == b"new"


def test_a_large_half_head_stays_and_its_request_is_answered_here() -> None:
    limits = Limits(header_bytes=64 * 1024)
    with staged(limits=limits) as stage, stage.old.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + bytes(97 for _ in range(MAX_INPUT_BYTES)))
        (connection,) = stage.old.do(lambda: list(stage.old.daemon.roster.all)) or (None,)
        stage.old.until(lambda: len(connection._input) > MAX_INPUT_BYTES)
        assert stage.hand_over().figures() == (0, 1)
        client.sendall(b"\r\n\r\n")
        assert read_reply(client).body == b"old"
        stage.arrived(1)
        assert ask(client) == b"new"


def test_a_half_read_body_stays_until_its_answer() -> None:
    with staged() as stage, stage.old.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        stage.old.until(lambda: stage.old.daemon.busy == 1)
        assert stage.hand_over().figures() == (0, 1)
        stage.old.until(lambda: stage.old.daemon.counters.slot[Field.CONN_BODY] == 1)
        client.sendall(b"67890")
        assert read_reply(client).body == b"old"
        stage.arrived(1)
        assert ask(client) == b"new"
        stage.old.until(lambda: stage.old.daemon.counters.slot[Field.CONN_BODY] == 0)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_a_connection_that_ends_with_its_answer_ends_here(request_: bytes) -> None:
    with staged() as stage, stage.old.connect() as client:
        client.sendall(request_)
        data = b""
        while b"old" not in data:
            data += client.recv(1000)
        stage.old.until(lambda: {c.state for c in stage.old.daemon.roster.all} == {State.LINGERING})
        assert stage.hand_over().figures() == (0, 1)
        stage.old.until(lambda: stage.old.daemon.counters.slot[Field.CONN_CLOSING] == 1)
        assert client.recv(1) == b""
        client.close()
        stage.old.until(lambda: stage.old.daemon.open == 0)
        assert stage.new.do(lambda: stage.new.daemon.open) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_out_to_its_last_byte_before_the_connection_moves(kind: str) -> None:
    with staged(kind) as stage, stage.old.connect(receive_buffer=4096) as client:
        client.sendall(BIG)
        stage.old.until(lambda: State.SENDING in {c.state for c in stage.old.daemon.roster.all})
        assert stage.hand_over().figures() == (0, 1)
        reply = read_reply(client)
        assert len(reply.body) == BIG_BYTES
        stage.arrived(1)
        assert ask(client) == b"new"


def test_a_probe_does_not_move() -> None:
    with staged() as stage:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        stage.old.do(lambda: stage.old.daemon.add_connection(theirs, peer=None, local=None, probe=True))
        assert stage.hand_over().figures() == (0, 0)
        assert ask(ours) == b"old"
        ours.close()


# -- order ---------------------------------------------------------------------------------------


class Noting(Target):
    """Notes when it sends."""

    notes: list[str]

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        self.notes.extend(["send"] * len(fds))
        super().send(data, fds)
        for fd in fds:
            os.fstat(fd)  # none is closed before the kernel has them


def test_it_is_not_watched_any_more_when_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with staged() as stage:
        clients = stage.idle(3)
        notes: list[str] = []
        unwatch = stage.old.loop.unwatch
        listener = stage.old.do(lambda: stage.old.daemon.descriptors()[0])

        def noted(fd: int) -> None:
            if fd != listener:
                notes.append("unwatch")
            unwatch(fd)

        monkeypatch.setattr(stage.old.loop, "unwatch", noted)
        target = stage.target(Noting)
        target.notes = notes  # type: ignore[attr-defined]
        assert stage.hand_over(target).figures() == (3, 0)
        assert notes == ["unwatch"] * 3 + ["send"] * 3
        assert {ask(client) for client in clients} == {b"new"}


def test_nothing_is_said_to_the_client_whose_copy_is_closed() -> None:
    """No shutdown, no reset: with bytes unread in the socket a close that was more than ours would be one."""
    with staged(reads=False) as stage:
        (client,) = stage.idle()
        assert stage.hand_over().figures() == (1, 0)
        client.sendall(GET)  # lies in the socket's own queue
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE_S)
        stage.read()
        assert read_reply(client).body == b"new"


# -- times and counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "fresh", "head"])
def test_times_go_on_by_the_limits_of_who_takes_it(state: str) -> None:
    old, new = Limits(idle_timeout=50, header_timeout=30), Limits(idle_timeout=90, header_timeout=70)
    with staged(limits=old, new={"limits": new}) as stage, stage.old.connect() as client:
        if state == "idle":
            ask(client)
        elif state == "head":
            client.sendall(GET[:9])
            stage.old.until(lambda: stage.old.daemon.busy == 1)
        stage.old.until(lambda: stage.old.daemon.open == 1)
        (before,) = stage.old.do(lambda: list(stage.old.daemon.roster.all))
        began = before._deadline - (50 if state == "idle" else 30)
        assert 0 <= time.monotonic() - began < PATIENCE_S
        time.sleep(0.05)
        stage.hand_over()
        stage.arrived(1)
        (after,) = stage.new.do(lambda: list(stage.new.daemon.roster.all))
        assert after._deadline - began == pytest.approx(90 if state == "idle" else 70, abs=0.001)
        assert (after.state.value, after.served, after.listener) == (state, int(state == "idle"), "http")


@pytest.mark.slow
def test_an_idle_one_that_was_handed_over_is_closed_when_its_time_is_over() -> None:
    with staged(limits=Limits(idle_timeout=2.0)) as stage:
        first, second = stage.idle(2)
        began = time.monotonic()
        stage.hand_over()
        stage.arrived(2)
        assert read_to_end(first) == b"" and read_to_end(second) == b""
        assert 1.5 < time.monotonic() - began < PATIENCE_S


@pytest.mark.slow
def test_connections_of_one_packet_each_keep_their_own_time() -> None:
    with staged(limits=Limits(idle_timeout=1.5, header_timeout=0.5)) as stage:
        first, second = stage.idle(2)
        stage.hand_over()
        stage.arrived(2)
        second.sendall(GET[:5])  # this one needs to be looked at earlier
        assert read_reply(second).status == 408
        for _ in range(8):  # by now past the time that it came with
            assert ask(first) == b"new"
            time.sleep(0.25)
        assert read_to_end(first) == b""


def test_a_request_that_came_while_the_time_ran_out_in_the_lane_is_answered() -> None:
    with staged(reads=False, limits=Limits(idle_timeout=0.3)) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        client.sendall(GET)
        time.sleep(0.4)
        stage.read()
        assert read_reply(client).body == b"new"


def test_limits_turn_nobody_away_who_was_let_in_and_count_all() -> None:
    limits = Limits(connections=1, connections_per_ip=2)
    with staged(new={"limits": limits}) as stage:
        clients = stage.idle(4)
        stage.hand_over()
        stage.arrived(4)
        assert {ask(client) for client in clients} == {b"new"}
        assert stage.new.do(lambda: stage.new.daemon.roster._by_ip) == {"127.0.0.1": 4}
        with stage.new.connect() as another:
            assert read_reply(another).status == 503
        for client in clients:
            client.close()
        stage.arrived(0)
        assert stage.new.do(lambda: stage.new.daemon.roster._by_ip) == {}


def test_addresses_are_uncounted_where_they_left() -> None:
    with staged(limits=Limits(connections_per_ip=5)) as stage:
        clients = stage.idle(3)
        stage.hand_over().figures()
        assert stage.old.do(lambda: stage.old.daemon.roster._by_ip) == {}
        del clients


# -- when it does not work -----------------------------------------------------------------------


class Refusing(Target):
    """Fails so many times, with this error."""

    error = errno.EAGAIN
    times = 0
    tried = 0

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        self.tried += 1
        if self.tried <= self.times:
            raise OSError(self.error, os.strerror(self.error))
        super().send(data, fds)


@pytest.mark.parametrize(
    "error", [errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENOMEM]
)
def test_what_cannot_go_stays_is_served_and_tries_again(error: int) -> None:
    with staged() as stage:
        clients = stage.idle(3)
        target = stage.target(Refusing)
        target.error, target.times = error, 10**9  # type: ignore[attr-defined]
        moved = stage.hand_over(target)
        stage.old.until(lambda: target.tried >= 2)  # type: ignore[attr-defined]
        for client in clients:
            assert ask(client) == b"old"
        assert not moved.is_said
        target.times = 0  # type: ignore[attr-defined]
        assert moved.figures() == (3, 0)
        assert {ask(client) for client in clients} == {b"new"}


def test_one_that_fell_idle_while_nobody_could_go_is_not_forgotten() -> None:
    """Nobody is told of it then, so all are looked at again."""
    with staged("wsgi") as stage, stage.old.connect() as client:
        client.sendall(WAIT)
        stage.gate.wait_entered()
        others = stage.idle(2)
        target = stage.target(Refusing)
        target.times = 10**9  # type: ignore[attr-defined]
        moved = stage.hand_over(target)
        stage.old.until(lambda: target.tried > 0 and stage.old.daemon.moving is None)  # type: ignore[attr-defined]
        stage.gate.open()
        assert read_reply(client).body == b"old"
        target.times = 0  # type: ignore[attr-defined]
        assert moved.figures() == (3, 0)
        assert {ask(one) for one in (client, *others)} == {b"new"}


def test_pipelined_input_of_one_that_cannot_go_is_answered_here() -> None:
    with staged("wsgi") as stage, stage.old.connect() as client:
        client.sendall(WAIT + GET * 20)
        stage.gate.wait_entered()
        target = stage.target(Refusing)
        target.times = 10**9  # type: ignore[attr-defined]
        stage.hand_over(target)
        stage.old.until(lambda: stage.old.daemon._mover.target is target)
        stage.gate.open()
        assert read_bodies(client, 21)[0] == [b"old"] * 21


def test_a_lane_that_is_full_is_a_lane_that_is_asked_again() -> None:
    with staged(reads=False) as stage:
        clients = stage.idle(40)
        target = stage.target(readers=20)  # two a packet
        stage.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        moved = stage.hand_over(target)
        stage.old.until(lambda: stage.old.daemon.moving is None and stage.old.daemon._mover.moved > 0)
        in_lane = stage.old.do(lambda: stage.old.daemon._mover.moved)
        assert 0 < in_lane < 40 and not moved.is_said
        stage.read()
        assert moved.figures() == (40, 0)
        assert {ask(client) for client in clients} == {b"new"}


def test_no_more_than_a_quarter_of_the_descriptor_limit_lies_in_a_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane_writer, "soft_limit", lambda: 40)
    with staged(reads=False) as stage:
        clients = stage.idle(25)
        moved = stage.hand_over()
        stage.old.until(lambda: stage.old.daemon._mover.moved >= 10)
        for _ in range(3):
            stage.old.do(lambda: None)
        probe = stage.target()
        assert (probe._lying(), probe.room()) == (10, 0)
        probe.close()
        stage.read()
        assert moved.figures() == (25, 0)
        assert {ask(client) for client in clients} == {b"new"}


def test_where_nobody_says_what_lies_in_a_lane_what_was_sent_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane_writer, "soft_limit", lambda: 16)
    with staged(reads=False) as stage:
        clients = stage.idle(6)
        target = Target("new", stage.writer.dup(), readers=3)
        moved = stage.hand_over(target)
        stage.old.until(lambda: stage.old.daemon._mover.moved == 4)
        for _ in range(3):
            stage.old.do(lambda: None)
        assert (target.room(), stage.old.do(lambda: stage.old.daemon._mover.moved)) == (0, 4)
        stage.read()
        assert moved.figures() == (6, 0)
        assert {ask(client) for client in clients} == {b"new"}


def test_each_reader_gets_its_share() -> None:
    with staged(reads=False) as stage:
        clients = stage.idle(10)
        stage.hand_over(stage.target(readers=3)).figures()
        sizes = []
        while True:
            try:
                data, ancillary, _, _ = stage.reader.recvmsg(70000, 4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            fds = struct.unpack(f"{len(ancillary[0][2]) // 4}i", ancillary[0][2])
            sizes.append(len(decode(data, len(fds))))
            for fd in fds:
                os.close(fd)
        assert sizes == [4, 4, 2]
        del clients


def test_an_older_reader_gets_what_it_can_read() -> None:
    with staged(reads=False) as stage:
        clients = stage.idle(1)
        stage.hand_over(stage.target(version=1)).figures()
        data = stage.reader.recv(70000, socket.MSG_PEEK)
        body = json.loads(data)
        assert (body["v"], len(body["c"]), len(body["c"][0])) == (1, 1, 7)
        stage.read()
        assert ask(clients[0]) == b"new"


def test_without_room_nothing_is_read_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = [20_000]
    monkeypatch.setattr(room, "soft_limit", lambda: limit[0])
    with staged() as stage:
        clients = stage.idle(3)
        limit[0] = stage.new.do(lambda: len(os.listdir("/proc/self/fd"))) + 5
        stage.hand_over().figures()
        target = stage.target()
        for _ in range(5):
            stage.new.do(lambda: None)
        assert (target._lying(), stage.new.do(lambda: stage.new.daemon.open)) == (3, 0)
        target.close()
        limit[0] = 20_000
        stage.arrived(3)
        assert {ask(client) for client in clients} == {b"new"}


def test_where_descriptors_are_few_packets_are_small_and_a_little_room_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a worker with 700 connections of 1,024 descriptors would leave those of its predecessor in the lane."""
    monkeypatch.setattr(lane_writer, "soft_limit", lambda: 1024)
    monkeypatch.setattr(room, "soft_limit", lambda: 1024)
    for hard, used, enough in ((1024, 900, True), (1024, 950, False), (4096, 900, False), (4096, 700, True)):
        monkeypatch.setattr(room, "hard_limit", lambda hard=hard: hard)
        monkeypatch.setattr(room, "_said_by_kernel", lambda used=used: used)
        assert room.Room().has_room() is enough, (hard, used)
    with staged(reads=False) as stage:
        target = stage.target()
        assert target.room() == 16
        target.close()


@pytest.mark.parametrize("says", [0, 5000])
def test_descriptors_are_counted_where_the_kernel_does_not_say(
    says: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_said_by_kernel", lambda: says)
    used = len(os.listdir("/proc/self/fd"))
    for limit, enough in ((used + 317 + 50, not says), (used, False), (20_000, True)):
        monkeypatch.setattr(room, "soft_limit", lambda limit=limit: limit)
        assert room.Room().has_room() is enough


def test_a_lane_that_has_ended_is_let_go_and_everybody_stays() -> None:
    with staged() as stage:
        clients = stage.idle(2)
        stage.end_lane()
        before = len(stage.old.do(stage.old.daemon.descriptors))
        assert stage.hand_over().figures() == (0, 2)
        assert {ask(client) for client in clients} == {b"old"}
        assert len(stage.old.do(stage.old.daemon.descriptors)) == before
        stage.new.until(lambda: stage.new.daemon._lanes.descriptors() == [])


def test_what_was_sent_before_the_end_is_read() -> None:
    with staged(reads=False) as stage:
        clients = stage.idle(3)
        stage.hand_over().figures()
        stage.end_lane()
        stage.read()
        assert {ask(client) for client in clients} == {b"new"}
        stage.new.until(lambda: stage.new.daemon._lanes.descriptors() == [])


def test_another_descriptor_of_a_lane_takes_the_place_of_the_one_that_we_have() -> None:
    with staged() as stage:
        (before,) = stage.new.do(stage.new.daemon._lanes.descriptors)
        stage.read()
        (after,) = stage.new.do(stage.new.daemon._lanes.descriptors)
        assert before != after
        with pytest.raises(OSError):
            os.fstat(before)
        (client,) = stage.idle()
        stage.hand_over().figures()
        assert ask(client) == b"new"


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("when", ["before", "in the lane"])
def test_a_client_that_is_gone_leaves_nothing_behind(how: str, when: str) -> None:
    def leave(client: socket.socket) -> None:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    with staged(reads=False) as stage:
        first, second = stage.idle(2)
        if when == "before":
            leave(first)
            moved = stage.hand_over()
        else:
            moved = stage.hand_over()
            moved.figures()
            leave(first)
        moved.figures()
        stage.read()
        assert ask(second) == b"new"
        stage.arrived(1)
        assert stage.old.do(lambda: stage.old.daemon.open) == 0


# -- quiesce, drain, resume, shed ----------------------------------------------------------------


def test_a_drain_with_somebody_to_hand_over_to_closes_nobody() -> None:
    with staged("wsgi") as stage:
        busy = stage.old.connect()
        busy.sendall(WAIT)
        stage.gate.wait_entered()
        idle = stage.idle(3)
        target, moved, drained = stage.target(), Moved(), threading.Event()

        def begin() -> None:
            stage.old.daemon.hand_over_to(target, moved)
            stage.old.daemon.drain(PATIENCE_S, drained.set)

        stage.old.do(begin)
        assert moved.figures() == (3, 1)
        assert not drained.is_set()
        stage.gate.open()
        reply = read_reply(busy)
        assert (reply.body, reply.get("connection")) == (b"old", None)
        assert drained.wait(PATIENCE_S)
        assert {ask(client) for client in (*idle, busy)} == {b"new"}
        assert stage.old.daemon.cut == 0


def test_a_drain_whose_lane_has_ended_says_close_as_ever() -> None:
    with staged() as stage:
        (client,) = stage.idle()
        stage.end_lane()
        target, drained = stage.target(), threading.Event()

        def begin() -> None:
            stage.old.daemon.hand_over_to(target, lambda moved, left: None)
            stage.old.daemon.drain(PATIENCE_S, drained.set)

        stage.old.do(begin)
        stage.old.until(lambda: stage.old.daemon._mover.target is None)
        client.sendall(GET)
        reply = read_reply(client)
        assert (reply.body, reply.get("connection")) == (b"old", "close")
        client.close()
        assert drained.wait(PATIENCE_S)


def test_a_drain_that_gets_another_lane_says_close_to_nobody() -> None:
    """The release that it hands over to is replaced itself, while somebody waits to be moved."""
    with staged() as stage, stage.old.connect() as client:
        first, second = stage.target(), stage.target()
        daemon, answer = stage.old.daemon, stage.old.daemon.app.handle

        def handle(exchange: Any) -> None:
            if exchange.request.path == "/wait":
                stage.old.loop.call_soon_threadsafe(lambda: daemon.hand_over_to(second))
                daemon.hand_over_to(first)
                daemon.drain(PATIENCE_S, lambda: None)
                stage.gate.open()
            answer(exchange)

        daemon.app.handle = handle  # type: ignore[method-assign]
        client.sendall(WAIT + GET * 3)
        assert read_bodies(client, 4)[0] == [b"old"] + [b"new"] * 3
        assert ask(client) == b"new"


@pytest.mark.parametrize("pipelined", [0, 3])
def test_a_lane_that_ends_while_the_order_for_another_one_waits_costs_nobody(pipelined: int) -> None:
    """Who ends it says so before: but a packet may be on its way to it before that order is read."""
    orders: list[Callable[[], None]] = []

    def before() -> None:
        while orders:
            orders.pop()()

    with staged("wsgi", before_accept=before) as stage, stage.old.connect() as client:
        client.sendall(WAIT + GET * pipelined)
        stage.gate.wait_entered()
        daemon, moved = stage.old.daemon, Moved()
        ended, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        first, second = Target("first", ended, other.detach()), stage.target()

        def begin() -> None:
            daemon.hand_over_to(first)
            daemon.drain(PATIENCE_S, lambda: None)
            ended.shutdown(socket.SHUT_WR)
            orders.append(lambda: daemon.hand_over_to(second, moved))

        stage.old.do(begin)
        stage.gate.open()
        assert read_bodies(client, 1 + pipelined)[0] == [b"old"] + [b"new"] * pipelined
        assert moved.figures() == (1, 0)
        assert ask(client) == b"new"


def test_at_the_deadline_those_that_could_not_go_are_ended_politely() -> None:
    with staged() as stage:
        (client,) = stage.idle()
        target, drained = stage.target(Refusing), threading.Event()
        target.times = 10**9  # type: ignore[attr-defined]

        def begin() -> None:
            stage.old.daemon.hand_over_to(target, lambda moved, left: None)
            stage.old.daemon.drain(0.1, drained.set)

        stage.old.do(begin)
        assert read_to_end(client) == b""
        client.close()
        assert drained.wait(PATIENCE_S)


def test_who_accepts_again_after_a_drains_end_serves_what_comes_by_a_lane() -> None:
    with staged() as stage:
        drained = threading.Event()
        stage.new.do(lambda: stage.new.daemon.drain(0.0, drained.set))
        stage.new.until(lambda: stage.new.daemon._ended)
        stage.new.do(stage.new.daemon.resume)
        (client,) = stage.idle()
        assert stage.hand_over().figures() == (1, 0)
        assert ask(client) == b"new"


def test_resume_keeps_those_who_are_here() -> None:
    with staged("wsgi") as stage, stage.old.connect() as client:
        client.sendall(WAIT)
        stage.gate.wait_entered()
        assert stage.hand_over().figures() == (0, 1)
        before = stage.old.do(stage.old.daemon.descriptors)
        stage.old.do(stage.old.daemon.resume)
        assert len(stage.old.do(stage.old.daemon.descriptors)) == len(before) - 3
        stage.gate.open()
        assert read_reply(client).body == b"old"
        assert ask(client) == b"old"
        assert stage.old.ask(GET).body == b"old"


def test_drained_is_said_when_every_lane_has_ended() -> None:
    """What lies in it is still to be served, by this one if by nobody else."""
    with staged(reads=False) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        drained = threading.Event()
        stage.read()
        stage.new.do(lambda: stage.new.daemon.drain(PATIENCE_S, drained.set))
        client.sendall(GET)
        assert read_reply(client).get("connection") == "close"
        client.close()
        stage.arrived(0)
        for _ in range(3):
            stage.new.do(lambda: None)
        assert not drained.is_set()
        stage.end_lane()
        assert drained.wait(PATIENCE_S)


def test_an_orphan_does_not_wait_for_an_end_that_nobody_makes() -> None:
    with staged(reads=False) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        drained = threading.Event()

        def alone() -> None:
            stage.new.daemon.add_lane("new", stage.reader.dup())
            stage.new.daemon.orphaned()
            stage.new.daemon.drain(PATIENCE_S, drained.set)
            assert not drained.is_set(), "somebody lies in the lane"

        stage.new.do(alone)
        client.sendall(GET)
        assert read_reply(client).get("connection") == "close"
        client.close()
        assert drained.wait(PATIENCE_S)


def test_at_a_drains_deadline_what_lies_in_the_lane_is_ended_politely() -> None:
    with staged(reads=False) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        drained = threading.Event()

        def late() -> None:
            stage.new.daemon.add_lane("new", stage.reader.dup())
            stage.new.daemon._lanes.set_aside("new", 60.0)
            stage.new.daemon.drain(0.1, drained.set)

        stage.new.do(late)
        assert read_to_end(client) == b""
        client.close()
        assert drained.wait(PATIENCE_S)


def test_one_who_hands_over_does_not_read_that_lane_and_reads_it_again_afterwards() -> None:
    with staged(reads=False) as stage:
        stage.old.do(lambda: stage.old.daemon.add_lane("new", stage.reader.dup()))
        (client,) = stage.idle()
        assert stage.hand_over().figures() == (1, 0)
        for _ in range(5):
            assert stage.old.do(lambda: stage.old.daemon.open) == 0
        probe = stage.target()
        assert probe._lying() == 1
        probe.close()
        stage.old.do(stage.old.daemon.resume)
        assert ask(client) == b"old"


def test_what_comes_by_one_lane_is_forwarded_by_another() -> None:
    """A failed release's workers: what still lies in their own lane goes back too."""
    with staged(reads=False) as stage:
        clients = stage.idle(2)
        with stage.old.connect() as half:
            half.sendall(GET[:20])
            stage.old.until(lambda: stage.old.daemon.busy == 1)
            stage.hand_over().figures()
            back_reader, back_writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            target = Target("old", back_writer, os.dup(back_reader.fileno()))
            stage.old.do(lambda: stage.old.daemon.add_lane("old", back_reader))
            stage.new.do(lambda: stage.new.daemon.hand_over_to(target))
            stage.read()
            stage.old.do(stage.old.daemon.resume)
            stage.old.until(lambda: stage.old.daemon.open == 3)
            half.sendall(GET[20:])
            assert read_reply(half).body == b"old"
            assert {ask(client) for client in clients} == {b"old"}
            assert stage.new.do(lambda: stage.new.daemon.open) == 0


def test_shed_gives_so_many_idle_ones_away_once() -> None:
    with staged() as stage:
        clients = stage.idle(10)
        before = stage.old.do(stage.old.daemon.descriptors)
        assert stage.old.do(lambda: stage.old.daemon.shed(4, stage.target(readers=2))) == 4
        stage.arrived(4)
        assert sorted(ask(client) for client in clients) == [b"new"] * 4 + [b"old"] * 6
        assert len(stage.old.do(stage.old.daemon.descriptors)) == len(before) - 4
        refusing = stage.target(Refusing)
        refusing.times = 1  # type: ignore[attr-defined]
        assert stage.old.do(lambda: stage.old.daemon.shed(4, refusing)) == 0
        assert sorted(ask(client) for client in clients) == [b"new"] * 4 + [b"old"] * 6


def test_what_is_shed_into_the_own_lane_comes_to_others() -> None:
    with staged() as stage:
        stage.old.do(lambda: stage.old.daemon.add_lane("new", stage.reader.dup()))
        clients = stage.idle(6)
        stage.old.do(lambda: stage.old.daemon.shed(3, stage.target()))
        stage.arrived(3)
        assert sorted(ask(client) for client in clients) == [b"new"] * 3 + [b"old"] * 3


def test_a_gate_delays_and_never_prevents() -> None:
    with staged(new={"may_take": lambda: False}) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        assert ask(client) == b"new"


def test_an_order_that_has_arrived_wins_over_a_packet() -> None:
    orders: list[Callable[[], None]] = []

    def before() -> None:
        while orders:
            orders.pop()()

    with staged(reads=False, new={"before_accept": before}) as stage:
        (client,) = stage.idle()
        stage.hand_over().figures()
        orders.append(lambda: stage.new.daemon._lanes.skip("new"))
        stage.read()
        stage.new.until(lambda: not orders)
        assert stage.new.do(lambda: stage.new.daemon.open) == 0
        stage.new.do(lambda: stage.new.daemon._lanes.skip(""))
        assert ask(client) == b"new"


def test_gauges_say_whether_it_accepts() -> None:
    with staged() as stage:
        assert stage.field(stage.old, Field.ACCEPTING) == 1
        stage.hand_over().figures()
        assert stage.field(stage.old, Field.ACCEPTING) == 0
        stage.old.do(stage.old.daemon.resume)
        assert stage.field(stage.old, Field.ACCEPTING) == 1


def test_a_forked_child_must_close_lanes_and_connections_too() -> None:
    with staged(reads=False) as stage:
        stage.idle(2)
        stage.old.do(lambda: stage.old.daemon.add_lane("other", stage.reader.dup()))
        target = stage.target(Refusing)
        target.times = 10**9  # type: ignore[attr-defined]
        stage.hand_over(target)
        stage.old.until(lambda: target.tried > 0)  # type: ignore[attr-defined]
        found = stage.old.do(stage.old.daemon.descriptors)
        assert (
            len(found) == len(set(found)) == 9
        )  # listener, lane, 3 of the target, epoll, eventfd, 2 clients
        assert {*target.descriptors()} < {*found}


# -- what arrives is looked at -------------------------------------------------------------------


def test_what_is_no_clients_connection_is_closed_and_the_others_are_served(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with staged() as stage:
        (client,) = stage.idle()
        ours, theirs = socket.socketpair()
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagram.connect(("127.0.0.1", 9))
        pipe = os.pipe()
        unconnected = socket.socket()
        bad = [datagram.fileno(), pipe[0], unconnected.fileno()]
        record = Record("idle", time.monotonic(), None, None)
        send_fds(stage.writer, encode([record] * 4), [*bad, theirs.fileno()])
        for end in (datagram, unconnected, theirs):
            end.close()
        os.close(pipe[0])
        stage.arrived(1)
        ours.settimeout(PATIENCE_S)
        assert ask(ours) == b"new"
        with pytest.raises(BrokenPipeError):
            os.write(pipe[1], b"x")  # nobody holds the other end
        os.close(pipe[1])
        assert ask(client) == b"old"
        assert "is no client's connection" in capfd.readouterr().err
        ours.close()


PEERS = Record("idle", 1.0, ("192.0.2.1", 1), ("192.0.2.2", 80))


def test_the_peer_is_who_the_socket_says() -> None:
    """A record says who was accepted; the socket cannot lie."""
    with staged() as stage:
        (client,) = stage.idle()
        server = socket.socket(
            fileno=stage.old.do(lambda: [os.dup(c.fd) for c in stage.old.daemon.roster.all])[0]
        )
        send_fds(stage.writer, encode([PEERS]), [server.fileno()])
        stage.arrived(1)
        peers = stage.new.do(lambda: [(c.peer, c.local) for c in stage.new.daemon.roster.all])
        assert peers == [(client.getsockname(), ("192.0.2.2", 80))]
        server.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=200)
    | st.lists(st.just(PEERS), max_size=4).map(encode)
    | st.lists(st.just(PEERS), min_size=3, max_size=3)
    .map(encode)
    .flatmap(
        lambda packet: st.tuples(st.integers(0, len(packet) - 1), st.binary(max_size=3)).map(
            lambda change: packet[: change[0]] + change[1] + packet[change[0] + 1 :]
        )
    ),
    st.integers(0, 3),
)
def test_damaged_packets_raise_nothing_and_leak_nothing(data: bytes, count: int) -> None:
    """The reader itself, with real descriptors: each is served or closed."""
    taken: list[Any] = []
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    lanes = Lanes(StillLoop(), taken.extend, lambda: None)  # type: ignore[arg-type]
    lanes.add("r42", reader.dup())
    pairs = [socket.socketpair() for _ in range(count)]
    with contextlib.redirect_stderr(None):
        send_fds(writer, data or b"x", [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        lanes.read_all()
    for arrival in taken:
        arrival.sock.close()
    for ours, _ in pairs:
        ours.settimeout(PATIENCE_S)
        assert ours.recv(1) == b"", "somebody still has it"
        ours.close()
    lanes.close()
    assert len(os.listdir("/proc/self/fd")) == before
    reader.close()
    writer.close()


def test_a_message_that_was_cut_is_said_and_leaks_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with staged() as stage:
        pairs = [socket.socketpair() for _ in range(2)]
        send_fds(stage.writer, b"x" * 70_000, [theirs.fileno() for _, theirs in pairs])
        for ours, theirs in pairs:
            theirs.close()
            ours.settimeout(PATIENCE_S)
            assert ours.recv(1) == b""
            ours.close()
        (client,) = stage.idle()
        stage.new.do(lambda: None)  # it is said after they were closed
        assert "lane 'new'" in capfd.readouterr().err
        stage.hand_over().figures()
        assert ask(client) == b"new"  # the next packet is read
