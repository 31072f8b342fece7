"""Listeners that several processes share, and what they do to each other."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import select
import socket
from collections.abc import Iterator

import pytest

from quiesce import Request, Response
from quiesce.shared.scoreboard import Field
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.net.reserve import Reserve
from wire.serving import PATIENCE_S, Served, StillLoop, read_reply, read_to_end, serving
from wire.test_answers import GET, hello


def _listener(served: Served) -> socket.socket:
    """Another holder of the daemon's listener, as another worker would be."""
    fd = served.do(served.daemon.descriptors)[0]
    return socket.socket(fileno=os.dup(fd))


def test_listener_that_somebody_made_blocking() -> None:
    """Readable, taken by another worker, and accept would block for ever."""
    with serving(hello) as served, _listener(served) as other:
        served.do(served.daemon.quiesce)
        with served.connect() as first:
            other.setblocking(True)
            taken = other.accept()[0]
            # Exactly what a turn does whose event has become untrue.
            listener = next(iter(served.daemon._acceptor.listeners.values()))

            def false_alarm() -> None:
                listener.watched = True
                os.set_blocking(listener.fd, True)
                served.daemon._acceptor._ready(listener)
                listener.watched = False

            served.do(false_alarm)
            taken.close()
            first.close()
        os.set_blocking(other.fileno(), True)
        served.do(served.daemon.resume)
        for _ in range(3):
            os.set_blocking(other.fileno(), True)
            assert served.ask(GET).status == 200


def test_a_client_that_comes_before_the_first_heartbeat() -> None:
    """Its request is answered in the very turn that accepts it, and a thread of the pool must not take itself for the
    loop's."""
    loop, told = StillLoop(), queue.SimpleQueue[bool]()

    def handler(request: Request) -> Response:
        told.put(daemon.in_loop())
        return Response("Hello")

    daemon = Daemon(NativeApp(handler), loop, threads=2)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        daemon.add_listener("http", listener.dup())
        daemon.accept()
        (ready,) = loop.callbacks.values()
        with socket.create_connection(listener.getsockname(), PATIENCE_S) as client:
            client.sendall(GET)
            ready(1)
            assert told.get(timeout=PATIENCE_S) is False
            assert read_reply(client).body == b"Hello"
    daemon.close()


def test_removed_listener_leaves_no_ghost() -> None:
    """While another process holds the listener, epoll reports a description that we closed, for ever."""
    with serving(hello) as served, _listener(served) as other:
        served.do(lambda: served.daemon.remove_listener("http"))
        with served.connect():
            assert select.select([other], [], [], PATIENCE_S)[0]
            turns = [served.do(lambda: served.loop._epoll.poll(0)) for _ in range(5)]
            assert turns == [[]] * 5
            accepted, _ = other.accept()  # it was not lost, and not ours
            accepted.close()


def test_closed_connection_leaves_no_ghost() -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        held = os.dup(served.do(served.daemon.descriptors)[3])  # somebody else has the description
        served.do(lambda: next(iter(served.daemon.roster.all)).cut())
        sock.sendall(b"x")
        assert served.do(lambda: served.loop._epoll.poll(0)) == []
        os.close(held)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """There are none left in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    fill = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)


def test_out_of_descriptors_waits_and_loses_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(hello) as served:
        clients = [served.connect() for _ in range(3)]
        for sock in clients:
            sock.sendall(GET)
            read_reply(sock)
        waiting = socket.socket()
        waiting.settimeout(PATIENCE_S)
        with no_descriptors():
            waiting.connect(served.address)  # while nobody can accept
            waiting.sendall(GET)
            served.until(lambda: served.daemon._acceptor._retry is not None)
            clients[0].sendall(GET)  # the others are served on
            assert read_reply(clients[0]).status == 200
        assert read_reply(waiting).status == 200
        waiting.close()
        served.connect().close()
    assert capfd.readouterr().err.count("accepting pauses") == 1


def test_out_of_descriptors_and_nobody_else_accepts() -> None:
    with serving(hello, reserve=Reserve()) as served:
        for round_ in range(2):
            served.until(lambda: not served.daemon.open)  # whose descriptors would be free soon
            with socket.socket() as late:
                late.settimeout(PATIENCE_S)
                with no_descriptors():
                    late.connect(served.address)
                    late.sendall(GET)
                    reply = read_reply(late)
                    assert reply.status == 503 and reply.get("Retry-After") == "1"
                    assert read_to_end(late) == b""
            assert served.daemon.counters.slot[Field.REFUSED] == round_ + 1
            assert served.ask(GET).status == 200


def test_two_listeners_and_a_new_one_of_the_same_name() -> None:
    with serving(hello) as served:
        for _ in range(2):
            listener = socket.create_server(("127.0.0.1", 0))
            address = listener.getsockname()
            served.do(lambda listener=listener: served.daemon.add_listener("more", listener))  # type: ignore[misc]
            with socket.create_connection(address, timeout=PATIENCE_S) as sock:
                sock.sendall(GET)
                assert read_reply(sock).status == 200
        with pytest.raises(OSError):
            socket.create_connection(address, timeout=PATIENCE_S).close() or served.do(
                lambda: served.daemon.remove_listener("more")
            ) or socket.create_connection(address, timeout=PATIENCE_S)


def test_unix_listener(tmp_path: os.PathLike[str]) -> None:
    seen = []

    def handler(request):  # type: ignore[no-untyped-def]
        seen.append((request.peer, request.local))
        return hello(request)

    path = f"{tmp_path}/s"
    with serving(handler) as served:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        served.do(lambda: served.daemon.add_listener("unix", listener))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(path)
            sock.sendall(GET)
            assert read_reply(sock).status == 200
    assert seen == [(None, None)]


def test_shared_listener_is_never_shut_down() -> None:
    with serving(hello) as served:
        other = _listener(served)
        other.settimeout(PATIENCE_S)
    with other, socket.create_connection(other.getsockname(), timeout=PATIENCE_S) as sock:
        accepted, _ = other.accept()
        accepted.close()
        assert sock.recv(1) == b""


def test_loop_survives_a_callback_that_raises(capfd: pytest.CaptureFixture[str]) -> None:
    loop = EpollLoop()
    left, right = socket.socketpair()
    order = []

    def broken(events: int) -> None:
        left.recv(10)
        raise RuntimeError("planted")

    loop.watch(left.fileno(), broken)
    right.send(b"x")
    loop.call_at(loop.now() + 0.01, lambda: order.append("timer"))
    loop.call_at(loop.now() + 0.02, loop.stop)
    loop.run()
    loop.unwatch(left.fileno())
    loop.close()
    left.close()
    right.close()
    assert order == ["timer"] and "planted" in capfd.readouterr().err


def _waiting(served: Served, count: int) -> tuple[socket.socket, list[socket.socket]]:
    """A second listener, and so many clients in its queue whose requests are sent."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    clients = []
    for _ in range(count):
        sock = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        sock.sendall(GET)
        clients.append(sock)
    return listener, clients


