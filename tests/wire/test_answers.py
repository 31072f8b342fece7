"""How responses are framed, and how a connection goes on after them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce import Request, Response
from quiesce.worker.core.limits import Limits
from quiesce.worker.net.exchange import Exchange
from wire.serving import PATIENCE_S, read_reply, read_to_end, serving

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEEP = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def hello(request: Request) -> Response:
    return Response(b"Hello")


def parts(request: Request) -> Response:
    def generate() -> Iterator[bytes]:
        yield b"one"
        yield b""
        yield b"two"

    return Response(generate())


def test_keep_alive_and_its_end() -> None:
    with serving(hello) as served, served.connect() as sock:
        for _ in range(3):
            sock.sendall(GET)
            reply = read_reply(sock)
            assert (reply.status, reply.body, reply.get("Connection")) == (200, b"Hello", None)
        sock.sendall(CLOSE)
        assert read_reply(sock).get("connection") == "close"
        assert sock.recv(1) == b""


@pytest.mark.parametrize(("request_", "connection"), [(OLD, "close"), (OLD_KEEP, "keep-alive")])
def test_http_1_0(request_: bytes, connection: str) -> None:
    with serving(hello) as served, served.connect() as sock:
        sock.sendall(request_)
        assert read_reply(sock).get("connection") == connection
        if connection == "close":
            assert sock.recv(1) == b""
        else:
            sock.sendall(request_)
            assert read_reply(sock).body == b"Hello"


def test_pipelined_requests_are_answered_in_order() -> None:
    def echo(request: Request) -> Response:
        return Response(request.target)

    for threads in (1, 4):
        with serving(echo, threads=threads) as served, served.connect() as sock:
            sock.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(500)))
            rest = b""
            for i in range(500):
                reply = read_reply(sock, before=rest)
                assert reply.body == b"/%d" % i
                rest = reply.rest


def test_pipelined_request_then_fin_is_answered() -> None:
    for threads in (1, 2):
        with serving(hello, threads=threads) as served, served.connect() as sock:
            sock.sendall(GET + GET)
            sock.shutdown(socket.SHUT_WR)
            data = read_to_end(sock)
            assert data.count(b"Hello") == 2


def test_unknown_length_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0() -> None:
    for threads in (1, 2):
        with serving(parts, threads=threads) as served:
            with served.connect() as sock:
                for _ in range(2):
                    sock.sendall(GET)
                    reply = read_reply(sock)
                    assert (reply.get("transfer-encoding"), reply.body) == ("chunked", b"onetwo")
            for request in (OLD, OLD_KEEP):
                reply = served.ask(request)
                assert (reply.get("connection"), reply.get("content-length")) == ("close", None)
                assert reply.body == b"onetwo"


@pytest.mark.parametrize("status", [200, 204, 304, 404])
def test_head_says_what_get_says_and_sends_no_body(status: int) -> None:
    with serving(lambda request: Response(b"body", status)) as served, served.connect() as sock:
        for _ in range(2):
            sock.sendall(HEAD)
            head = read_reply(sock, head_only=True)
            sock.sendall(GET)
            get = read_reply(sock)
            assert head.rest == b""
            assert [h for h in head.headers if h[0] != "Date"] == [h for h in get.headers if h[0] != "Date"]
            if status in (204, 304):
                assert (get.body, get.get("content-length")) == (b"", None)


def test_head_of_a_generator_sends_no_chunk() -> None:
    with serving(parts) as served, served.connect() as sock:
        for _ in range(2):
            sock.sendall(HEAD)
            assert read_reply(sock, head_only=True).rest == b""
        sock.sendall(GET)
        assert read_reply(sock).body == b"onetwo"


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nSet-Cookie: b"},
        {"X": "a\nb"},
        {"X\r\nY": "a"},
        {"X": "a\0b"},
        {"X Y": "a"},
        {"": "a"},
        {"Content-Length": "5, 5"},
        {"X": "€"},
    ],
)
def test_header_injection_is_a_500(headers: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    with serving(lambda request: Response(b"Hello", headers=headers)) as served:
        data = served.ask(GET)
    assert (data.status, data.get("set-cookie"), data.get("connection")) == (500, None, "close")
    assert "BadResponse" in capfd.readouterr().err


def test_exception_is_a_500_with_its_traceback_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(request: Request) -> Response:
        raise RuntimeError("the reason")

    for threads in (1, 2):
        with serving(broken, threads=threads) as served:
            reply = served.ask(GET)
            assert (reply.status, reply.get("connection")) == (500, "close")
        err = capfd.readouterr().err
        assert "RuntimeError: the reason" in err and "in broken" in err


def test_exception_in_the_middle_cuts(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(request: Request) -> Response:
        def generate() -> Iterator[bytes]:
            yield b"one"
            raise RuntimeError("the reason")

        return Response(generate())

    for threads in (1, 2):
        with serving(broken, threads=threads) as served:
            for request in (GET, OLD):
                with pytest.raises((EOFError, ConnectionResetError)):
                    served.ask(request)
    assert capfd.readouterr().err.count("RuntimeError: the reason") == 4


class Writes:
    """Says a Content-Length and writes something else."""

    interface, streams_body, blocking = "native", False, True

    def __init__(self, length: int, *pieces: bytes) -> None:
        self.length, self.pieces = length, pieces

    def handle(self, exchange: Exchange) -> None:
        exchange.start(200, [(b"Content-Length", b"%d" % self.length)])
        for piece in self.pieces:
            exchange.write(piece)
        exchange.finish()


def test_too_short_a_body_cuts(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Writes(10, b"123")) as served, pytest.raises((EOFError, ConnectionResetError)):
        served.ask(GET)
    assert "7 bytes short" in capfd.readouterr().err


def test_too_long_a_body_is_truncated_and_closes(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Writes(4, b"123", b"456", b"789")) as served, served.connect() as sock:
        sock.sendall(GET + GET)
        data = read_to_end(sock)
    assert data.count(b"HTTP/1.1") == 1 and data.endswith(b"\r\n\r\n1234")
    assert "more than its Content-Length" in capfd.readouterr().err


def test_date_is_there_once_and_server_is_not() -> None:
    given = {"Date": "Tue, 01 Jan 2030 00:00:00 GMT", "Server": "mine"}
    with serving(lambda request: Response(b"", headers=given if request.path == "/own" else {})) as served:
        reply = served.ask(GET)
        assert reply.get("date") is not None and reply.get("server") is None
        reply = served.ask(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (reply.get("date"), reply.get("server")) == (given["Date"], "mine")


def test_hop_by_hop_headers_are_ours() -> None:
    given = {"Keep-Alive": "timeout=5", "Transfer-Encoding": "gzip", "Upgrade": "x", "Connection": "close"}
    with serving(lambda request: Response(b"Hello", headers=given)) as served, served.connect() as sock:
        sock.sendall(GET)
        reply = read_reply(sock)
        assert [reply.get(name) for name in given] == [None, None, None, "close"]
        assert sock.recv(1) == b""


def test_one_response_object_for_all_requests() -> None:
    kept = Response(b"Hello")
    with serving(lambda request: kept, threads=4) as served, served.connect() as sock:
        for request, connection in ((GET, None), (OLD_KEEP, "keep-alive"), (GET, None), (CLOSE, "close")):
            sock.sendall(request)
            reply = read_reply(sock)
            assert (reply.body, reply.get("connection")) == (b"Hello", connection)


def test_files_are_sent_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    for threads in (1, 2):
        with (
            serving(lambda request: Response.file(f"{tmp_path}{request.path}"), threads=threads) as served,
            served.connect() as sock,
        ):
            for name, want in (("file", content), ("empty", b""), ("file", content)):
                sock.sendall(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode())
                assert read_reply(sock).body == want
            sock.sendall(b"HEAD /file HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_reply(sock, head_only=True).get("content-length") == "3000000"
            sock.sendall(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_reply(sock).status == 500


def test_unread_upload_does_not_eat_the_answer() -> None:
    """A close with unread input would be a reset, and the client would never see why."""
    with serving(hello, limits=Limits(body_bytes=1000)) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
        sent, chunk = 0, bytes(100_000)
        for _ in range(80):
            sock.sendall(chunk)
            sent += len(chunk)
        reply = read_reply(sock)
        assert (sent, reply.status) == (8_000_000, 413)
        assert sock.recv(1) == b""


def test_client_that_does_not_close_is_left_after_linger() -> None:
    with serving(hello, limits=Limits(linger_timeout=0.05)) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")  # behind a body there may be more
        assert read_reply(sock).body == b"Hello"
        served.until(lambda: served.daemon.open == 0)


@pytest.mark.slow
def test_slow_reader_of_10_mb_holds_nobody_up() -> None:
    big = os.urandom(10_000_000)

    def handler(request: Request) -> Response:
        if request.path == "/parts":
            return Response(big[i : i + 100_000] for i in range(0, len(big), 100_000))
        return Response(big if request.path == "/big" else b"Hello")

    for threads in (1, 2):
        with serving(handler, threads=threads) as served:
            for path in (b"/big", b"/parts"):
                with served.connect(receive_buffer=4096) as slow:
                    slow.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                    slow.recv(1)
                    for _ in range(20):
                        assert served.ask(GET).body == b"Hello"
                    most = max(c.queued for c in served.daemon.roster.all)
                    assert path == b"/big" or most < 2_000_000, "an iterator ran ahead of its client"
                    assert read_reply(slow, before=b"H").body == big


def test_client_that_resets_is_forgotten() -> None:
    def endless(request: Request) -> Response:
        closed.clear()

        def generate() -> Iterator[bytes]:
            try:
                while True:
                    yield bytes(50_000)
            finally:
                closed.append(True)

        return Response(generate())

    closed: list[bool] = []
    for threads in (1, 2):
        with serving(endless, threads=threads) as served:
            sock = served.connect()
            sock.sendall(GET)
            sock.recv(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            served.until(lambda: served.daemon.open == 0 and bool(closed))


def test_100_continue() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serving(lambda request: Response(request.body)) as served, served.connect() as sock:
        for _ in range(2):
            sock.sendall(head)
            assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"hello")
            assert read_reply(sock).body == b"hello"
        sock.sendall(head + b"hello")  # it did not wait
        assert read_reply(sock).body == b"hello"


def test_100_continue_is_not_sent_in_front_of_413() -> None:
    with serving(hello, limits=Limits(body_bytes=3)) as served:
        reply = served.ask(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert reply.status == 413


class Streams:
    """Answers with the body's size when it has read it; does not read at all under /blind."""

    interface, streams_body, blocking = "asgi", True, False

    def __init__(self) -> None:
        self.events: list[str] = []

    def handle(self, exchange: Exchange) -> None:
        size = 0

        def on_body(data: bytes, more: bool) -> None:
            nonlocal size
            size += len(data)
            if not more:
                exchange.start(200, [])
                exchange.finish(b"%d" % size)

        exchange.on_disconnect = lambda: self.events.append("disconnect")
        if exchange.request.path == "/blind":
            exchange.start(200, [])
            exchange.finish(b"blind")
        elif exchange.request.path != "/never":
            exchange.read_body(on_body)


