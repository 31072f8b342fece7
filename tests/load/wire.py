"""One HTTP/1.1 client connection on a raw non-blocking socket; says exactly what went wrong."""

from __future__ import annotations

import asyncio
import socket
import time
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from load.report import Trouble

T = TypeVar("T")


class Let(Exception):
    """The server let us down; ``trouble`` says how."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        super().__init__(f"{trouble}: {detail}")
        self.trouble = trouble
        self.detail = detail


@dataclass
class Answer:
    """One response, whole."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    closes: bool = False
    release: str = field(init=False, default="")

    def check(self, nonce: str) -> bytes:
        """Compare the body with what the headers promise; return it without its first line.

        Every application of ours answers ``RELEASE NONCE PID\\n`` and then its payload, and sends the
        release, the length and the CRC-32 of the whole body as headers.
        """
        if not 200 <= self.status < 300:
            raise Let(Trouble.STATUS, f"{self.status} {self.body[:200]!r}")
        head = self.headers
        if str(len(self.body)) != head.get("x-length", ""):
            raise Let(Trouble.WRONG_BODY, f"{len(self.body)} bytes, X-Length {head.get('x-length')}")
        if f"{zlib.crc32(self.body):08x}" != head.get("x-checksum", ""):
            raise Let(Trouble.WRONG_BODY, f"the checksum does not agree: {self.body[:100]!r}")
        first, _, rest = self.body.partition(b"\n")
        words = first.decode("latin-1").split(" ")
        if len(words) != 3 or words[0] != head.get("x-release") or words[1] != nonce:
            raise Let(Trouble.WRONG_BODY, f"{first!r} answers nonce {nonce}, release {head.get('x-release')}")
        self.release = words[0]
        return rest


