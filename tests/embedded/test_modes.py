"""Each mode serves, is quiesced and resumed, drained and stopped, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from embedded.serving import CLOSE, GET, Running, Setup, running
from quiesce import (
    Connection,
    Daemon,
    Limits,
    Mode,
    NotListening,
    Poller,
    QuiesceError,
    Request,
    Response,
    Stage,
    Termination,
    WrongMode,
)
from wire.serving import PATIENCE_S, read_reply, read_to_end


def hello(request: Request) -> Response:
    return Response(b"Hello")


class Ends:
    """What on_completed and on_connection said."""

    def __init__(self) -> None:
        self.codes: list[Termination] = []
        self.began = 0
        self.closed = 0

    def completed(self, connection: Connection, state: object, why: Termination) -> None:
        self.codes.append(why)

    def connection(self, connection: Connection, begins: bool) -> None:
        if begins:
            self.began += 1
        else:
            self.closed += 1

    @property
    def options(self) -> dict[str, Callable[..., None]]:
        return {"on_completed": self.completed, "on_connection": self.connection}


def test_serves_keeps_alive_and_says_how_it_ended(setup: Setup) -> None:
    ends = Ends()
    with running(setup, hello, **ends.options) as served:
        with served.connect() as sock:
            for _ in range(3):
                sock.sendall(GET)
                assert read_reply(sock).body == b"Hello"
            sock.sendall(CLOSE)
            assert read_reply(sock).get("connection") == "close"
        served.until(lambda: ends.closed == 1)
        assert ends.codes == [Termination.COMPLETED_OK] * 4 and ends.began == 1
        assert served.daemon.connections == 0


def test_quiesce_gives_the_socket_away_and_resume_takes_it_back(setup: Setup) -> None:
    with running(setup, hello) as served, served.connect() as old:
        old.sendall(GET)
        read_reply(old)
        listener = served.do(served.daemon.quiesce)
        assert served.daemon.info.listener_fd == listener.fileno() and not served.daemon.info.is_accepting
        with pytest.raises(NotListening):
            served.do(served.daemon.quiesce)
        # Who connects now waits in the kernel's queue, where we find him ourselves.
        with served.connect() as waiting:
            waiting.sendall(GET)
            listener.settimeout(PATIENCE_S)
            taken, _ = listener.accept()
            taken.close()
        with served.connect() as waiting:
            waiting.sendall(GET)
            old.sendall(GET)
            assert read_reply(old).body == b"Hello"  # existing clients are served on, as often as they ask
            served.do(lambda: served.daemon.resume(listener))
            assert read_reply(waiting).body == b"Hello"


def test_another_daemon_goes_on_with_the_listener(setup: Setup) -> None:
    with running(setup, lambda request: Response(b"old")) as old:
        listener = old.do(old.daemon.quiesce)
        with Daemon(lambda request: Response(b"new"), listener=listener.detach()) as new:
            assert old.ask().body == b"new"
            back = new.quiesce()
        old.do(lambda: old.daemon.resume(back))
        assert old.ask().body == b"old"


def test_stop_cuts_and_says_so(setup: Setup) -> None:
    ends = Ends()
    shown = threading.Event()

    def never(connection: Connection) -> None:
        shown.set()
        if connection.stage is Stage.END:
            connection.suspend()

    with running(setup, access_handler=never, allow_suspend=True, **ends.options) as served:
        with served.connect() as suspended, served.connect() as idle:
            suspended.sendall(GET)
            assert shown.wait(PATIENCE_S)
            served.until(lambda: served.daemon.connections == 2)
            served.stop()
            assert served.daemon.connections == 0
            assert ends.codes == [Termination.DAEMON_SHUTDOWN]
            assert ends.began == ends.closed == 2
            assert idle.recv(1) == b""
        served.daemon.stop()  # a second one does nothing


def test_drain_lets_everybody_finish(setup: Setup) -> None:
    inside, go = threading.Event(), threading.Event()
    parked: list[Connection] = []

    def slow(connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            return None
        if not go.is_set():
            parked.append(connection)
            connection.suspend()
            inside.set()
            return None
        return Response(b"late")

    with running(setup, access_handler=slow, allow_suspend=True) as served, served.connect() as sock:
        sock.sendall(GET)
        assert inside.wait(PATIENCE_S)
        served.do(lambda: served.daemon.drain(PATIENCE_S))
        go.set()
        parked[0].resume()
        reply = read_reply(sock)
        assert (reply.body, reply.get("connection")) == (b"late", "close")
        assert sock.recv(1) == b""
        sock.close()
        assert served.do(lambda: served.daemon.wait_drained(PATIENCE_S))


def test_stop_with_drain_serves_who_is_there(threaded: Setup) -> None:
    with running(threaded, hello) as served, served.connect() as sock:
        served.until(lambda: served.daemon.connections == 1)
        stopping = threading.Thread(target=lambda: served.daemon.stop(drain=PATIENCE_S))
        stopping.start()
        sock.sendall(GET)
        assert read_reply(sock).body == b"Hello"
        sock.close()
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()


def test_a_connection_that_we_bring_is_served(setup: Setup) -> None:
    with running(setup, hello, listen=False) as served:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        served.do(lambda: served.daemon.add_connection(theirs.detach()))
        ours.sendall(CLOSE)
        assert b"Hello" in read_to_end(ours)
        ours.close()


def test_limits_hold_over_all_threads(setup: Setup) -> None:
    with running(setup, hello, limits=Limits(connections_per_ip=2)) as served:
        for _ in range(3):
            first, second = served.connect(), served.connect()
            for sock in (first, second):
                sock.sendall(GET)
                assert read_reply(sock).status == 200
            with served.connect() as third:
                third.sendall(GET)
                reply = read_reply(third)
                assert (reply.status, reply.get("retry-after")) == (503, "1")
            first.close()
            second.close()
            served.until(lambda: served.daemon.connections == 0)


def test_a_policy_turns_clients_away_without_a_word(setup: Setup) -> None:
    asked: list[object] = []

    def nobody(peer: object) -> bool:
        asked.append(peer)
        return False

    with running(setup, hello, policy=nobody) as served, served.connect() as sock:
        assert sock.recv(1) == b""
        assert asked == [sock.getsockname()] and served.daemon.connections == 0


def test_who_has_threads_is_not_turned(threaded: Setup) -> None:
    with running(threaded, hello) as served:
        daemon = served.daemon
        for turn in (daemon.run, lambda: daemon.run_wait(0), lambda: daemon.run_from_select([], [])):
            with pytest.raises(WrongMode):
                turn()


def test_a_handler_cannot_stop_its_own_daemon(threaded: Setup) -> None:
    said: list[str] = []
    running_now: list[Running] = []

    def handler(request: Request) -> Response:
        try:
            running_now[0].daemon.stop()
        except QuiesceError as exc:
            said.append(str(exc))
        return Response(b"still here")

    with running(threaded, handler) as served:
        running_now.append(served)
        assert served.ask().body == b"still here"
    assert len(said) == 1


def test_an_idle_daemon_does_not_turn(setup: Setup) -> None:
    """No heartbeat, no polling: the deadline of an idle client is the only thing that will wake it."""
    with running(setup, hello) as served:
        assert setup.mode is Mode.THREAD_PER_CONNECTION or served.do(served.daemon.get_timeout) is None
        with served.connect() as sock:
            sock.sendall(GET)
            read_reply(sock)
            if setup.mode is not Mode.THREAD_PER_CONNECTION and setup.mode is not Mode.POOL:
                served.until(lambda: 5 < (served.do(served.daemon.get_timeout) or 0) <= 75)


def test_a_start_that_fails_leaves_the_listener_to_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(daemon: Daemon) -> None:
        raise OSError("no descriptor left for a loop")

    monkeypatch.setattr(Daemon, "_make_shell", fails)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for given in (listener, listener.fileno()):
            with pytest.raises(OSError, match="no descriptor"):
                Daemon(hello, listener=given).start()
            socket.create_connection(listener.getsockname(), PATIENCE_S).close()
            listener.accept()[0].close()


def test_what_is_not_allowed_is_said() -> None:
    with pytest.raises(TypeError):
        Daemon()
    with pytest.raises(ValueError):
        Daemon(hello, mode=Mode.THREAD_PER_CONNECTION, poller=Poller.EPOLL)
    with pytest.raises(ValueError):
        Daemon(hello, mode=Mode.POOL, threads=0)
    with socket.socket() as not_listening, pytest.raises(OSError):
        Daemon(hello, listener=not_listening.fileno()).start()
