"""Who closes, when, and what it costs: a client that has said that nothing follows is not waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from quiesce import Request, Response
from quiesce.shared.scoreboard import Field
from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.connection import State
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.loops.base import READ
from wire.serving import PATIENCE_S, Served, StillLoop, read_reply, read_to_end, serving
from wire.test_answers import CLOSE, GET, hello

# Who lingers is still there in the end.
PATIENT = Limits(linger_timeout=3 * PATIENCE_S, linger_time=3 * PATIENCE_S)
HTTP_1_0 = b"GET / HTTP/1.0\r\n\r\n"
POST_CLOSE = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
KINDS = ("native", "native-pool", "wsgi", "wsgi-pool", "asgi")


def _wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"Hello"]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"Hello"})


def _app(kind: str) -> dict[str, Any]:
    if kind == "asgi":
        loop = AsyncioLoop()
        return {"app": AsgiApp(_asgi, loop), "loop": loop}
    app = NativeApp(hello) if kind.startswith("native") else WsgiApp(_wsgi)
    return {"app": app, "threads": 4 if kind.endswith("pool") else 1}


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    made = Served(**_app(request.param), limits=PATIENT)
    try:
        yield made
    finally:
        made.close()


def _lingers(served: Served) -> None:
    served.until(lambda: [c.state for c in served.daemon.roster.all] == [State.LINGERING])


@pytest.mark.parametrize("request_", [CLOSE, HTTP_1_0], ids=["close", "1.0"])
def test_a_client_that_said_close_is_not_waited_for(served: Served, request_: bytes) -> None:
    """Before it has read a byte it is forgotten here; its kernel has the answer, and our FIN behind it."""
    with served.connect() as sock:
        sock.sendall(request_)
        served.until(lambda: served.daemon.counters.busy == 0 and served.daemon.open == 0)
        assert read_to_end(sock).endswith(b"\r\n\r\nHello")


@pytest.mark.parametrize("request_", [CLOSE, HTTP_1_0], ids=["close", "1.0"])
def test_nor_is_one_that_was_already_connected(served: Served, request_: bytes) -> None:
    with served.connect() as sock:
        if b"1.1" in request_:
            sock.sendall(GET)
            read_reply(sock)
        else:
            served.until(lambda: served.daemon.open == 1)
        sock.sendall(request_)
        served.until(lambda: served.daemon.open == 0)
        assert read_to_end(sock).endswith(b"\r\n\r\nHello")


@pytest.mark.parametrize("behind", [b"\r\n", GET, bytes(50_000)], ids=["empty line", "request", "much"])
def test_what_was_sent_behind_it_does_not_eat_the_answer(served: Served, behind: bytes) -> None:
    """A client must not; a close with unread input would be a reset."""
    with served.connect() as sock:
        served.do(lambda: sock.sendall(CLOSE + behind))  # so that it is read in one piece
        assert read_to_end(sock).endswith(b"\r\n\r\nHello")
        _lingers(served)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("request_", [CLOSE, HTTP_1_0], ids=["close", "1.0"])
def test_nor_does_what_came_while_the_application_was_at_work(threads: int, request_: bytes) -> None:
    """It lies in the kernel's queue, and nobody here has seen it."""
    sent = threading.Event()

    def waits(request: Request) -> Response:
        sock.sendall(b"\r\n")
        sent.set()
        return Response(bytes(200_000))

    with serving(waits, limits=PATIENT, threads=threads) as served, served.connect() as sock:
        sock.sendall(request_)
        assert sent.wait(PATIENCE_S)
        assert len(read_to_end(sock)) > 200_000
        _lingers(served)


@pytest.mark.parametrize("threads", [1, 4])
def test_nor_does_what_comes_behind_it_cut_a_long_answer(threads: int) -> None:
    """Our kernel has it all, and the client has not."""
    big = bytes(500_000)
    serves = serving(lambda request: Response(big), limits=PATIENT, threads=threads)
    with serves as served, served.connect(receive_buffer=4096) as sock:
        sock.sendall(HTTP_1_0)
        served.until(lambda: served.daemon.counters.slot[Field.RESP_2XX] > 0)
        served.until(lambda: not any(c.state is State.WORKING for c in served.daemon.roster.all))
        sock.sendall(b"\r\n")
        assert len(read_to_end(sock)) > len(big)
        _lingers(served)


@pytest.mark.parametrize("post", [POST_CLOSE, b"POST / HTTP/1.0\r\n\r\n"], ids=["body", "none"])
def test_a_post_may_have_a_line_end_behind_it(served: Served, post: bytes) -> None:
    """Of clients from another age (RFC 9112 §2.2), and in a packet of its own."""
    with served.connect() as sock:
        sock.sendall(post)
        assert read_to_end(sock).endswith(b"\r\n\r\nHello")
        _lingers(served)
        sock.sendall(b"\r\n")
        served.until(lambda: any(c._unread for c in served.daemon.roster.all))
        assert sock.recv(1) == b""


def test_an_answer_that_is_the_last_by_our_word_is_read_to_its_end_first() -> None:
    def closes(request: Request) -> Response:
        return Response("Hello", headers={"Connection": "close"})

    with serving(closes, limits=PATIENT) as served, served.connect() as sock:
        sock.sendall(GET)
        assert read_to_end(sock).endswith(b"Hello")
        _lingers(served)


