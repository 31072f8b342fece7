"""A supervisor's end of a channel, and a real worker process at the other.  For tests of worker processes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import quiesce
from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel, Incoming, make_pair
from quiesce.shared.errors import PeerClosed
from quiesce.shared.scoreboard import Scoreboard

PACKAGE = Path(quiesce.__file__).absolute().parent
BOOTSTRAP = str(PACKAGE / "worker" / "bootstrap.py")
PYTHON = os.environ.get("QUIESCE_TEST_PYTHON", sys.executable)  # of the workers; it must have quiesce
PATIENCE_S = 20.0  # bounds a failing test; nothing waits for it to pass

M = TypeVar("M")


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


def roots() -> str:
    """What the supervisor lends to releases without quiesce."""
    import httptools

    return os.pathsep.join((str(PACKAGE.parent), str(Path(httptools.__file__).parent.parent)))


class FakeSupervisor:
    """Starts one worker and talks to it.  A context manager: whatever happened, nothing is left behind."""

    def __init__(
        self,
        app_dir: Path,
        *,
        python: str = PYTHON,
        flags: Sequence[str] = ("-P",),
        version: str | None = None,
        env: Mapping[str, str] | None = None,
        lend: str | None = None,
        bootstrap: str = BOOTSTRAP,
        preexec_fn: Any = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        ours, theirs = make_pair()
        self.app_dir = app_dir
        self.channel = Channel(ours)
        self.capture = os.memfd_create("capture")
        out = os.open(f"/proc/self/fd/{self.capture}", os.O_WRONLY | os.O_APPEND)
        version = version or "{}.{}".format(*sys.version_info)
        self.board = Scoreboard.create()
        self.listeners: dict[str, socket.socket] = {}
        self.process = subprocess.Popen(
            [python, *flags, bootstrap, str(theirs.fileno()), version, roots() if lend is None else lend],
            pass_fds=[theirs.fileno(), *pass_fds],
            cwd=app_dir,
            env=dict(os.environ) | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        theirs.close()
        os.close(out)

    def __enter__(self) -> FakeSupervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print("--- output of the worker ---", self.output(), "---", sep="\n")
        self.channel.close()
        self.board.close()
        for sock in self.listeners.values():
            sock.close()
        os.close(self.pidfd)
        os.close(self.capture)

    # -- messages ------------------------------------------------------------------------

    def send(self, message: msg.Message, fds: Sequence[int] = ()) -> int:
        """Say something; the descriptors stay the caller's."""
        return self.channel.send(message, fds)

    def next(self, timeout_s: float = PATIENCE_S) -> Incoming:
        """The worker's next message, whatever it is."""
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while (incoming := self.channel.receive()) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no message in {timeout_s} s; its output: {self.output()}"
            poll.poll(1000 * left)
        return incoming

    def expect(self, kind: type[M], *, re: int | None = None) -> M:
        """The next message, which must be of this kind (and answer that one).

        ``handed-over`` follows each quiesce and drain; who does not ask for it does not want it.
        """
        incoming = self.next()
        while isinstance(incoming.message, msg.HandedOver) and kind is not msg.HandedOver:
            incoming = self.next()
        assert isinstance(incoming.message, kind), f"{incoming} instead of {kind.__name__}: {self.output()}"
        if re is not None:
            assert incoming.re == re
        return incoming.message

    def expect_eof(self) -> None:
        """Nothing more comes, because nobody holds the other end."""
        try:
            incoming = self.next()
        except PeerClosed:
            return
        raise AssertionError(f"{incoming} instead of EOF")

    def take_over(self, first_seq: int = 1 << 32) -> None:
        """Be another supervisor, on the same channel: this one died, and its end lay in a descriptor store."""
        ours = socket.socket(fileno=os.dup(self.channel.fileno()))
        self.channel.close()
        self.channel = Channel(ours, max_fds=0, first_seq=first_seq)

    def identify(self) -> msg.Hello:
        """Who the worker says it is.  What it had said before is stale, and skipped."""
        asked = self.send(msg.Identify())
        while (incoming := self.next()).re != asked:
            pass
        assert isinstance(incoming.message, msg.Hello)
        return incoming.message

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Any bytes in a packet, as a supervisor of another version may send."""
        with socket.socket(fileno=os.dup(self.channel.fileno())) as sock:
            socket.send_fds(sock, [data], list(fds))

    # -- the worker's life ----------------------------------------------------------------

    def configure(self, app: str, **fields: Any) -> None:
        """Say what to serve; every field of :class:`Configure` has a default here."""
        defaults: dict[str, Any] = {
            "name": "shop",
            "release": "r42",
            "label": "v1",
            "worker": "r42/1",
            "interface": "auto",
            "app_dir": str(self.app_dir),
            "threads": 2,
            "start_timeout_s": 30.0,
            "exit_timeout_s": 5.0,
        }
        self.send(msg.Configure(app=app, **(defaults | fields)))

    def start(self, app: str, **fields: Any) -> msg.Ready:
        """Hello, scoreboard, a listener, configure, ready."""
        self.expect(msg.Hello)
        self.send(msg.UseScoreboard(3), [self.board.fd])
        self.listen("http")
        self.configure(app, **fields)
        return self.expect(msg.Ready)

    def listen(self, name: str) -> tuple[str, int]:
        """Make a listener, hand it in, return its address."""
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listeners[name] = sock
        self.send(msg.Listen([name]), [sock.fileno()])
        return self.address(name)

    def address(self, name: str = "http") -> tuple[str, int]:
        address: tuple[str, int] = self.listeners[name].getsockname()
        return address

    def accept(self) -> None:
        self.expect(msg.Accepting, re=self.send(msg.Accept()))

    def connect(self, name: str = "http") -> socket.socket:
        """A client's connection."""
        return socket.create_connection(self.address(name), timeout=PATIENCE_S)

    def get(self, path: str = "/", name: str = "http") -> Answer:
        """One request on one connection."""
        with self.connect(name) as sock:
            return ask(sock, path, close=True)

    def probe(self, path: str = "/", **fields: Any) -> Answer:
        """One request over a socket pair."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.send(msg.Probe(**fields), [theirs.fileno()])
            theirs.close()
            ours.settimeout(PATIENCE_S)
            return ask(ours, path, close=True)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status, once it has left."""
        return self.process.wait(timeout_s)

    def shutdown(self) -> int:
        self.send(msg.Shutdown())
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def output(self) -> str:
        """What it has written so far."""
        return os.pread(self.capture, 1 << 20, 0).decode(errors="replace")


