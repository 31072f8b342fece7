"""The listening socket goes to a daemon in another process and comes back, and no client is refused meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.serving import CLOSE, GET, Running, Setup, running
from quiesce import Connection, Mode, Response, Stage, Termination
from wire.serving import PATIENCE_S, read_reply

pytestmark = pytest.mark.slow
SECOND = Path(__file__).with_name("second_daemon.py")


class Clients(threading.Thread):
    """Connect one after the other, at every moment; each must have a whole answer."""

    def __init__(self, served: Running) -> None:
        super().__init__(name="clients")
        self._served = served
        self._over = False
        self.answers: list[bytes] = []
        self.trouble: list[BaseException] = []

    def run(self) -> None:
        while not self._over:
            try:
                self.answers.append(self._served.ask(CLOSE).body)
            except BaseException as exc:
                self.trouble.append(exc)
                return

    def wait_for(self, answer: bytes) -> None:
        """The next answer of this kind; those before it do not count."""
        seen = len(self.answers)
        self._served.until(lambda: bool(self.trouble) or answer in self.answers[seen:])
        assert self.trouble == []

    def end(self) -> None:
        self._over = True
        self.join(PATIENCE_S)
        assert not self.is_alive() and self.trouble == []


@contextlib.contextmanager
def second_process(setup: Setup) -> Iterator[socket.socket]:
    """A second daemon, on threads of its own: an application that turns loops would need another test's equipment."""
    mode = Mode.THREAD if setup.mode is Mode.EXTERNAL else setup.mode
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    argv = [sys.executable, str(SECOND), str(theirs.fileno()), mode.value, setup.poller.value]
    with subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            assert process.wait(PATIENCE_S) == 0


class Slow:
    """Answers "old" at once, but leaves /slow waiting until it is told."""

    def __init__(self) -> None:
        self.parked: list[Connection] = []
        self.ends: list[Termination] = []

    def handler(self, connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            return None
        if connection.request.path == "/slow" and connection not in self.parked:
            self.parked.append(connection)
            connection.suspend()
            return None
        return Response(b"old")

    def completed(self, connection: Connection, state: object, why: Termination) -> None:
        self.ends.append(why)


def test_the_listener_goes_to_another_process_and_comes_back(setup: Setup) -> None:
    slow = Slow()
    options = {"allow_suspend": True, "on_completed": slow.completed}
    with (
        running(setup, access_handler=slow.handler, **options) as served,
        second_process(setup) as other,
        served.connect() as kept,
        served.connect() as waiting,
    ):
        kept.sendall(GET)
        assert read_reply(kept).body == b"old"
        waiting.sendall(GET.replace(b" / ", b" /slow "))
        served.until(lambda: len(slow.parked) == 1)
        clients = Clients(served)
        clients.start()
        clients.wait_for(b"old")

        listener = served.do(served.daemon.quiesce)
        with listener:  # our descriptor; the socket goes on in the other process
            socket.send_fds(other, [b"serve"], [listener.fileno()])
        assert other.recv(100) == b"serving"
        clients.wait_for(b"new")
        served.until(lambda: served.daemon.connections == 2)
        assert clients.answers[-1] == b"new"
        for _ in range(3):  # whom we have is served on
            kept.sendall(GET)
            reply = read_reply(kept)
            assert (reply.body, reply.get("connection")) == (b"old", None)
        slow.parked[0].resume()
        assert read_reply(waiting).body == b"old"

        other.send(b"give")
        word, fds, _, _ = socket.recv_fds(other, 100, 1)
        assert word == b"given"
        served.do(lambda: served.daemon.resume(fds[0]))
        clients.wait_for(b"old")
        kept.sendall(GET)
        assert read_reply(kept).body == b"old"
        clients.end()

        # Stopped, it takes nothing along: the socket still listens for whoever has it.
        with socket.socket(fileno=os.dup(fds[0])) as alive:
            served.stop()
            assert kept.recv(1) == b""
            assert set(slow.ends) == {Termination.COMPLETED_OK}
            with served.connect() as late:
                alive.settimeout(PATIENCE_S)
                taken, _ = alive.accept()
                taken.close()
                assert late.recv(1) == b""


def test_a_drain_that_is_taken_back(setup: Setup) -> None:
    """Drain, then quiesce, then resume: nobody is told to leave any more, and nobody is sent away in the end."""

    def hello(connection: Connection) -> Response | None:
        return Response(b"Hello") if connection.stage is Stage.END else None

    with running(setup, access_handler=hello) as served, served.connect() as kept:
        kept.sendall(GET)
        assert read_reply(kept).get("connection") is None
        served.do(lambda: served.daemon.drain(0.3))
        assert not served.daemon.info.is_accepting
        with served.connect() as waiting:  # in the kernel's queue
            waiting.sendall(GET)
            listener = served.do(served.daemon.quiesce)
            served.do(lambda: served.daemon.resume(listener))
            assert served.daemon.info.is_accepting
            reply = read_reply(waiting)
            assert (reply.body, reply.get("connection")) == (b"Hello", None)
            threading.Event().wait(0.5)  # the drain's time; nothing happens, and that is what is shown
            for sock in (kept, waiting):
                sock.sendall(GET)
                reply = read_reply(sock)
                assert (reply.body, reply.get("connection")) == (b"Hello", None)


def test_a_drain_that_is_over_and_taken_back(setup: Setup) -> None:
    """The same when everybody has left already."""
    with running(setup, lambda request: Response(b"Hello")) as served:
        with served.connect() as sock:
            sock.sendall(GET)
            read_reply(sock)
            served.do(lambda: served.daemon.drain(PATIENCE_S))
            sock.sendall(GET)
            assert read_reply(sock).get("connection") == "close"
            assert sock.recv(1) == b""
        assert served.do(lambda: served.daemon.wait_drained(PATIENCE_S))
        listener = served.do(served.daemon.quiesce)
        served.do(lambda: served.daemon.resume(listener))
        with served.connect() as sock:
            for _ in range(2):
                sock.sendall(GET)
                reply = read_reply(sock)
                assert (reply.body, reply.get("connection")) == (b"Hello", None)