def test_streamed_bodies() -> None:
    with serving(Streams()) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET)
        reply = read_reply(sock)
        assert reply.body == b"3"
        assert read_reply(sock, before=reply.rest).body == b"0"
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
        sock.sendall(bytes(3_000_000))
        assert read_reply(sock).body == b"3000000"
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
        sock.sendall(b"1\r\ne\r\n0\r\n\r\n")
        assert read_reply(sock).body == b"5"
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert read_reply(sock).body == b"5"


def test_what_a_streaming_application_leaves_unread() -> None:
    blind = b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    with serving(Streams()) as served:
        with served.connect() as sock:  # a little: read away, the connection is kept
            sock.sendall(blind % 5)
            reply = read_reply(sock)
            assert (reply.body, reply.get("connection")) == (b"blind", None)
            sock.sendall(b"hello" + blind % 0)
            assert read_reply(sock).body == b"blind"
        with served.connect() as sock:  # much: the answer is the last, and it arrives
            sock.sendall(blind % 5_000_000)
            sock.sendall(bytes(5_000_000))
            reply = read_reply(sock)
            assert (reply.body, reply.get("connection")) == (b"blind", "close")
            assert sock.recv(1) == b""
        with served.connect() as sock:  # it waits for 100 and will not send: nobody can know where it goes on
            sock.sendall(blind[:-2] % 5 + b"Expect: 100-continue\r\n\r\n")
            assert read_reply(sock).get("connection") == "close"


