"""Quiesce, resume, drain: who is served, who is told to go, and when nobody is left."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from harness.gate import Gate
from quiesce import Request, Response
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.connection import Event, State
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.net.ending import Ending
from quiesce.worker.net.idlers import end_idle
from quiesce.worker.net.stream import Connection
from wire.serving import PATIENCE_S, Served, bench, read_reply, read_to_end, serving
from wire.test_answers import GET, hello


def hello_behind(gate: Gate) -> Callable[[Request], Response]:
    """A handler whose /wait lies behind the gate."""

    def handler(request: Request) -> Response:
        if request.path == "/wait":
            gate.wait()
        return Response(b"Hello")

    return handler


WAIT = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"


def drain(served: Served, timeout_s: float = 20.0) -> threading.Event:
    drained = threading.Event()
    served.do(lambda: served.daemon.drain(timeout_s, drained.set))
    return drained


def test_quiesced_means_the_kernel_keeps_them() -> None:
    with serving(hello) as served, served.connect() as old:
        old.sendall(GET)
        read_reply(old)
        served.do(served.daemon.quiesce)
        with served.connect() as new:
            new.sendall(GET)
            for _ in range(3):
                old.sendall(GET)
                assert read_reply(old).get("connection") is None
            new.settimeout(0.05)
            with pytest.raises(TimeoutError):
                new.recv(1)
            new.settimeout(20)
            served.do(served.daemon.resume)
            assert read_reply(new).body == b"Hello"


def test_empty_daemon_is_drained_at_once() -> None:
    with serving(hello) as served:
        assert drain(served).wait(20)


def test_idle_connection_gets_connection_close_with_its_next_answer() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        drained = drain(served)
        assert not drained.is_set() and served.daemon.idle == 1
        sock.sendall(GET)
        assert read_reply(sock).get("connection") == "close"
        assert sock.recv(1) == b""
        sock.close()
        assert drained.wait(20)


def test_late_speaker_is_served() -> None:
    """It was accepted just before, and speaks 300 ms after: cutting it would fail a request."""
    with serving(hello) as served, served.connect() as sock:
        served.until(lambda: served.daemon.open == 1)
        drained = drain(served)
        time.sleep(0.3)  # this client's own slowness
        sock.sendall(GET)
        reply = read_reply(sock)
        assert (reply.body, reply.get("connection")) == (b"Hello", "close")
        sock.close()
        assert drained.wait(20)


def test_pipelined_behind_the_last_answer_is_not_answered_and_not_reset() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        drain(served)
        sock.sendall(GET + GET)
        assert read_to_end(sock).count(b"Hello") == 1


def test_running_request_is_finished() -> None:
    gate = Gate()
    with serving(hello_behind(gate), threads=2) as served, served.connect() as sock:
        sock.sendall(WAIT)
        gate.wait_entered()
        drained = drain(served)
        assert served.daemon.busy == 1 and not drained.is_set()
        gate.open()
        reply = read_reply(sock)
        assert (reply.body, reply.get("connection")) == (b"Hello", "close")
        sock.close()
        assert drained.wait(20)
        assert served.daemon.cut == 0


def test_deadline_ends_idle_and_half_heads_and_running_requests_politely() -> None:
    gate = Gate()
    with serving(hello_behind(gate), threads=2) as served:
        idle, fresh, half, running = (served.connect() for _ in range(4))
        idle.sendall(GET)
        read_reply(idle)
        half.sendall(b"GET / HT")
        running.sendall(WAIT)
        gate.wait_entered()
        served.until(lambda: served.daemon.open == 4 and served.daemon.busy == 2)
        drained = drain(served, 0.05)
        assert read_to_end(idle) == b"" and read_to_end(fresh) == b""
        assert read_reply(half).status == 503
        reply = read_reply(running)
        assert (reply.status, reply.get("connection")) == (503, "close")
        for sock in (idle, fresh, half, running):
            sock.close()
        assert drained.wait(20)
        assert served.daemon.cut == 2
        gate.open()  # its answer comes too late, and hurts nobody


def test_who_asks_nothing_is_ended_and_nobody_else() -> None:
    """``stop``: nobody is left to hand them over to."""
    gate = Gate()
    with serving(hello_behind(gate), threads=2) as served:
        idle, fresh, half, running, late = (served.connect() for _ in range(5))
        for sock in (idle, late):
            sock.sendall(GET)
            read_reply(sock)
        half.sendall(b"GET / HT")
        running.sendall(WAIT)
        gate.wait_entered()
        served.until(lambda: (served.daemon.open, served.daemon.busy) == (5, 2))
        drained = drain(served, PATIENCE_S)

        def end() -> None:
            late.sendall(GET)  # in the kernel, and the loop has not looked yet
            end_idle(served.daemon)

        served.do(end)
        assert read_to_end(idle) == b"" and read_to_end(fresh) == b""
        gate.open()
        half.sendall(b"TP/1.1\r\nHost: a\r\n\r\n")
        for sock in (half, running, late):
            reply = read_reply(sock)
            assert (reply.body, reply.get("connection")) == (b"Hello", "close")
        for sock in (idle, fresh, half, running, late):
            sock.close()
        assert drained.wait(PATIENCE_S)
        assert served.daemon.cut == 0


def test_what_a_client_sends_into_our_fin_is_not_answered_by_a_reset() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        drain(served)
        served.do(lambda: end_idle(served.daemon))
        sock.sendall(GET)
        assert read_to_end(sock) == b""


def test_half_a_response_is_cut_at_the_deadline() -> None:
    with (
        serving(lambda request: Response(bytes(1000) for _ in range(10**9))) as served,
        served.connect() as sock,
    ):
        sock.sendall(GET)
        sock.recv(1)
        drained = drain(served, 0.05)
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)
        assert drained.wait(20)


def test_drained_waits_for_the_last_close() -> None:
    with serving(hello, limits=Limits(linger_timeout=20)) as served, served.connect() as sock:
        drained = drain(served, 0.0)
        assert drained.is_set() or read_to_end(sock) == b""
    with serving(hello, limits=Limits(linger_timeout=20)) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
        assert read_to_end(sock).endswith(b"Hello")
        drained = drain(served)
        assert not drained.is_set(), "our FIN is out, but the client may still be reading"
        sock.close()
        assert drained.wait(20)


def test_resume_in_the_middle_of_a_drain() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        drained = drain(served)
        served.do(served.daemon.resume)
        sock.sendall(GET)
        assert read_reply(sock).get("connection") is None
        assert served.ask(GET).status == 200
        assert not drained.is_set()


def test_order_that_has_arrived_wins_over_a_connection() -> None:
    orders: list[str] = []
    holder: list[Served] = []

    def before_accept() -> None:
        if orders:
            holder[0].daemon.quiesce()

    with serving(hello, before_accept=before_accept) as served:
        holder.append(served)
        assert served.ask(GET).status == 200
        orders.append("quiesce")
        with served.connect() as sock:
            sock.sendall(GET)
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            orders.clear()
            sock.settimeout(20)
            served.do(served.daemon.resume)
            assert read_reply(sock).status == 200


def test_close_cuts_everything() -> None:
    with serving(hello) as served:
        sock = served.connect()
        sock.sendall(GET)
        read_reply(sock)
        served.do(served.daemon.close)
        assert read_to_end(sock) == b""
        assert served.do(served.daemon.descriptors) == served.loop.descriptors()


def test_descriptors_are_all_that_a_fork_must_close() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        found = served.do(served.daemon.descriptors)
        assert len(found) == len(set(found)) == 4  # listener, epoll, eventfd, client
        names = [socket.socket(fileno=socket.dup(fd)) for fd in (found[0], found[3])]
        assert names[0].getsockname() == served.address
        assert names[1].getpeername() == sock.getsockname()
        for name in names:
            name.close()


# -- a thread of the pool answers while the loop ends its connection -------------------------


def _when_ending(monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[[], None]) -> None:
    """Let another thread run where it could: at the beginning of this step of a drain's end."""
    real = getattr(Ending, method)

    def instead(self: Ending, *args: Any) -> None:
        if method != "event" or args[0] is Event.END:
            act()
        real(self, *args)

    monkeypatch.setattr(Ending, method, instead)


