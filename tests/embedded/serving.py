"""Equipment: an embedded daemon in every mode, turned by a thread of the test's where it has none."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from quiesce import Daemon, Mode, Poller, mhd
from wire.serving import PATIENCE_S, Reply, read_reply

T = TypeVar("T")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Setup(NamedTuple):
    """One way to run a daemon."""

    mode: Mode
    poller: Poller
    turn: str = ""  # external: how it is turned
    flags: int = 0  # the same for MHD_start_daemon
    pool: int = 0

    def name(self) -> str:
        return "-".join(filter(None, (self.mode.name.lower(), self.poller.value, self.turn)))

    @property
    def arguments(self) -> dict[str, Any]:
        return {"mode": self.mode, "poller": self.poller}


F = mhd.MHD_FLAG
_I, _T = F.MHD_USE_INTERNAL_POLLING_THREAD, F.MHD_USE_THREAD_PER_CONNECTION
EXTERNAL = [
    Setup(Mode.EXTERNAL, Poller.SELECT, "run_from_select"),
    Setup(Mode.EXTERNAL, Poller.SELECT, "run"),
    Setup(Mode.EXTERNAL, Poller.SELECT, "run_wait"),
    Setup(Mode.EXTERNAL, Poller.POLL, "run_wait", F.MHD_USE_POLL),
    Setup(Mode.EXTERNAL, Poller.EPOLL, "run", F.MHD_USE_EPOLL),
    Setup(Mode.EXTERNAL, Poller.EPOLL, "run_from_select", F.MHD_USE_EPOLL),
    Setup(Mode.EXTERNAL, Poller.EPOLL, "run_wait", F.MHD_USE_EPOLL),
]
THREADED = [
    Setup(Mode.THREAD, Poller.SELECT, flags=_I),
    Setup(Mode.THREAD, Poller.POLL, flags=_I | F.MHD_USE_POLL),
    Setup(Mode.THREAD, Poller.EPOLL, flags=_I | F.MHD_USE_EPOLL),
    Setup(Mode.POOL, Poller.SELECT, flags=_I, pool=4),
    Setup(Mode.POOL, Poller.POLL, flags=_I | F.MHD_USE_POLL, pool=4),
    Setup(Mode.POOL, Poller.EPOLL, flags=_I | F.MHD_USE_EPOLL, pool=4),
    Setup(Mode.THREAD_PER_CONNECTION, Poller.SELECT, flags=_T | _I),
    Setup(Mode.THREAD_PER_CONNECTION, Poller.POLL, flags=_T | _I | F.MHD_USE_POLL),
]


class Turner:
    """The application's own loop: one thread, which alone touches an external daemon."""

    def __init__(self, daemon: Daemon, how: str) -> None:
        self._daemon = daemon
        self._how = how
        self._tasks: list[Callable[[], None]] = []
        self._ours, self._theirs = socket.socketpair()
        self._over = False
        self.paused = False
        self._thread = threading.Thread(target=self._run, name="turner")
        self._thread.start()

    def _run(self) -> None:
        if self._daemon.info.poller is Poller.POLL:
            self._run_poll()
        else:
            self._run_select()

    def _run_poll(self) -> None:
        """There are no sets for a select of ours, so the daemon waits, and is woken for the test's orders."""
        while not self._over:
            if self.paused:
                self._ours.recv(1000)
            else:
                self._daemon.run_wait(None)
            self._do_tasks()

    def _do_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task()

    def _run_select(self) -> None:
        daemon = self._daemon
        while not self._over:
            reading, writing = daemon.get_fdset()
            timeout = daemon.get_timeout()
            if self.paused:
                reading, writing, timeout = frozenset(), frozenset(), None
            # The daemon's own wait is tried too, but without leaving the test's orders unheard.
            readable, writable, _ = select.select([*reading, self._ours], writing, [], timeout)
            if self._ours in readable:
                self._ours.recv(1000)
                self._do_tasks()
            if self.paused or self._over:
                continue
            if self._how == "run_from_select":
                daemon.run_from_select([fd for fd in readable if fd is not self._ours], writable)
            elif self._how == "run":
                daemon.run()
            else:
                daemon.run_wait(0)

    def do(self, what: Callable[[], T]) -> T:
        if threading.current_thread() is self._thread:
            return what()
        done = threading.Event()
        result: list[T] = []
        error: list[BaseException] = []

        def task() -> None:
            try:
                result.append(what())
            except BaseException as exc:
                error.append(exc)
            done.set()

        self._tasks.append(task)
        if self._daemon.info.poller is Poller.POLL:
            self._daemon.wake()
        self._theirs.send(b"x")
        assert done.wait(PATIENCE_S)
        if error:
            raise error[0]
        return result[0]

    def close(self, last: Callable[[], None]) -> None:
        """Turn no more, after ``last``."""

        def end() -> None:
            self._over = True
            last()

        self.do(end)
        self._thread.join(PATIENCE_S)
        self._ours.close()
        self._theirs.close()


class Running:
    """A started daemon.  ``do`` runs something in the thread that may."""

    def __init__(self, setup: Setup, daemon: Daemon) -> None:
        self.setup = setup
        self.daemon = daemon
        self.turner = Turner(daemon, setup.turn) if setup.turn else None
        self._sockets: list[socket.socket] = []

    def do(self, what: Callable[[], T]) -> T:
        return what() if self.turner is None else self.turner.do(what)

    def pause(self, paused: bool) -> None:
        """Let nobody turn an external daemon, or go on."""
        turner = self.turner
        assert turner is not None
        turner.do(lambda: setattr(turner, "paused", paused))

    def connect(self, *, receive_buffer: int = 0, patience_s: float = PATIENCE_S) -> socket.socket:
        sock = socket.socket()
        self._sockets.append(sock)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(patience_s)
        sock.connect(("127.0.0.1", self.daemon.info.port))
        return sock

    def ask(self, request: bytes = GET, **options: Any) -> Reply:
        with self.connect() as sock:
            sock.sendall(request)
            return read_reply(sock, **options)

    def until(self, fact: Callable[[], bool]) -> None:
        """Wait for a fact, looked at again and again; a time limit only bounds a failing test."""
        for _ in range(int(PATIENCE_S / 0.005)):
            if fact():
                return
            threading.Event().wait(0.005)
        raise AssertionError("the fact never held")

    def stop(self) -> None:
        if self.turner is None:
            self.daemon.stop()
        else:
            self.turner.close(self.daemon.stop)
            self.turner = None

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.stop()


@contextlib.contextmanager
def running(setup: Setup, *handler: Any, **options: Any) -> Iterator[Running]:
    """``quiesce.Daemon``."""
    made = Running(setup, Daemon(*handler, **setup.arguments, **options).start())
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def running_mhd(
    setup: Setup,
    dh: Any,
    *options: Any,
    flags: int = 0,
    port: int = 0,
    apc: Any = None,
    apc_cls: Any = None,
    dh_cls: Any = None,
) -> Iterator[Running]:
    """The same by MHD_start_daemon; ``options`` without their end."""
    pool = (mhd.MHD_OPTION_THREAD_POOL_SIZE, setup.pool) if setup.pool else ()
    daemon = mhd.MHD_start_daemon(
        setup.flags | flags, port, apc, apc_cls, dh, dh_cls, *pool, *options, mhd.MHD_OPTION_END
    )
    assert daemon is not None
    made = Running(setup, daemon)
    try:
        yield made
    finally:
        made.close()