def test_streaming_application_hears_that_its_client_has_gone() -> None:
    app = Streams()
    with serving(app) as served:
        sock = served.connect()
        sock.sendall(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        served.until(lambda: served.daemon.busy == 1)
        sock.close()
        served.until(lambda: app.events == ["disconnect"])


def test_malformed_chunk_in_a_streamed_body() -> None:
    app = Streams()
    with serving(app) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        served.until(lambda: served.daemon.busy == 1)
        sock.sendall(b"zz\r\n")
        assert read_reply(sock).status == 400
        served.until(lambda: app.events == ["disconnect"])


def test_probe_is_served_and_not_counted() -> None:
    logged: list[int] = []
    with serving(
        hello,
        limits=Limits(connections=1),
        access_log=lambda exchange, status, size, seconds: logged.append(status),
    ) as served:
        ours, theirs = socket.socketpair()
        with ours, served.connect() as other:
            other.sendall(GET)
            read_reply(other)
            ours.settimeout(PATIENCE_S)
            served.do(lambda: served.daemon.add_connection(theirs, peer=None, local=None, probe=True))
            ours.sendall(GET)
            assert read_reply(ours).body == b"Hello"
            assert served.do(lambda: (served.daemon.open, served.daemon.counters.slot[5])) == (1, 1)
        assert logged == [200]