def test_answer_while_the_503_is_made_is_not_sent_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, tried = Gate(), threading.Event()
    call = Daemon._call

    def noted(self: Daemon, exchange: Any) -> None:
        call(self, exchange)
        tried.set()

    def answer_now() -> None:
        gate.open()
        assert tried.wait(PATIENCE_S)

    monkeypatch.setattr(Daemon, "_call", noted)
    _when_ending(monkeypatch, "_say", answer_now)
    with serving(hello_behind(gate), threads=2) as served, served.connect() as sock:
        sock.sendall(WAIT)
        gate.wait_entered()
        drained = drain(served, 0.0)
        data = read_to_end(sock)
        assert data.startswith(b"HTTP/1.1 503 ") and data.count(b"HTTP/1.1") == 1
        sock.close()
        assert drained.wait(PATIENCE_S)
        assert (served.daemon.open, served.daemon.busy) == (0, 0)


def test_response_that_begins_as_the_drain_ends_is_cut_and_not_followed_by_a_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go, begun, leave = (threading.Event() for _ in range(4))

    def parts() -> Iterator[bytes]:
        yield b"the beginning"
        begun.set()
        assert leave.wait(PATIENCE_S)

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        entered.set()
        assert go.wait(PATIENCE_S)
        return parts()

    def begin_now() -> None:
        go.set()
        assert begun.wait(PATIENCE_S)

    _when_ending(monkeypatch, "event", begin_now)
    with serving(WsgiApp(app), threads=2) as served, served.connect() as sock:
        sock.sendall(GET)
        assert entered.wait(PATIENCE_S)
        drain(served, 0.0)
        try:
            data = read_to_end(sock)
        except ConnectionResetError:
            data = b""
        leave.set()
        assert b"503" not in data and not data.endswith(b"0\r\n\r\n")