def test_whoever_waits_in_the_queue_of_a_listener_that_goes_is_served() -> None:
    """More than one burst; nobody else holds the socket, so what is not accepted is reset."""
    with serving(hello) as served:
        listener, clients = _waiting(served, 50)
        address = listener.getsockname()

        def in_one_turn() -> None:
            served.daemon.add_listener("more", listener)
            served.daemon.retire_listener("more")

        served.do(in_one_turn)
        for sock in clients:
            with sock:
                assert read_reply(sock).status == 200
        assert served.do(served.daemon.listeners) == ["http"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, PATIENCE_S)


def test_a_queue_that_never_ends_does_not_keep_its_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    from quiesce.worker.net import acceptor

    monkeypatch.setattr(acceptor, "_MOST_LAST", 3)
    with serving(hello) as served:
        listener, clients = _waiting(served, 5)
        other = listener.dup()  # as another worker's: what is left is for it

        def in_one_turn() -> None:
            served.daemon.add_listener("more", listener)
            served.daemon.retire_listener("more")

        served.do(in_one_turn)
        for sock in clients[:3]:
            assert read_reply(sock).status == 200
        other.settimeout(PATIENCE_S)
        for _ in range(2):
            other.accept()[0].close()
        other.close()
        for sock in clients:
            sock.close()


@pytest.mark.parametrize("how", ["quiesce", "drain"])
def test_who_does_not_accept_takes_nobody_from_a_listener_that_goes(how: str) -> None:
    with serving(hello) as served:
        listener, clients = _waiting(served, 2)
        other = listener.dup()
        if how == "quiesce":
            served.do(served.daemon.quiesce)
        else:
            served.do(lambda: served.daemon.drain(60, lambda: None))

        def in_one_turn() -> None:
            served.daemon.add_listener("more", listener)
            served.daemon.retire_listener("more")

        served.do(in_one_turn)
        other.settimeout(PATIENCE_S)
        for sock in clients:
            other.accept()[0].close()
            sock.close()
        other.close()
        assert served.do(lambda: served.daemon.open) == 0


def test_the_same_socket_again_under_its_name_leaves_no_gap_and_no_ghost() -> None:
    """A supervisor that took over hands out what everybody has already."""
    with serving(hello) as served, _listener(served) as other:
        for _ in range(20):
            again = socket.socket(fileno=os.dup(other.fileno()))
            with served.connect() as sock:  # in the queue, or accepted: not lost
                served.do(lambda again=again: served.daemon.add_listener("http", again))  # type: ignore[misc]
                sock.sendall(GET)
                assert read_reply(sock).status == 200
        served.do(served.daemon.quiesce)
        with served.connect():  # watched by nobody now; a ghost would be reported for ever
            assert select.select([other], [], [], PATIENCE_S)[0]
            served.until(lambda: served.daemon.open == 0)
            assert [served.do(lambda: served.loop._epoll.poll(0)) for _ in range(5)] == [[]] * 5


def test_something_that_cannot_be_a_listener_leaves_the_one_that_is_there() -> None:
    with serving(hello) as served:

        class Closed(socket.socket):
            def getsockname(self):  # type: ignore[no-untyped-def]
                raise OSError("gone")

        with Closed() as bad, pytest.raises(OSError):
            served.do(lambda: served.daemon.add_listener("http", bad))
        assert served.ask(GET).status == 200