def test_in_a_drain_nobody_is_left_before_he_has_read_his_answer(served: Served) -> None:
    with served.connect() as sock:
        served.until(lambda: served.daemon.open == 1)
        served.do(lambda: served.daemon.drain(3 * PATIENCE_S, lambda: None))
        sock.sendall(CLOSE)
        assert read_to_end(sock).endswith(b"Hello")
        _lingers(served)


def test_nor_does_what_comes_while_a_thread_has_answered_and_the_loop_does_not_know() -> None:
    class Heard(StillLoop):
        def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
            StillLoop.call_soon_threadsafe(self, callback)
            said.set()

    said = threading.Event()
    loop = Heard()
    daemon = Daemon(NativeApp(hello), loop, threads=2, limits=PATIENT)  # type: ignore[arg-type]
    daemon.enter()
    client, server = socket.socketpair()
    client.settimeout(PATIENCE_S)
    connection = daemon.add_connection(server, peer=None, local=None)
    client.sendall(CLOSE)
    connection.ready(READ)
    assert read_reply(client).body == b"Hello"
    assert said.wait(PATIENCE_S)  # the thread has sent; the loop has not turned
    client.sendall(b"\r\n")
    connection.ready(READ)
    loop.turn()
    assert connection.state is State.LINGERING
    client.close()
    daemon.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_answer_that_has_to_wait_for_its_client_arrives_whole(threads: int) -> None:
    big = bytes(range(256)) * 40_000

    with (
        serving(lambda request: Response(big), threads=threads, limits=PATIENT) as served,
        served.connect(receive_buffer=4096) as sock,
    ):
        sock.sendall(CLOSE)
        served.until(lambda: {c.state for c in served.daemon.roster.all} == {State.FLUSHING})
        assert read_reply(sock).body == big
        assert sock.recv(1) == b""
        _lingers(served)


def test_the_answer_is_not_held_back_until_the_log_has_been_written(served: Served) -> None:
    """It goes out along with the FIN: nothing may come in between."""
    states: list[State] = []
    served.daemon.access_log = lambda exchange, *_: states.append(exchange.connection.state)
    with served.connect() as sock:
        sock.sendall(CLOSE)
        read_to_end(sock)
        served.until(lambda: bool(states))
    is_inline = served.daemon.is_inline
    assert states == [State.CLOSED] if is_inline else states[0] in (State.FLUSHING, State.CLOSED)


def test_accepted_sockets_do_not_delay(served: Served) -> None:
    """They have it from the listener, which saves a call for each."""
    with served.connect():
        served.until(lambda: served.daemon.open == 1)
        (sock,) = [connection.sock for connection in served.daemon.roster.all]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_comes_along_with_the_fin_is_read_too() -> None:
    """Both directions are shut then, what is there is not all read, and our kernel still has much of the answer."""
    big = bytes(500_000)

    def send() -> None:
        sock.sendall(bytes(500))
        sock.shutdown(socket.SHUT_WR)

    serves = serving(lambda request: Response(big), limits=PATIENT)
    with serves as served, served.connect(receive_buffer=4096) as sock:
        sock.sendall(GET + b"\n")
        _lingers(served)
        served.do(send)  # so that it is seen in one turn
        served.until(lambda: served.daemon.open == 0)
        assert len(read_to_end(sock)) > len(big)


def test_who_is_cut_has_the_answers_that_were_to_go_out_with_the_next_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/cut":
            raise asyncio.CancelledError
        await _asgi(scope, receive, send)

    loop = AsyncioLoop()
    with serving(AsgiApp(app, loop), loop=loop) as served, served.connect() as sock:
        sock.sendall(GET + GET.replace(b" / ", b" /cut "))
        assert read_reply(sock).body == b"Hello"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


@pytest.mark.parametrize(
    "half",
    [GET[:9], POST_CLOSE[:-1], b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na"],
    ids=["head", "body", "chunk"],
)
@pytest.mark.parametrize("kind", ["native-pool", "asgi"])
def test_half_a_request_is_none_though_the_fin_was_there_before_it_was_read(kind: str, half: bytes) -> None:
    """The whole one before it was at work then; the half one is not waited for until its time is over."""
    go_on, at_work = threading.Event(), threading.Event()

    def waits(request: Request) -> Response:
        at_work.set()
        go_on.wait(PATIENCE_S)
        return Response("Hello")

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        body = await receive()
        at_work.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        while body.get("more_body"):
            body = await receive()
        await _asgi(scope, receive, send)

    if kind == "asgi":
        loop = AsyncioLoop()
        options: dict[str, Any] = {"app": AsgiApp(asgi, loop), "loop": loop}
    else:
        options = {"app": NativeApp(waits), "threads": 2}
    limits = Limits(header_timeout=9 * PATIENCE_S, body_timeout=9 * PATIENCE_S)
    with serving(**options, limits=limits) as served, served.connect() as sock:
        sock.sendall(GET + half)
        sock.shutdown(socket.SHUT_WR)
        assert at_work.wait(PATIENCE_S)
        served.until(lambda: all(c._eof for c in served.daemon.roster.all))
        go_on.set()
        assert read_to_end(sock).endswith(b"Hello")
        served.until(lambda: served.daemon.open == 0)