def test_half_close_behind_pipelined_requests_does_not_drop_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first was answered by a thread just as the loop took note of the client's FIN."""
    gate, answered = Gate(), threading.Event()
    complete = Connection.complete

    def noted(self: Connection, *args: Any) -> None:
        complete(self, *args)
        answered.set()

    real = Ending.event

    def late(self: Ending, event: Event, *args: Any) -> None:
        if event is Event.PEER_DONE and not gate.is_open:
            gate.open()
            assert answered.wait(PATIENCE_S)
        real(self, event, *args)

    monkeypatch.setattr(Connection, "complete", noted)
    monkeypatch.setattr(Ending, "event", late)
    with serving(hello_behind(gate), threads=2) as served, served.connect() as sock:
        sock.sendall(WAIT)
        gate.wait_entered()
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock).count(b"HTTP/1.1 200") == 2


def test_connection_is_counted_as_idle_before_the_loop_can_see_that_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the loop counts its end, or its next request, first: open - busy would be -1."""
    from quiesce.worker import daemon

    watched = daemon.Connection
    seen: list[int] = []

    class Counted(watched):  # type: ignore[misc, valid-type]
        __slots__ = ()

        @property
        def state(self) -> State:
            return watched.state.__get__(self)

        @state.setter
        def state(self, new: State) -> None:
            if new is State.IDLE:
                seen.append(self.daemon.counters.busy)
            watched.state.__set__(self, new)

    monkeypatch.setattr(daemon, "Connection", Counted)
    with serving(hello, threads=2) as served, served.connect() as sock:
        for _ in range(3):
            sock.sendall(GET)
            read_reply(sock)
    assert seen == [0, 0, 0]


# -- application code that works on after its response ----------------------------------------


class SlowClose:
    """A WSGI application whose iterables' close() waits until it may end."""

    def __init__(self) -> None:
        self.closing, self.may_end, self.closed = (threading.Event() for _ in range(3))

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return _Closing(self)


class _Closing:
    def __init__(self, owner: SlowClose) -> None:
        self.owner = owner

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"ok"])

    def close(self) -> None:
        self.owner.closing.set()
        assert self.owner.may_end.wait(PATIENCE_S)
        self.owner.closed.set()


def test_drain_waits_for_a_wsgi_close_that_takes_a_while() -> None:
    app = SlowClose()
    with serving(WsgiApp(app), threads=2) as served:
        assert served.ask(GET).body == b"ok"
        assert app.closing.wait(PATIENCE_S)
        served.until(lambda: served.daemon.open == 0)
        was_closed: list[bool] = []
        drained = threading.Event()

        def on_drained() -> None:
            was_closed.append(app.closed.is_set())
            drained.set()

        served.do(lambda: served.daemon.drain(PATIENCE_S, on_drained))
        for _ in range(3):
            served.do(lambda: None)
        assert not drained.is_set()
        app.may_end.set()
        assert drained.wait(PATIENCE_S)
        assert was_closed == [True]


def test_wsgi_close_that_does_not_end_holds_a_drain_until_its_deadline() -> None:
    app = SlowClose()
    with serving(WsgiApp(app), threads=2) as served:
        assert served.ask(GET).body == b"ok"
        assert app.closing.wait(PATIENCE_S)
        served.until(lambda: served.daemon.open == 0)
        begin = time.monotonic()
        assert drain(served, 0.2).wait(PATIENCE_S)
        assert 0.2 <= time.monotonic() - begin < 5.0, "not the last words' time too: nobody is connected"
        assert not app.closed.is_set()
        app.may_end.set()


def test_inline_close_is_before_drained() -> None:
    """The client's FIN is known already, so the answer is the connection's end, in the application's call."""
    order: list[str] = []

    class App(SlowClose):
        def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
            self.may_end.set()
            made.daemon.drain(PATIENCE_S, lambda: order.append(f"drained, closed: {self.closed.is_set()}"))
            connection._eof = True  # half-closed behind its request
            return super().__call__(environ, start_response)

    with bench(WsgiApp(App())) as made:
        (connection,) = made.daemon.roster.all
        made.send(GET)
        made.loop.turn()
        assert order == ["drained, closed: True"]


def test_request_that_a_thread_has_just_taken_is_work() -> None:
    """Between the queue and the first line of the application it is in neither."""
    from quiesce.worker.loops.thread_pool import ThreadPool

    entered, leave, over = (threading.Event() for _ in range(3))
    pool: ThreadPool[int] = ThreadPool(1, lambda item: (entered.set(), leave.wait(PATIENCE_S)), over.set)
    assert not pool.busy
    pool.submit(1)
    assert entered.wait(PATIENCE_S)
    pool._since[0] = 0  # as it is before the thread has noted when it began
    assert pool.busy
    leave.set()
    assert over.wait(PATIENCE_S) and not pool.busy
    assert pool.close(PATIENCE_S)
