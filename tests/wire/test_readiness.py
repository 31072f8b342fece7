"""`ready_path`: what a load balancer is told, by the daemon itself."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from quiesce import Request, Response
from quiesce.shared.scoreboard import Field
from quiesce.worker.apps.wsgi import WsgiApp
from wire.serving import read_reply, serving
from wire.test_answers import GET, hello

READY = b"GET /ready HTTP/1.1\r\nHost: lb\r\n\r\n"


class Flag:
    """What the supervisor has written on the scoreboard."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self) -> bool:
        return self.is_set


def never(request: Request) -> Response:
    raise AssertionError(f"{request} is not the application's")


def test_ready_and_not_ready_and_ready_again() -> None:
    flag = Flag()
    with serving(never, ready_path="/ready", unready=flag) as served:
        with served.connect() as sock:
            for _ in range(2):
                sock.sendall(READY)
                reply = read_reply(sock)
                assert (reply.status, reply.body, reply.get("Connection")) == (200, b"ready\n", None)
                assert reply.get("Cache-Control") == "no-store"
                assert reply.get("Content-Type") == "text/plain; charset=utf-8"
            flag.is_set = True
            sock.sendall(READY)
            reply = read_reply(sock)
            assert (reply.status, reply.body) == (503, b"not ready\n")
            assert (reply.get("Connection"), reply.get("Cache-Control")) == ("close", "no-store")
            assert sock.recv(1) == b""
        flag.is_set = False
        assert served.ask(READY).status == 200


def test_head_says_the_same_without_a_body() -> None:
    flag = Flag()
    with serving(never, ready_path="/ready", unready=flag) as served, served.connect() as sock:
        for status, length in ((200, "6"), (503, "10")):
            flag.is_set = status == 503
            sock.sendall(READY.replace(b"GET", b"HEAD"))
            reply = read_reply(sock, head_only=True)
            assert (reply.status, reply.rest, reply.get("Content-Length")) == (status, b"", length)
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("target", "is_ours"),
    [
        (b"/ready", True), (b"/ready?since=1", True), (b"/ready?", True), (b"http://lb/ready", True),
        (b"/", False), (b"/ready/", False), (b"/ready/x", False), (b"/readyz", False), (b"/READY", False),
        (b"//ready", False), (b"/x?/ready", False), (b"/x/../ready", False), (b"/%72eady", False),
    ],
)  # fmt: skip
def test_the_path_and_nothing_but_the_path(target: bytes, is_ours: bool) -> None:
    with serving(hello, ready_path="/ready") as served:
        body = served.ask(b"GET " + target + b" HTTP/1.1\r\nHost: lb\r\n\r\n").body
        assert body == (b"ready\n" if is_ours else b"Hello")


def test_a_path_that_has_to_be_encoded() -> None:
    with serving(hello, ready_path="/bereit für mehr") as served:
        target = b"/bereit%20f%C3%BCr%20mehr"
        assert served.ask(b"GET " + target + b" HTTP/1.1\r\nHost: lb\r\n\r\n").body == b"ready\n"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS"])
def test_other_methods_are_the_applications(method: bytes) -> None:
    with serving(hello, ready_path="/ready", unready=lambda: True) as served:
        assert served.ask(READY.replace(b"GET", method)).body == b"Hello"


def test_every_other_answer_is_the_last_while_unready() -> None:
    """Or the keep-alive connections of the load balancer would never leave."""
    flag = Flag()
    with serving(hello, ready_path="/ready", unready=flag) as served:
        with served.connect() as sock:
            sock.sendall(GET)
            assert read_reply(sock).get("Connection") is None
            flag.is_set = True
            sock.sendall(GET)
            reply = read_reply(sock)
            assert (reply.body, reply.get("Connection")) == (b"Hello", "close")
            assert sock.recv(1) == b""
        assert served.ask(GET).get("Connection") == "close"  # still accepted and served
        flag.is_set = False
        assert served.ask(GET).get("Connection") is None


def test_a_request_that_runs_as_the_flag_comes_is_its_connections_last() -> None:
    flag, entered, let_go = Flag(), threading.Event(), threading.Event()

    def slow(environ: Any, start_response: Any) -> list[bytes]:
        entered.set()
        assert let_go.wait(20)
        start_response("200 OK", [])
        return [b"done"]

    app = WsgiApp(slow)
    with serving(app, threads=2, ready_path="/ready", unready=flag) as served, served.connect() as sock:
        sock.sendall(GET)
        assert entered.wait(20)
        flag.is_set = True
        served.until(lambda: served.daemon.closing)  # with the next heartbeat
        let_go.set()
        reply = read_reply(sock)
        assert (reply.body, reply.get("Connection")) == (b"done", "close")