def request(
    path: str = "/", *, method: str = "GET", body: bytes = b"", headers: str = "", close: bool = False
) -> bytes:
    """The bytes of a request."""
    if body:
        headers += f"Content-Length: {len(body)}\r\n"
    if close:
        headers += "Connection: close\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode() + body


def ask(sock: socket.socket, path: str = "/", **fields: Any) -> Answer:
    """Send a request and read its response."""
    sock.sendall(request(path, **fields))
    return read_answer(sock)


def read_answer(sock: socket.socket) -> Answer:
    """Read exactly one response (without interim ones): Content-Length, chunked, or up to EOF.

    Not a byte more: what is pipelined behind it stays in the socket.
    """
    status, *lines = _until(sock, b"\r\n\r\n").decode("latin-1").split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    code = int(status.split(" ")[1])
    if "content-length" in headers:
        return Answer(code, headers, _exactly(sock, int(headers["content-length"])))
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(_until(sock, b"\r\n"), 16):
            body += _exactly(sock, size + 2)[:-2]
        _until(sock, b"\r\n")
    elif code not in (204, 304):
        while data := sock.recv(65536):
            body += data
    return Answer(code, headers, body)


def _until(sock: socket.socket, end: bytes) -> bytes:
    """What comes before ``end``, which is read as well."""
    found = b""
    while end not in found:
        seen = sock.recv(65536, socket.MSG_PEEK)
        assert seen, f"EOF after {found!r}"
        whole = found + seen
        stop = whole.find(end)
        take = len(seen) if stop < 0 else stop + len(end) - len(found)
        found += sock.recv(take)
    return found[: -len(end)]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        assert part, f"EOF after {len(data)} of {size} bytes"
        data += part
    return bytes(data)
