"""The short ways of an answer against the long one: whatever is asked and answered, the client sees the same.

The long way is a response that the handler queues while somebody is told of each request's end.  A handler of requests
has a short one, and so has a response that an access handler returns.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce import Connection, Daemon, Mode, Options, Request, Response, Stage
from quiesce.worker.net import answering

REQUESTS = (
    b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD %s HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET %s HTTP/1.0\r\n\r\n",
    b"GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: u\r\n\r\n",
    b"GET %s HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET %s HTTP/1.1\r\nHost: a\r\n",
    b"\r\n",
)


def _with(response: Response, change: Callable[[Response], object]) -> Response:
    change(response)
    return response


def _fails(position: int, most: int) -> bytes:
    raise OSError("this reader fails")


def _file() -> Response:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        return Response.from_fd(os.dup(file.fileno()), 5, 2)


KEPT = Response(b"kept")
ANSWERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: Response(b"bytes"),
    "kept": lambda: KEPT,
    "text": lambda: Response("text", 404, {"X": "y"}),
    "nothing": lambda: Response(b"", 204),
    "unmodified": lambda: Response(b"", 304),
    "reset": lambda: Response(b"", 205),
    "last": lambda: Response(b"last", headers={"Connection": "close"}),
    "long": lambda: Response(b"x" * 30_000),
    "length": lambda: Response(b"abc", headers={"Content-Length": "3"}),
    "short": lambda: Response(b"abc", headers={"Content-Length": "5"}),
    "iterable": lambda: Response([b"a", b"b"]),
    "generator": lambda: Response(part for part in (b"a", b"b")),
    "counted": lambda: _with(Response(b"counted"), Response.retain),
    "freed": lambda: _with(Response(b"freed"), Response.close),
    "header": lambda: _with(Response(b"header"), lambda response: response.add_header("A", "b")),
    "buffer": lambda: Response.from_buffer(bytearray(b"buffer"), copy=False),
    "reader": lambda: Response.from_reader(lambda position, most: None if position else b"read"),
    "fails": lambda: Response.from_reader(_fails),
    "fails late": lambda: Response.from_reader(lambda position, most: _fails(0, 0) if position else b"read"),
    "1.0": lambda: _with(
        Response(b"old"), lambda response: setattr(response, "options", Options.HTTP_1_0_SERVER)
    ),
    "empty": lambda: Response.empty(),
    "file": _file,
    "none": lambda: Response.file("/does/not/exist"),
    "None": lambda: None,
    "True": lambda: True,
    "raises": lambda: {}["raises"],
}
NAMES = list(ANSWERS)
Way = Callable[[], Daemon]


def _made(request: Request) -> Any:
    return ANSWERS[NAMES[int(request.path[1:])]]()


def short() -> Daemon:
    return Daemon(_made, mode=Mode.EXTERNAL, listen=False, date=False)


def returned() -> Daemon:
    def handler(connection: Connection) -> Any:
        return _made(connection.request) if _is_whole(connection) else None

    return Daemon(access_handler=handler, mode=Mode.EXTERNAL, listen=False, date=False)


def told() -> Daemon:
    return Daemon(_made, mode=Mode.EXTERNAL, listen=False, date=False, on_completed=lambda *what: None)


def long() -> Daemon:
    def handler(connection: Connection) -> Any:
        if not _is_whole(connection):
            return None
        answer = _made(connection.request)
        if not isinstance(answer, Response):
            return answer
        connection.queue(answer)
        return None

    return Daemon(
        access_handler=handler, mode=Mode.EXTERNAL, listen=False, date=False, on_completed=lambda *what: None
    )


def _is_whole(connection: Connection) -> bool:
    connection.upload.read()
    return connection.stage is Stage.END


def seen(way: Way, pieces: list[bytes]) -> tuple[bytes, bool]:
    """What a client gets that sends these pieces; and was it closed?"""
    daemon = way().start()
    ours, theirs = socket.socketpair()
    with ours:
        daemon.add_connection(theirs)
        data = b""
        closed = False
        ours.setblocking(False)
        for piece in [*pieces, b""]:
            with contextlib.suppress(OSError):
                ours.sendall(piece)
            for _ in range(4):
                daemon.run()
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                while not closed:
                    part = ours.recv(1 << 20)
                    data += part
                    closed = not part
        daemon.stop()
    return data, closed


@pytest.mark.parametrize("way", [short, returned, told])
@pytest.mark.parametrize("name", NAMES)
def test_each_answer_to_each_request(way: Way, name: str) -> None:
    target = b"/%d" % NAMES.index(name)
    for request in REQUESTS:
        asked = request % target if b"%s" in request else request
        assert seen(way, [asked]) == seen(long, [asked]), asked
    assert KEPT.references == 1


STORY = st.lists(st.tuples(st.sampled_from(REQUESTS), st.sampled_from(NAMES)), min_size=1, max_size=5)


@given(
    story=STORY, cuts=st.lists(st.integers(0, 400), max_size=3), way=st.sampled_from((short, returned, told))
)
@settings(max_examples=150, deadline=None)
def test_any_requests_in_any_pieces(story: list[tuple[bytes, str]], cuts: list[int], way: Way) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(answering, "AT_ONCE_NS", 1 << 62)  # however slow this machine is
        data = b"".join(
            request % (b"/%d" % NAMES.index(name)) if b"%s" in request else request for request, name in story
        )
        at = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
        pieces = [data[begin:end] for begin, end in pairwise(at)]
        assert seen(way, pieces) == seen(long, pieces)
        assert KEPT.references == 1