def test_it_is_answered_while_every_thread_is_busy() -> None:
    let_go, entered = threading.Event(), threading.Semaphore(0)

    def stuck(environ: Any, start_response: Any) -> list[bytes]:
        entered.release()
        assert let_go.wait(20)
        start_response("200 OK", [])
        return [b"late"]

    with serving(WsgiApp(stuck), threads=2, ready_path="/ready") as served:
        clients = [served.connect() for _ in range(3)]
        for sock in clients:
            sock.sendall(GET)
        assert entered.acquire(timeout=20) and entered.acquire(timeout=20)  # the third one waits for a thread
        for _ in range(3):
            assert served.ask(READY).body == b"ready\n"
        let_go.set()
        for sock in clients:
            assert read_reply(sock).body == b"late"


@pytest.mark.parametrize("threads", [1, 2])
def test_pipelined_with_other_requests(threads: int) -> None:
    flag = Flag()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    wsgi = WsgiApp(app)
    with (
        serving(wsgi, threads=threads, ready_path="/ready", unready=flag) as served,
        served.connect() as sock,
    ):
        sock.sendall(READY + GET + READY + READY + GET)
        rest = b""
        bodies = []
        for _ in range(5):
            reply = read_reply(sock, before=rest)
            rest = reply.rest
            bodies.append(reply.body)
        assert bodies == [b"ready\n", b"/", b"ready\n", b"ready\n", b"/"] and rest == b""
        flag.is_set = True
        sock.sendall(READY + GET)  # what comes behind the last answer is not answered, and not reset
        reply = read_reply(sock)
        assert (reply.status, reply.rest) == (503, b"")
        assert sock.recv(1) == b""


def test_with_a_body_it_is_answered_once_that_is_there() -> None:
    with serving(hello, ready_path="/ready") as served, served.connect() as sock:
        sock.sendall(READY.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + b"abc" + READY)
        first = read_reply(sock)
        assert (first.body, read_reply(sock, before=first.rest).body) == (b"ready\n", b"ready\n")


def test_it_is_counted_but_never_as_an_error() -> None:
    """A release must not be rolled back for a 503 that somebody ordered."""
    flag = Flag()
    slot = memoryview(bytearray(8 * 32)).cast("Q")
    with serving(never, ready_path="/ready", unready=flag, slot=slot) as served:
        served.ask(READY)
        served.until(lambda: slot[Field.RESP_2XX] == 1 and served.daemon.open == 0)
        flag.is_set = True
        sent = slot[Field.BYTES_OUT]
        served.ask(READY)
        served.until(lambda: slot[Field.REQUESTS] == 2 and served.daemon.open == 0)
        assert sum(slot[Field.RESP_1XX : Field.RESP_5XX + 1]) == 1 and slot[Field.ERRORS] == 0
        assert slot[Field.BYTES_OUT] > sent and slot[Field.CONN_BUSY] == 0


def test_a_worker_that_a_rollout_has_quiesced_does_not_take_its_instance_out_of_service() -> None:
    with serving(never, ready_path="/ready") as served, served.connect() as sock:
        sock.sendall(READY)
        assert read_reply(sock).get("Connection") is None
        served.do(served.daemon.quiesce)
        sock.sendall(READY)
        reply = read_reply(sock)  # the next check comes on a new connection, to somebody who accepts
        assert (reply.status, reply.get("Connection")) == (200, "close")
        assert sock.recv(1) == b""


def test_a_probe_is_for_the_application() -> None:
    with serving(hello, ready_path="/ready", unready=lambda: True) as served:
        ours, theirs = socket.socketpair()
        with ours:
            served.do(lambda: served.daemon.add_connection(theirs, peer=None, local=None, probe=True))
            ours.settimeout(20)
            ours.sendall(READY)
            assert read_reply(ours).body == b"Hello"


def test_without_a_ready_path_nobody_asks() -> None:
    def unready() -> bool:
        raise AssertionError("asked")

    with serving(hello, unready=unready) as served, served.connect() as sock:
        for _ in range(2):
            sock.sendall(READY)
            reply = read_reply(sock)
            assert (reply.body, reply.get("Connection")) == (b"Hello", None)
        served.do(served.daemon.quiesce)
        served.do(served.daemon.resume)
