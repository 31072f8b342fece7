"""Where a response's bytes may come from, and what happens when they do not come."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from embedded.serving import CLOSE, GET, THREADED, Setup, running
from quiesce import Connection, NotNow, Options, Response, Stage, Termination
from quiesce.worker.core.response_head import BadResponse
from quiesce.worker.response import Freed
from wire.serving import PATIENCE_S, read_reply, read_to_end

HEAD = GET.replace(b"GET", b"HEAD")
Handler = Callable[[Connection], Response | None]


def answers(make: Callable[[], Response]) -> Handler:
    """A handler that answers at the end of each request, and then needs the response no more."""

    def handler(connection: Connection) -> None:
        if connection.stage is Stage.END:
            with make() as response:
                connection.queue(response)

    return handler


class Codes(list[Termination]):
    """What on_completed said."""

    def __call__(self, connection: Connection, state: object, why: Termination) -> None:
        self.append(why)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_buffers_are_not_copied_and_freed_once(setup: Setup) -> None:
    freed: list[bool] = []
    parts = [bytearray(b"one "), b"", memoryview(b"two "), b"x" * 300_000]

    def make() -> Response:
        return Response.from_buffers(parts, free=lambda: freed.append(True))

    with running(setup, access_handler=answers(make)) as served:
        parts[0][0:3] = b"ONE"  # type: ignore[index]
        reply = served.ask()
        assert reply.body == b"ONE two " + b"x" * 300_000
        assert reply.get("content-length") == "300008"
        served.until(lambda: freed == [True])


@pytest.mark.parametrize("copy", [True, False])
def test_a_buffer_is_copied_or_not(copy: bool) -> None:
    buffer = bytearray(b"before")
    response = Response.from_buffer(buffer, copy=copy)
    buffer[:] = b"after!"
    with running(THREADED[2], access_handler=lambda c: response if c.stage is Stage.END else None) as served:
        assert served.ask().body == (b"before" if copy else b"after!")


def test_a_range_of_a_file_leaves_its_position_alone(setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 17, os.SEEK_SET)
    response = Response.from_fd(fd, 500_000, 1000)
    handler = lambda c: response if c.stage is Stage.END else None  # noqa: E731
    with running(setup, access_handler=handler) as served:
        for _ in range(2):
            assert served.ask().body == path.read_bytes()[1000:501_000]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 17
        served.until(lambda: response.references == 1)
        response.close()
        assert not is_open(fd)


def test_a_file_that_is_shorter_than_promised_is_an_error(setup: Setup, tmp_path: Path) -> None:
    path, codes = tmp_path / "file", Codes()
    path.write_bytes(b"x" * 1000)

    def make() -> Response:
        return Response.from_fd(os.open(path, os.O_RDONLY), 2000)

    with running(setup, access_handler=answers(make), on_completed=codes) as served, served.connect() as sock:
        sock.sendall(GET)
        with pytest.raises((EOFError, ConnectionResetError)):
            read_reply(sock)
        served.until(lambda: len(codes) == 1)
    assert codes[0] is not Termination.COMPLETED_OK


def test_a_range_that_no_file_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    for size, offset in ((1, -1), (1 << 62, 1 << 62), (-1, 4)):
        with pytest.raises(ValueError):
            Response.from_fd(fd, size, offset)
    os.close(fd)  # it stayed ours


def test_a_pipe_is_sent_as_it_comes_until_its_end(setup: Setup) -> None:
    reader, writer = os.pipe()
    with running(setup, access_handler=answers(lambda: Response.from_pipe(reader))) as served:
        with served.connect() as sock:
            sock.sendall(GET)
            os.write(writer, b"first")
            data = b""
            while b"first" not in data:
                data += sock.recv(1000)
            os.write(writer, b"x" * 65536)
            os.close(writer)
            while not data.endswith(b"0\r\n\r\n"):
                data += sock.recv(65536)
            assert b"Transfer-Encoding: chunked" in data and data.count(b"x") == 65536
        served.until(lambda: not is_open(reader))


def test_a_pipe_whose_client_goes_is_closed(setup: Setup) -> None:
    reader, writer = os.pipe()
    codes = Codes()
    handler = answers(lambda: Response.from_pipe(reader))
    with running(setup, access_handler=handler, on_completed=codes) as served:
        sock = served.connect()
        sock.sendall(GET)
        os.write(writer, b"first")
        sock.recv(1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

        def gone() -> bool:
            with contextlib.suppress(BrokenPipeError):  # closed just now
                os.write(writer, b"more")
            return not is_open(reader)

        served.until(gone)
        served.until(lambda: codes == [Termination.READ_ERROR])
    os.close(writer)


class Parts:
    """A reader over a list; notes its calls."""

    def __init__(self, *parts: bytes | None) -> None:
        self.parts = parts
        self.calls: list[tuple[int, int]] = []
        self.freed = 0

    def __call__(self, position: int, most: int) -> bytes | None:
        self.calls.append((position, most))
        index = len(self.calls) - 1
        return self.parts[index] if index < len(self.parts) else None

    def free(self) -> None:
        self.freed += 1


def test_a_reader_of_unknown_size_goes_out_in_chunks_with_footers(setup: Setup) -> None:
    def make() -> Response:
        reader = Parts(*[b"x" * 128] * 10)

        def read(position: int, most: int) -> bytes | None:
            data = reader(position, most)
            if data is None:
                response.add_footer("Footer", "working")
            return data

        response = Response.from_reader(read)
        return response

    with running(setup, access_handler=answers(make)) as served:
        for _ in range(2):
            with served.connect() as sock:
                sock.sendall(CLOSE)
                data = read_to_end(sock)
            assert b"Transfer-Encoding: chunked" in data
            assert data.count(b"\r\n80\r\n" + b"x" * 128) == 10
            assert data.endswith(b"\r\n0\r\nFooter: working\r\n\r\n")


def test_unknown_stays_unknown_when_the_response_is_used_again(setup: Setup) -> None:
    response = Response.from_reader(lambda position, most: b"body" if not position else None)
    handler = lambda c: response if c.stage is Stage.END else None  # noqa: E731
    with running(setup, access_handler=handler) as served:
        for _ in range(2):
            reply = served.ask()
            assert (reply.body, reply.get("transfer-encoding"), reply.get("content-length")) == (
                b"body",
                "chunked",
                None,
            )


def test_a_reader_of_known_size_goes_out_with_its_length(setup: Setup) -> None:
    readers: list[Parts] = []

    def make() -> Response:
        readers.append(Parts(b"12345", b"678"))
        return Response.from_reader(readers[-1], 8, block=5, free=readers[-1].free)

    with running(setup, access_handler=answers(make)) as served:
        reply = served.ask()
        assert (reply.body, reply.get("content-length")) == (b"12345678", "8")
        served.until(lambda: readers[0].freed == 1)
        assert readers[0].calls == [(0, 5), (5, 3)]
        reply = served.ask(HEAD, head_only=True)
        assert reply.get("content-length") == "8"
        served.until(lambda: readers[1].freed == 1)
        assert readers[1].calls == []


@pytest.mark.parametrize("size", [-1, 100])
def test_a_reader_that_fails_cuts_the_connection(setup: Setup, size: int) -> None:
    codes = Codes()

    def make() -> Response:
        def read(position: int, most: int) -> bytes:
            if position:
                raise OSError("no more")
            return b"begins well"

        return Response.from_reader(read, size)

    with running(setup, access_handler=answers(make), on_completed=codes) as served, served.connect() as sock:
        sock.sendall(GET)
        with pytest.raises((EOFError, ConnectionResetError)):
            read_reply(sock)
        served.until(lambda: codes == [Termination.WITH_ERROR])


def test_a_reader_that_ends_too_early_is_an_error(setup: Setup) -> None:
    codes = Codes()
    handler = answers(lambda: Response.from_reader(Parts(b"short"), 100))
    with running(setup, access_handler=handler, on_completed=codes) as served, served.connect() as sock:
        sock.sendall(GET)
        with pytest.raises((EOFError, ConnectionResetError)):
            read_reply(sock)
        served.until(lambda: codes == [Termination.WITH_ERROR])


def test_a_reader_that_has_nothing_now_is_asked_again(setup: Setup) -> None:
    with running(
        setup, access_handler=answers(lambda: Response.from_reader(Parts(b"a", b"", b"", b"b")))
    ) as served:
        assert served.ask().body == b"ab"


def test_a_reader_suspends_after_each_byte_and_a_thread_resumes(setup: Setup) -> None:
    tasks: list[Connection] = []
    there = threading.Semaphore(0)
    over = threading.Event()

    def resume() -> None:
        while True:
            there.acquire()
            if over.is_set():
                return
            tasks.pop().resume()

    def handler(connection: Connection) -> None:
        if connection.stage is not Stage.END:
            return

        def read(position: int, most: int) -> bytes:
            connection.suspend()
            tasks.append(connection)
            there.release()
            return b"%d" % (position % 10)

        with Response.from_reader(read, 100) as response:
            connection.queue(response)

    resumer = threading.Thread(target=resume)
    resumer.start()
    with running(setup, access_handler=handler, allow_suspend=True) as served:
        assert served.ask().body == b"0123456789" * 10
    over.set()
    there.release()
    resumer.join(PATIENCE_S)


def test_an_endless_reader_is_freed_when_its_client_goes(setup: Setup) -> None:
    reader = Parts()
    handler = answers(lambda: Response.from_reader(lambda position, most: b"x" * most, free=reader.free))
    with running(setup, access_handler=handler) as served:
        sock = served.connect(receive_buffer=4096)
        sock.sendall(GET)
        sock.recv(1000)
        sock.close()
        served.until(lambda: reader.freed == 1)


def test_empty_and_another_status(setup: Setup) -> None:
    def handler(connection: Connection) -> None:
        if connection.stage is Stage.END:
            connection.queue(response, 404 if connection.request.path == "/404" else 0)

    response = Response.empty(headers={"X-Kept": "yes"})
    with running(setup, access_handler=handler) as served:
        reply = served.ask()
        assert (reply.status, reply.get("content-length"), reply.get("x-kept")) == (204, None, "yes")
        reply = served.ask(GET.replace(b" / ", b" /404 "))
        assert (reply.status, reply.get("content-length"), reply.get("x-kept")) == (404, "0", "yes")


def test_a_response_for_head_only(setup: Setup) -> None:
    response = Response.empty(200, {"Content-Length": "1234"}, Options.HEAD_ONLY)
    refused: list[bool] = []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            return None
        try:
            connection.queue(response)
        except NotNow:
            refused.append(True)
            return Response(b"GET")
        return None

    with running(setup, access_handler=handler) as served:
        assert served.ask(HEAD, head_only=True).get("content-length") == "1234"
        assert served.ask(GET).body == b"GET" and refused == [True]


CONNECTIONS = ("", "Keep-Alive", "close")


@pytest.mark.parametrize("options", [Options.NONE, Options.HTTP_1_0_STRICT, Options.HTTP_1_0_SERVER])
@pytest.mark.parametrize("says", [Options.NONE, Options.SAY_KEEP_ALIVE])
def test_who_keeps_the_connection(options: Options, says: Options) -> None:
    """Every combination of client, its wish, the server's wish and the response's options."""
    made: dict[bool, Response] = {}
    for closes in (False, True):
        made[closes] = Response.from_buffer(b"Hello")
        made[closes].options = options | says
        if closes:
            made[closes].add_header("Connection", "close")

    def handler(connection: Connection) -> Response | None:
        return made[connection.request.path == "/close"] if connection.stage is Stage.END else None

    with running(THREADED[2], access_handler=handler) as served:
        for version, wish, closes in product(("1.0", "1.1"), CONNECTIONS, (False, True)):
            target = "/close" if closes else "/"
            field = f"Connection: {wish}\r\n" if wish else ""
            with served.connect() as sock:
                sock.sendall(f"GET {target} HTTP/{version}\r\nHost: a\r\n{field}\r\n".encode())
                first = sock.recv(65536)
                old_server = bool(options & Options.HTTP_1_0_SERVER)
                asks_or_assumes = wish == "Keep-Alive" if version == "1.0" or old_server else wish != "close"
                kept = asks_or_assumes and not closes and not options & Options.HTTP_1_0_STRICT
                says_it = kept and (version == "1.0" or old_server or bool(says))
                told = (version, wish, closes)
                assert first.startswith(b"HTTP/1.0" if old_server else b"HTTP/1.1"), told
                assert (b"Connection: close" in first) is not kept, told
                assert (b"Connection: keep-alive" in first) is says_it, told
                if kept:
                    sock.sendall(CLOSE)
                    assert b"Hello" in sock.recv(65536), told
                else:
                    assert sock.recv(1) == b"", told


def test_fields_are_added_and_taken_away() -> None:
    response = Response.from_buffer(b"")
    response.add_header("A", "1")
    response.add_header("a", "2")
    response.add_header("Date", "first")
    response.add_header("date", "second")
    assert response.headers == [("A", "1"), ("a", "2"), ("date", "second")]
    assert response.header("A") == "1" and response.header("none") is None
    assert not response.remove_header("A", "2") and response.remove_header("A", "1")
    response.add_header("Connection", "b, keep-alive")
    response.add_header("connection", "Close, B")
    assert response.header("connection") == "Close, b"
    assert response.remove_header("CONNECTION", "b") and response.header("connection") == "Close"
    response.add_header("Transfer-Encoding", "chunked")
    response.add_header("Transfer-Encoding", "Chunked")
    assert [name for name, _ in response.headers].count("Transfer-Encoding") == 1
    for name, value in (
        ("", "x"), ("x", ""), ("a b", "x"), ("a\tb", "x"), ("a\r", "x"), ("a:", "x"), ("x", "a\nb"), ("x", "a\rb"),
        ("Content-Length", "5"), ("Transfer-Encoding", "gzip"), ("Connection", "keep-alive"),
    ):  # fmt: skip
        with pytest.raises(BadResponse):
            response.add_header(name, value)


def test_who_forgets_to_close_frees_with_the_object_and_only_once() -> None:
    freed: list[bool] = []
    Response.from_buffer(b"x", free=lambda: freed.append(True))
    assert freed == [True]
    response = Response.from_buffer(b"x", free=lambda: freed.append(True))
    response.close()
    with pytest.raises(Freed):
        response.close()
    with pytest.raises(Freed):
        response.retain()
    del response
    assert freed == [True, True]


def test_references_are_counted_from_many_threads() -> None:
    freed: list[bool] = []
    response = Response.from_buffer(b"x", free=lambda: freed.append(True))

    def many() -> None:
        for _ in range(2000):
            response.retain()
            response.release()

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert response.references == 1 and not freed
    response.close()
    assert freed == [True]
