"""WSGI: what PEP 3333 says, and what a thread pool must not do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from quiesce.worker.apps import wsgi
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.limits import Limits
from wire.serving import read_reply, read_to_end, serving
from wire.test_answers import GET, HEAD

Environ = dict[str, Any]
Start = Callable[..., Any]


def echo(environ: Environ, start_response: Start) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REQUEST_METHOD"].encode(), b" ", body]


@pytest.mark.parametrize("threads", [1, 3])
def test_validator_finds_nothing(threads: int, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(WsgiApp(validator(echo)), threads=threads) as served, served.connect() as sock:
        sock.sendall(GET)
        assert read_reply(sock).body == b"GET "
        sock.sendall(b"POST /a%20b?c=d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        assert read_reply(sock).body == b"POST hello"
        sock.sendall(HEAD)
        assert read_reply(sock, head_only=True).rest == b""
    assert capfd.readouterr().err == ""


def _environ_of(request: bytes, threads: int = 2, **options: Any) -> Environ:
    found: Environ = {}

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        found.update(environ)
        found["body"] = environ["wsgi.input"].read()  # input_terminated: to the end, without a length
        start_response("204 No Content", [])
        return []

    with serving(WsgiApp(app), threads=threads, **options) as served:
        found["address"] = served.address
        assert served.ask(request).status == 204
    return found


def test_environ() -> None:
    environ = _environ_of(
        b"POST /caf%C3%A9/%2F%zz?x=%20&y HTTP/1.1\r\nHost: shop.test:8080\r\nX-One: 1\r\nX-One: 2\r\n"
        b"Cookie: a=b\r\nCookie: c=d\r\nX_Forwarded_For: spoofed\r\nX-Forwarded-For: real\r\n"
        b"Content-Type: text/x\r\nContent-Length: 3\r\n\r\nabc"
    )
    want = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/café/" .encode().decode("latin-1") + "/%zz",
        "QUERY_STRING": "x=%20&y",
        "RAW_URI": "/caf%C3%A9/%2F%zz?x=%20&y",
        "REQUEST_URI": "/caf%C3%A9/%2F%zz?x=%20&y",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "3",
        "HTTP_HOST": "shop.test:8080",
        "HTTP_X_ONE": "1, 2",
        "HTTP_COOKIE": "a=b; c=d",
        "HTTP_X_FORWARDED_FOR": "real",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(environ["address"][1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "body": b"abc",
    }  # fmt: skip
    assert {key: environ.get(key) for key in want} == want
    assert environ["REMOTE_PORT"].isdigit()


def test_long_names_are_not_remembered() -> None:
    """A thousand of them, each as long as a head, would stay for good."""
    name = b"x-" + b"y" * 5000
    environ = _environ_of(b"GET / HTTP/1.1\r\nHost: a\r\n%s: z\r\n\r\n" % name)
    assert environ["HTTP_X_" + "Y" * 5000] == "z"
    assert max(map(len, wsgi._KEYS)) < 200


def test_multithread_is_true_where_it_is() -> None:
    assert [_environ_of(GET, threads=n)["wsgi.multithread"] for n in (1, 2)] == [False, True]


def test_content_length_and_type_are_cgi_names_only() -> None:
    environ = _environ_of(GET)
    assert not any("CONTENT_" in key for key in environ)


def test_chunked_request_reads_to_its_end() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert _environ_of(request)["body"] == b"abc"


def test_one_slow_request_never_blocks_others() -> None:
    entered, let_go = threading.Event(), threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/slow":
            entered.set()
            assert let_go.wait(20)
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(WsgiApp(app), threads=2) as served:
        threads = threading.active_count()
        with served.connect() as slow:
            slow.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            assert entered.wait(20)
            with served.connect() as other:
                for i in range(50):
                    other.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
                    assert read_reply(other).body == b"/%d" % i
            assert served.daemon._pool is not None and served.daemon._pool.oldest_ns > 0
            let_go.set()
            assert read_reply(slow).body == b"/slow"
        assert threading.active_count() == threads, "the pool grew"


def test_loop_is_not_woken_by_a_usual_answer() -> None:
    with serving(WsgiApp(echo), threads=2) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        woken = []
        real = served.loop.call_soon_threadsafe
        served.loop.call_soon_threadsafe = lambda cb: (woken.append(cb), real(cb))[1]  # type: ignore[method-assign]
        for _ in range(20):
            sock.sendall(GET)
            read_reply(sock)
        served.loop.call_soon_threadsafe = real  # type: ignore[method-assign]
        assert woken == []


def test_generator_start_response_late_write_and_close() -> None:
    closed: list[str] = []

    class Body:
        def __init__(self, parts: list[bytes]) -> None:
            self._parts = iter(parts)

        def __iter__(self) -> Iterator[bytes]:
            return self._parts

        def close(self) -> None:
            closed.append("closed")

    def late(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"la"
        yield b"te"

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/late":
            return late(environ, start_response)
        write = start_response("200 OK", [("Content-Length", "5")])
        write(b"he")
        return Body([b"l", b"", b"lo"])

    for threads in (1, 2):
        with serving(WsgiApp(app), threads=threads) as served, served.connect() as sock:
            sock.sendall(GET)
            assert read_reply(sock).body == b"hello"
            sock.sendall(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_reply(sock).body == b"late"
            served.until(lambda: closed == ["closed"])
        closed.clear()


def test_start_response_again_with_exc_info(capfd: pytest.CaptureFixture[str]) -> None:
    import sys

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        write = start_response("200 OK", [("X", "1")])
        if environ["PATH_INFO"] == "/begun":
            write(b"begun")
        try:
            raise KeyError("planted")
        except KeyError:
            start_response("500 Oops", [("X", "2")], sys.exc_info())
        return [b"oops"]

    with serving(WsgiApp(app), threads=2) as served:
        reply = served.ask(GET)
        assert (reply.status, reply.get("x"), reply.body) == (500, "2", b"oops")
        with pytest.raises((EOFError, ConnectionResetError)):
            served.ask(b"GET /begun HTTP/1.1\r\nHost: a\r\n\r\n")
    assert "KeyError: 'planted'" in capfd.readouterr().err


@pytest.mark.parametrize(
    "bad",
    [
        lambda environ, start_response: [b"no start_response"],
        lambda environ, start_response: start_response("abc", []) and [],
        lambda environ, start_response: start_response("200 OK", [("X", "a\nb")]) and [],
        lambda environ, start_response: (
            (start_response("200 OK", []), start_response("200 OK", []))[1] and []
        ),
        lambda environ, start_response: start_response("200 OK", []) and None,
        lambda environ, start_response: start_response("200 OK", []) and ["text"],
        lambda environ, start_response: start_response("200 OK\r\nX: y", []) and [],
    ],
)
def test_application_errors_are_a_500(bad: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for threads in (1, 2):
        with serving(WsgiApp(bad), threads=threads) as served:
            assert served.ask(GET).status == 500
            assert served.ask(GET).status == 500, "the thread died of it"
    assert "Traceback" in capfd.readouterr().err


def test_system_exit_ends_one_request(capfd: pytest.CaptureFixture[str]) -> None:
    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        raise SystemExit(3)

    for threads in (1, 2):
        with serving(WsgiApp(app), threads=threads) as served:
            for _ in range(3):
                assert served.ask(GET).status == 500
    capfd.readouterr()


def test_file_wrapper(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "f").write_bytes(content)

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        file = open(tmp_path / "f", "rb")  # noqa: SIM115
        file.seek(100)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]

    def pipe(environ: Environ, start_response: Start) -> Iterable[bytes]:
        reader, writer = os.pipe()
        os.write(writer, b"piped")
        os.close(writer)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(reader, "rb"))  # type: ignore[no-any-return]

    for threads in (1, 2):
        with serving(WsgiApp(app), threads=threads) as served:
            reply = served.ask(GET)
            assert (reply.get("content-length"), reply.body) == ("1999900", content[100:])
            assert served.ask(b"GET / HTTP/1.0\r\n\r\n").body == content[100:]
        with serving(WsgiApp(pipe), threads=threads) as served:
            assert served.ask(GET).body == b"piped"


def test_large_list_is_queued_at_once_and_holds_no_thread() -> None:
    parts = [os.urandom(500_000) for _ in range(20)]

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [])
        return parts if environ["PATH_INFO"] == "/big" else [b"small"]

    with serving(WsgiApp(app), threads=2) as served:
        slow = [served.connect(receive_buffer=4096) for _ in range(4)]
        for sock in slow:
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            sock.recv(1)
        assert served.ask(GET).body == b"small"
        for sock in slow[:1]:
            reply = read_reply(sock, before=b"H")
            assert (reply.get("content-length"), reply.body) == ("10000000", b"".join(parts))


def test_iterator_waits_for_its_client_and_arrives_whole() -> None:
    parts = [os.urandom(200_000) for _ in range(50)]
    ahead = 0

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        nonlocal ahead
        start_response("200 OK", [])
        for part in parts:
            ahead += 1
            yield part

    for threads in (1, 2):
        ahead = 0
        limits = Limits(high_water=300_000, low_water=100_000)
        with (
            serving(WsgiApp(app), threads=threads, limits=limits) as served,
            served.connect(receive_buffer=4096) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            sock.recv(1)
            assert ahead < 50, "it ran ahead"
            assert read_reply(sock, before=b"H").body == b"".join(parts)
            assert read_to_end(sock) == b""
