"""A small server that does right, and does wrong on request: what the load client is tested against."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from types import TracebackType
from urllib.parse import parse_qs

from load.traffic import pattern

Misdeed = Callable[["Exchange"], bool]


class Exchange:
    """One request, read whole, and the means to answer it well or badly."""

    def __init__(
        self, sock: socket.socket, method: str, target: str, nonce: str, body: bytes, close: bool
    ) -> None:
        self.sock = sock
        self.method = method
        self.path, _, query = target.partition("?")
        self.query = {name: values[0] for name, values in parse_qs(query).items()}
        self.nonce = nonce
        self.body = body
        self.close = close

    def body_of(self, payload: bytes) -> bytes:
        return f"v1 {self.nonce} 1\n".encode() + payload

    def head_of(self, body: bytes, status: str = "200 OK", framing: str = "") -> bytes:
        framing = framing or f"Content-Length: {len(body)}"
        close = "Connection: close\r\n" if self.close else ""
        return (
            f"HTTP/1.1 {status}\r\nX-Release: v1\r\nX-Length: {len(body)}\r\n"
            f"X-Checksum: {zlib.crc32(body):08x}\r\n{framing}\r\n{close}\r\n"
        ).encode()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class FakeServer:
    """Serves on 127.0.0.1; ``misdeed(exchange)`` may answer by itself, and returns True to have the
    connection closed.

    Attributes:
        written: Tokens as an application would write them down.
        target: Where it listens.
    """

    def __init__(self, misdeed: Misdeed | None = None, *, forget: bool = False, copies: int = 1) -> None:
        self.misdeed = misdeed
        self.forget = forget
        self.copies = copies
        self.written: list[str] = []
        self.seen = 0
        self._held: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> FakeServer:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._begin(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only here is shutdown() of a listener right: nobody shares it, and it wakes the accepting thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._held:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _begin(self, what: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=what, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(sock)
            self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream, contextlib.suppress(OSError):
            while (exchange := read_request(sock, stream)) is not None:
                self.seen += 1
                if self.misdeed is not None and self.misdeed(exchange):
                    return
                self._answer(exchange)
                if exchange.close:
                    return

    def _answer(self, exchange: Exchange) -> None:
        payload, framing = b"hello", ""
        if exchange.path == "/post":
            token = exchange.body.decode()
            if not self.forget:
                self.written += [token] * self.copies
            payload = b"stored " + exchange.body
        elif exchange.path == "/upload":
            payload = f"{len(exchange.body)} {zlib.crc32(exchange.body):08x}".encode()
        elif exchange.path == "/download":
            payload = pattern(int(exchange.query["bytes"]))
            framing = "Transfer-Encoding: chunked" if exchange.query["framing"] == "chunked" else ""
        body = exchange.body_of(payload)
        head = exchange.head_of(body, framing=framing)
        exchange.sock.sendall(head + (chunks(body) if framing else body))


def chunks(body: bytes) -> bytes:
    parts = [body[at : at + 10000] for at in range(0, len(body), 10000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def read_request(sock: socket.socket, stream) -> Exchange | None:  # type: ignore[no-untyped-def]
    line = stream.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ")
    headers = {}
    while header := stream.readline().strip():
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    close = headers.get("connection", "").lower() == "close"
    return Exchange(sock, method, target, headers.get("x-nonce", ""), body, close)
