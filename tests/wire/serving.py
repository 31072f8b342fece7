"""Serving in the test's own process: by a thread with the real loop, or step by step without one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from quiesce import Request, Response
from quiesce.worker import daemon as engine
from quiesce.worker.apps.base import App
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.complaints import to_stderr
from quiesce.worker.core.connection import TRANSITIONS, State
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.base import nothing
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.net.alone import Alone
from quiesce.worker.net.direct import Direct
from quiesce.worker.net.stream import Connection

T = TypeVar("T")
PATIENCE_S = 20.0  # bounds a failing test


class WatchedConnection(Connection):
    """Notes every step that is in no row of the table."""

    __slots__ = ("_now",)
    steps: list[tuple[State, State]] = []

    @property  # type: ignore[override]
    def state(self) -> State:
        return self._now

    @state.setter
    def state(self, new: State) -> None:
        old = getattr(self, "_now", None)
        if old is not None and old is not new:
            WatchedConnection.steps.append((old, new))
        self._now = new


class WatchedAlone(Alone):
    """The same for an inline connection."""

    __slots__ = ("_now",)
    state = WatchedConnection.state  # type: ignore[assignment]


class WatchedDirect(Direct):
    """The same for one of a native application."""

    __slots__ = ("_now",)
    state = WatchedConnection.state  # type: ignore[assignment]


@contextlib.contextmanager
def watched_connections() -> Iterator[None]:
    """Engines that are made meanwhile have watched connections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Connection", WatchedConnection)
        patch.setattr(engine, "Alone", WatchedAlone)
        patch.setattr(engine, "Direct", WatchedDirect)
        yield


def steps_outside_the_table() -> list[tuple[State, State]]:
    allowed = {(old, new) for old, row in TRANSITIONS.items() for new, _ in row.values()}
    taken, WatchedConnection.steps = WatchedConnection.steps, []
    # Two events in one turn, of which the shell writes only the outcome.
    return [pair for pair in taken if pair not in allowed]


class Reply:
    """One response, read from a socket."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, rest: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.rest = rest  # read and not this response's

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} twice"
        return values[0] if values else None


def read_reply(sock: socket.socket, *, head_only: bool = False, before: bytes = b"") -> Reply:
    """Read exactly one response; EOF in the middle raises EOFError."""
    data = before

    def more() -> None:
        nonlocal data
        piece = sock.recv(65536)
        if not piece:
            raise EOFError(f"the server closed after {data[-200:]!r}")
        data += piece

    while b"\r\n\r\n" not in data:
        more()
    head, _, data = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    headers = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines[1:]]
    named = {name.lower(): value for name, value in headers}
    body = b""
    if head_only or status in (100, 204, 304):
        pass
    elif "content-length" in named:
        length = int(named["content-length"])
        pieces = [data]
        have = len(data)
        while have < length:
            piece = sock.recv(1 << 18)
            if not piece:
                raise EOFError(f"{have} of {length} bytes")
            pieces.append(piece)
            have += len(piece)
        data = b"".join(pieces)
        body, data = data[:length], data[length:]
    elif named.get("transfer-encoding") == "chunked":
        while True:
            while b"\r\n" not in data:
                more()
            size_line, _, data = data.partition(b"\r\n")
            size = int(size_line, 16)
            while len(data) < size + 2:
                more()
            assert data[size : size + 2] == b"\r\n"
            body, data = body + data[:size], data[size + 2 :]
            if not size:
                break
    else:
        while piece := sock.recv(1 << 18):
            data += piece
        body, data = data, b""
    return Reply(status, headers, body, data)


def read_to_end(sock: socket.socket) -> bytes:
    """Everything up to the server's FIN; a reset raises."""
    pieces = []
    while piece := sock.recv(1 << 18):
        pieces.append(piece)
    return b"".join(pieces)


class Served:
    """A daemon in a thread, on a loopback listener.  ``do`` runs something in the loop's thread."""

    def __init__(self, app: App, *, loop: Any = None, **options: Any) -> None:
        self.loop = loop or EpollLoop()
        self.daemon = Daemon(app, self.loop, **options)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = listener.getsockname()
        self.daemon.add_listener("http", listener)
        self.daemon.accept()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self.loop.run, name="serving")
        self._thread.start()

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        self._sockets.append(sock)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.address)
        return sock

    def ask(self, request: bytes, **options: Any) -> Reply:
        with self.connect() as sock:
            sock.sendall(request)
            return read_reply(sock, **options)

    def do(self, what: Callable[[], T]) -> T:
        done = threading.Event()
        result: list[T] = []
        error: list[BaseException] = []

        def call() -> None:
            try:
                result.append(what())
            except BaseException as exc:
                error.append(exc)
            done.set()

        self.loop.call_soon_threadsafe(call)
        assert done.wait(PATIENCE_S), "the loop does not turn"
        if error:
            raise error[0]
        return result[0]

    def until(self, fact: Callable[[], bool]) -> None:
        """Wait until a fact holds, looked at in every turn of the loop."""
        done = threading.Event()

        def look() -> None:
            if fact():
                done.set()
            else:
                self.loop.call_at(self.loop.now() + 0.002, look)

        self.loop.call_soon_threadsafe(look)
        assert done.wait(PATIENCE_S), "the fact never held"

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.do(self.daemon.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.loop.close()


@contextlib.contextmanager
def serving(app: App | Callable[[Request], Response], **options: Any) -> Iterator[Served]:
    served = Served(NativeApp(app) if not hasattr(app, "handle") else app, **options)
    try:
        yield served
    finally:
        served.close()


class NoTimer:
    def cancel(self) -> None: ...


class StillLoop:
    """A loop that never turns: the test calls what would be called."""

    slot = None
    turned: Callable[[], None] = staticmethod(nothing)

    def __init__(self) -> None:
        self.complain = to_stderr
        self.soon: list[Callable[[], None]] = []
        self.callbacks: dict[int, Callable[[int], None]] = {}

    def now(self) -> float:
        return 0.0

    def watch(self, fd: int, callback: Callable[[int], None], events: int = 1) -> None:
        self.callbacks[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        assert fd in self.callbacks

    def unwatch(self, fd: int) -> None:
        self.callbacks.pop(fd, None)

    def call_at(self, when: float, callback: Callable[[], None]) -> NoTimer:
        return NoTimer()

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def descriptors(self) -> list[int]:
        return []

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        self.turned()


class Bench:
    """One connection over a real socket pair, read when the test says so: every split of the input is exact."""

    def __init__(self, app: App, limits: Limits = Limits()) -> None:  # noqa: B008
        self.loop = StillLoop()
        self.daemon = Daemon(app, self.loop, limits=limits)  # type: ignore[arg-type]
        self.client, server = socket.socketpair()
        self.client.setblocking(False)
        self.fd = server.fileno()
        self.daemon.add_connection(server, peer=("192.0.2.1", 5), local=("192.0.2.2", 80))

    def send(self, data: bytes) -> None:
        """Send, and let the daemon read it in one piece."""
        if self.fd not in self.loop.callbacks:
            return  # it has closed
        try:
            self.client.sendall(data)
        except BrokenPipeError:
            return
        self.ready()

    def ready(self) -> None:
        callback = self.loop.callbacks.get(self.fd)
        if callback is not None:
            callback(1)
        self.loop.turn()

    def read(self) -> bytes:
        """What was sent to the client so far; ``b"EOF"`` is appended when it was our last."""
        out = b""
        while True:
            try:
                data = self.client.recv(1 << 16)
            except BlockingIOError:
                return out
            except ConnectionResetError:
                return out + b"RESET"
            if not data:
                return out + b"EOF"
            out += data

    def close(self) -> None:
        self.client.close()
        self.daemon.close()


@contextlib.contextmanager
def bench(app: App, limits: Limits = Limits()) -> Iterator[Bench]:  # noqa: B008
    made = Bench(app, limits)
    try:
        yield made
    finally:
        made.close()
