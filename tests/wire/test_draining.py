"""Quiesce, resume, drain: who is served, who is told to go, and when nobody is left."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from quiesce import Request, Response
from quiesce.worker.core.limits import Limits
from wire.serving import Served, read_reply, read_to_end, serving
from wire.test_answers import GET, hello


class Gate:
    """A handler that waits under /wait until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def __call__(self, request: Request) -> Response:
        if request.path == "/wait":
            self.entered.set()
            assert self.opened.wait(20)
        return Response(b"Hello")


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
    with serving(gate, threads=2) as served, served.connect() as sock:
        sock.sendall(WAIT)
        assert gate.entered.wait(20)
        drained = drain(served)
        assert served.daemon.busy == 1 and not drained.is_set()
        gate.opened.set()
        reply = read_reply(sock)
        assert (reply.body, reply.get("connection")) == (b"Hello", "close")
        sock.close()
        assert drained.wait(20)
        assert served.daemon.cut == 0


def test_deadline_ends_idle_and_half_heads_and_running_requests_politely() -> None:
    gate = Gate()
    with serving(gate, threads=2) as served:
        idle, fresh, half, running = (served.connect() for _ in range(4))
        idle.sendall(GET)
        read_reply(idle)
        half.sendall(b"GET / HT")
        running.sendall(WAIT)
        assert gate.entered.wait(20)
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
        gate.opened.set()  # its answer comes too late, and hurts nobody


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
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
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
