"""The examples of the library run, and do what their first lines say."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from wire.serving import PATIENCE_S, Reply, read_reply, read_to_end

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "embedded"


class Example:
    """One of them, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = self.next_port()

    def next_port(self) -> int:
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        return int(found[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def ask(self, request: str, body: bytes = b"", headers: str = "") -> Reply:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        with self.connect() as sock:
            sock.sendall(f"{request} HTTP/1.1\r\nHost: a\r\n{length}{headers}\r\n".encode() + body)
            return read_reply(sock, head_only=request.startswith("HEAD"))


@contextlib.contextmanager
def running(name: str, *arguments: str, end: bool = True) -> Iterator[Example]:
    command = [sys.executable, str(FOLDER / name), "0", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Example(process)
            if end:
                process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_hello() -> None:
    with running("hello.py") as example:
        assert example.ask("GET /").body == b"Hello, world\n"
        assert example.ask("GET /other").status == 404


def test_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with running("files.py", str(tmp_path)) as example:
        assert example.ask("GET /file").body == b"0123456789"
        assert example.ask("HEAD /file").get("content-length") == "10"
        part = example.ask("GET /file", headers="Range: bytes=2-4\r\n")
        assert (part.status, part.body, part.get("content-range")) == (206, b"234", "bytes 2-4/10")
        assert example.ask("GET /file", headers="Range: bytes=20-\r\n").status == 416
        assert example.ask("GET /../etc/passwd").status == 404
        assert example.ask("DELETE /file").status == 405
        assert len(os.listdir(f"/proc/{example.process.pid}/fd")) < 20  # each file was closed again


def test_c_names() -> None:
    with running("c_names.py") as example:
        assert example.ask("GET /a/b?c=d").body == b"GET /a/b\n"
        assert example.ask("PUT /", b"x" * 100_000).body == b"x" * 100_000


def test_uploads() -> None:
    body = b"x" * 3_000_000
    with running("uploads.py") as example:
        reply = example.ask("PUT /big", body)
        assert (reply.status, reply.body.decode().strip()) == (201, hashlib.sha256(body).hexdigest())
        assert example.ask("GET /").status == 405
        refused = example.ask("PUT /", headers="Content-Length: 99999999999\r\nExpect: 100-continue\r\n")
        assert refused.status == 413


def test_streaming() -> None:
    with running("streaming.py") as example, example.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, _, rest = read_to_end(sock).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    body = b""
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert body.endswith(b"line 100000\n")
    assert rest == b"0\r\nX-CRC32: %08x\r\n\r\n" % zlib.crc32(body)


def test_external_loop() -> None:
    with running("external_loop.py", end=False) as example:
        assert example.process.stdin
        assert example.ask("GET /").body == b"0 lines were typed\n"
        example.process.stdin.close()


def test_thread_pool() -> None:
    with running("thread_pool.py", "2") as example:
        assert example.ask("GET /").body.startswith(b"from quiesce-poll-")


def test_suspend_and_resume() -> None:
    with running("suspend_resume.py") as example, example.connect() as waiting:
        waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(read_reply(waiting).body))
        reader.start()
        while example.ask("POST /news", b"news").body != b"told 1\n":
            pass  # it has not arrived yet
        reader.join(PATIENCE_S)
        assert answers == [b"news"]


def test_hand_over() -> None:
    with running("hand_over.py", end=False) as example, example.connect() as old:
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        old.sendall(request)
        first = read_reply(old).body
        assert first == b"served by %d\n" % example.process.pid
        example.process.send_signal(signal.SIGHUP)
        assert example.next_port() == example.port  # the newer one says that it serves
        newer = example.ask("GET /").body
        assert newer != first
        old.sendall(request)
        assert read_reply(old).body == first  # its own connections the old one serves to their end
        old.close()
        assert example.process.wait(PATIENCE_S) == 0
        pidfd = os.pidfd_open(int(newer.split()[-1]))
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)


def test_live_hand_over() -> None:
    with running("live_hand_over.py", end=False) as example, example.connect() as client:
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        client.sendall(request)
        first = read_reply(client).body
        client.sendall(request[:10])  # half a request goes along
        example.process.send_signal(signal.SIGHUP)
        assert example.next_port() == example.port
        assert example.process.wait(PATIENCE_S) == 0  # at once: it has nobody left
        client.sendall(request[10:])
        second = read_reply(client).body
        assert second != first
        client.sendall(request)
        assert read_reply(client).body == second == example.ask("GET /").body
        pidfd = os.pidfd_open(int(second.split()[-1]))
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        os.close(pidfd)