class Wire:
    """A connection to ``target``; one request at a time, or several written at once (pipelining)."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.sock: socket.socket | None = None
        self.buffer = bytearray()
        self.served = 0
        self.release = ""
        self.began = 0.0
        self.sent_at = 0.0
        self.loop = asyncio.get_running_loop()

    async def connect(self, receive_buffer: int = 0) -> None:
        """Open the connection.  ``began`` is the moment before connect()."""
        family, address = parse_target(self.target)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = time.monotonic()
        self.served = 0
        self.release = ""
        self.buffer.clear()
        try:
            await self._connect(sock, address)
        except TimeoutError:
            sock.close()
            raise Let(Trouble.CONNECT_TIMEOUT, f"no connection in {self.timeout_s} s") from None
        except OSError as exc:
            sock.close()
            # ENOENT: the path of a unix socket is gone, which is a refusal as well.
            raise Let(Trouble.REFUSED, str(exc)) from None
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    async def _connect(self, sock: socket.socket, address: tuple[str, int] | str) -> None:
        async with asyncio.timeout(self.timeout_s):
            while True:
                try:
                    return await self.loop.sock_connect(sock, address)
                except BlockingIOError:
                    # A unix listener whose queue is full says EAGAIN and has no event for "there is room": a
                    # blocking client would wait in the kernel.  Waiting here is what that client does.
                    await asyncio.sleep(0.005)

    def fin_seen(self) -> bool:
        """True when the server has closed this idle connection (what every decent client checks)."""
        assert self.sock is not None
        try:
            waiting = self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if waiting:
            raise Let(Trouble.BAD_ANSWER, "bytes that nobody asked for")
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    async def send(self, data: bytes) -> None:
        """Begin a request: send all of this."""
        self.sent_at = time.monotonic()
        await self.send_more(data)

    async def send_more(self, data: bytes) -> None:
        """Send all of it."""
        assert self.sock is not None
        try:
            await self._bounded(self.loop.sock_sendall(self.sock, data))
        except OSError as exc:
            raise self.lost(str(exc)) from None

    def lost(self, detail: str) -> Let:
        """The right name for a connection that broke before its answer began."""
        if self.served:
            return Let(Trouble.KEPT_RESET, f"{detail}, after {self.served} answers on this connection")
        return Let(Trouble.RESET, detail)

    async def answer(self, pace: Pace | None = None) -> Answer:
        """Read one response; interim ones (1xx) are skipped."""
        while True:
            head = await self._head()
            status, headers = parse_head(head)
            if status >= 200:
                break
        found = Answer(status, headers)
        found.closes = headers.get("connection", "").lower() == "close"
        if status not in (204, 304):
            found.body = await self._body(headers, pace)
            if "content-length" not in headers and "transfer-encoding" not in headers:
                found.closes = True
        self.served += 1
        return found

    async def _head(self) -> bytes:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > 65536:
                raise Let(Trouble.BAD_ANSWER, f"endless header: {bytes(self.buffer[:80])!r}")
            try:
                data = await self._recv(65536)
            except OSError as exc:
                raise self.lost(str(exc)) from None
            if not data:
                if self.buffer:
                    raise Let(Trouble.SHORT_BODY, f"closed inside the header: {bytes(self.buffer[:80])!r}")
                if self.served:
                    raise self.lost("closed instead of an answer")
                raise Let(Trouble.NO_ANSWER, "closed without an answer")
            self.buffer += data
        head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        return head

    async def _body(self, headers: dict[str, str], pace: Pace | None) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return await self._chunked(pace)
        if "content-length" in headers:
            return await self._exactly(int(headers["content-length"]), pace)
        body = bytes(self.buffer)
        self.buffer.clear()
        while data := await self._more(pace, may_end=True):
            body += data
        return body

    async def _exactly(self, count: int, pace: Pace | None) -> bytes:
        while len(self.buffer) < count:
            data = await self._more(pace)
            self.buffer += data
        body = bytes(self.buffer[:count])
        del self.buffer[:count]
        return body

    async def _line(self, pace: Pace | None) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            self.buffer += await self._more(pace)
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    async def _chunked(self, pace: Pace | None) -> bytes:
        parts = []
        while True:
            line = await self._line(pace)
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise Let(Trouble.BAD_ANSWER, f"chunk size {line[:40]!r}") from None
            if size == 0:
                break
            parts.append(await self._exactly(size, pace))
            if await self._line(pace):
                raise Let(Trouble.BAD_ANSWER, "a chunk is longer than it said")
        while await self._line(pace):
            pass  # trailers
        return b"".join(parts)

    async def _more(self, pace: Pace | None, *, may_end: bool = False) -> bytes:
        """The next bytes of a body; its end before the promised end is SHORT_BODY."""
        try:
            data = await self._recv(pace.step if pace is not None else 262144)
        except OSError as exc:
            raise Let(Trouble.RESET, f"inside the body: {exc}") from None
        if pace is not None:
            await pace.took(len(data))
        if not data and not may_end:
            raise Let(Trouble.SHORT_BODY, f"closed inside the body, {len(self.buffer)} bytes read")
        return data

    async def _recv(self, count: int) -> bytes:
        assert self.sock is not None
        return await self._bounded(self.loop.sock_recv(self.sock, count))

    async def _bounded(self, what: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await what
        except TimeoutError:
            # TimeoutError is an OSError: it must not pass for a broken connection.
            raise Let(Trouble.TIMEOUT, f"nothing for {self.timeout_s} s") from None


class Pace:
    """Spreads ``size`` bytes over ``seconds``, until somebody is in a hurry."""

    def __init__(self, seconds: float, size: int, hurry: asyncio.Event, steps: int = 24) -> None:
        self.pause_s = seconds / steps
        self.step = max(1, size // steps)
        self.hurry = hurry

        self.taken = 0

    async def wait(self) -> None:
        """Pause as long as one step is to take."""
        if not self.hurry.is_set():
            await pause(self.hurry, self.pause_s)

    async def took(self, count: int) -> None:
        """Pause after each whole step, in however many pieces it came."""
        self.taken += count
        if self.taken >= self.step:
            self.taken -= self.step
            await self.wait()


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Think for so long, or until ``stop``."""
    if seconds <= 0 or stop.is_set():
        return
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(seconds, wake)
    waiter = loop.create_task(stop.wait())
    waiter.add_done_callback(lambda _: wake())
    try:
        await woken
    finally:
        timer.cancel()
        waiter.cancel()


def parse_target(target: str) -> tuple[socket.AddressFamily, tuple[str, int] | str]:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:/path`` as (family, address)."""
    if target.startswith("unix:"):
        return socket.AF_UNIX, target.removeprefix("unix:")
    host, _, port = target.rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host.strip("[]"), int(port))
    return socket.AF_INET, (host, int(port))


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case, the last of a name wins)."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise Let(Trouble.BAD_ANSWER, f"not a status line: {lines[0][:80]!r}")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Let(Trouble.BAD_ANSWER, f"not a header: {line[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers
