"""Interim answers: before the answer, at once, and only to who knows them."""

from __future__ import annotations

import socket
import threading

import pytest

from embedded.serving import CLOSE, GET, Setup, running
from quiesce import Connection, NotNow, Response, Stage
from quiesce.worker.core.response_head import BadResponse, interim
from wire.serving import PATIENCE_S, read_reply, read_to_end

QUICK = {"external-select-run_from_select", "thread-epoll"}  # the others in `./dev test`
LINK = {"Link": "</style.css>; rel=preload; as=style"}


def test_hints_go_out_before_the_answer_is_known(setup: Setup) -> None:
    read = threading.Event()
    sent: list[bool] = []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            return None
        sent.append(connection.send_interim(103, LINK))
        assert read.wait(PATIENCE_S)
        return Response(b"Hello")

    with running(setup, access_handler=handler) as served, served.connect() as sock:
        for _ in range(2):
            read.clear()
            sock.sendall(GET)
            hints = read_head(sock)
            assert hints == b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload; as=style\r\n\r\n"
            read.set()
            assert read_reply(sock).body == b"Hello"
    assert sent == [True, True]


def read_head(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(1)
    return data


def test_http_1_0_never_gets_one(setup: Setup) -> None:
    sent: list[bool] = []

    def handler(connection: Connection) -> Response:
        sent.append(connection.send_interim(103, LINK))
        return Response(b"Hello")

    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 200 ")
    assert sent == [False]


def test_from_any_thread_while_it_is_suspended(setup: Setup) -> None:
    threads: list[threading.Thread] = []

    def work(connection: Connection) -> None:
        for _ in range(3):
            assert connection.send_interim(102)
        connection.queue(Response(b"done"))
        with pytest.raises(NotNow):
            connection.send_interim(102)
        connection.resume()

    def handler(connection: Connection) -> None:
        if connection.stage is Stage.HEAD:
            connection.suspend()
            threads.append(threading.Thread(target=work, args=(connection,)))
            threads[-1].start()

    with running(setup, access_handler=handler, allow_suspend=True) as served, served.connect() as sock:
        sock.sendall(CLOSE)
        data = read_to_end(sock)
        assert data.count(b"HTTP/1.1 102 Processing\r\n\r\n") == 3
        assert data.partition(b"HTTP/1.1 200 ")[2].endswith(b"done")
    threads[0].join(PATIENCE_S)


def test_in_the_middle_of_an_upload(setup: Setup) -> None:
    def handler(connection: Connection) -> Response | None:
        if connection.stage is Stage.DATA:
            connection.upload.read()
            connection.send_interim(102)
        return Response(b"done") if connection.stage is Stage.END else None

    request = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(request)
        assert read_head(sock) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for part in (b"ab", b"cd"):
            sock.sendall(part)
            assert read_head(sock) == b"HTTP/1.1 102 Processing\r\n\r\n"
        assert read_reply(sock).body == b"done"


def test_not_behind_the_answer_nor_without_a_request(setup: Setup) -> None:
    kept: list[Connection] = []
    said: list[BaseException] = []

    def handler(connection: Connection) -> None:
        kept.append(connection)
        connection.queue(Response(b"Hello"))
        try:
            connection.send_interim(103, LINK)
        except NotNow as exc:
            said.append(exc)

    with running(setup, access_handler=handler) as served:
        assert served.ask().body == b"Hello"
        with pytest.raises(NotNow):
            kept[0].send_interim(103, LINK)
    assert len(said) == 1


@pytest.mark.parametrize("status", [0, 99, 100, 101, 200, 404])
def test_what_is_no_interim_status_is_refused(status: int) -> None:
    with pytest.raises(BadResponse):
        interim(status, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Link", b"a\r\nHTTP/1.1 200 OK"), (b"Link", b"a\nb"), (b"Link", b"\0"), (b"Li nk", b"a"), (b"", b"a"),
        (b"Content-Length", b"0"), (b"Transfer-Encoding", b"chunked"), (b"Connection", b"close"),
        (b"Upgrade", b"x"), (b"Date", b"now"),
    ],
)  # fmt: skip
def test_what_would_frame_something_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(BadResponse):
        interim(103, [(name, value)])
