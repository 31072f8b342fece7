"""A request's body is the same to an application however it came, and the usual one costs next to nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from quiesce import Request, Response
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.limits import Limits
from quiesce.worker.net import stream
from wire.serving import Bench, bench, read_reply, serving
from wire.test_answers import GET, Streams

BODY = bytes(range(256)) * 4
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def _native(request: Request) -> Response:
    assert request.file is None or request.file.tell() == 0
    first, body, rest = request.read(3), request.body, request.read()
    assert first + rest == body == request.body
    return Response(f"{type(request.file).__name__} {hashlib.md5(body).hexdigest()}")


def _wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    file = environ["wsgi.input"]
    data = file.read(3) + file.readline() + b"".join(file.readlines(1)) + b"".join(file) + file.read()
    start_response("200 OK", [])
    return [f"{type(file).__name__} {hashlib.md5(data).hexdigest()}".encode()]


APPS = {"native": lambda: NativeApp(_native), "wsgi": lambda: WsgiApp(_wsgi), "streams": Streams}


def _answer(made: Bench, request: bytes, pieces: list[int]) -> bytes:
    at = 0
    for size in [*pieces, len(request)]:
        made.send(request[at : at + size])
        at += size
    return b"\r\n".join(line for line in made.read().split(b"\r\n") if not line.startswith(b"Date"))


@pytest.mark.parametrize("kind", APPS)
@pytest.mark.parametrize("size", [1, 8, 9, 1024], ids="{} bytes".format)
@pytest.mark.parametrize("behind", [b"", GET], ids=["alone", "pipelined"])
def test_however_it_is_cut_it_is_the_same(kind: str, size: int, behind: bytes) -> None:
    """In one piece with its head it goes a shorter way; more than memory holds goes into a file on both."""
    head = POST % size
    chunked = CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (size, BODY[:size])
    with bench(APPS[kind](), limits=Limits(body_memory=8)) as made:
        answers = {
            _answer(made, request + behind, cut)
            for request in (head + BODY[:size], chunked)
            for cut in (
                [],
                [len(head)],
                [len(head) + 1],
                [len(request) - 1],
                [len(request)],
                [1] * len(request),
            )
        }
        (answer,) = answers
        assert answer.count(b"HTTP/1.1 200 ") == 1 + bool(behind)
        if kind != "streams":
            assert (b"BufferedRandom" if size > 8 else b"BytesIO") in answer


@pytest.mark.parametrize("kind", APPS)
def test_a_body_that_comes_with_its_head_needs_nothing_but_its_bytes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "decoder", None)
    monkeypatch.setattr(stream, "BodyStore", None)
    with bench(APPS[kind]()) as made:
        for _ in range(3):
            assert b"200 OK" in _answer(made, POST % len(BODY) + BODY, [])


def test_nor_does_one_that_comes_at_once_behind_it_need_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BodyStore", None)
    with bench(NativeApp(_native)) as made:
        assert b"200 OK" in _answer(made, POST % len(BODY) + BODY, [len(POST % len(BODY))])


@pytest.mark.parametrize("threads", [1, 2])
def test_its_file_is_closed_after_the_answer(threads: int) -> None:
    requests: list[Request] = []

    def keeps(request: Request) -> Response:
        assert request.file is not None
        requests.append(request)
        return Response(request.read())

    with serving(keeps, threads=threads, limits=Limits(body_memory=8)) as served, served.connect() as sock:
        for size in (5, 50):
            sock.sendall(POST % size + BODY[:size])
            assert read_reply(sock).body == BODY[:size]
            served.until(lambda: requests[-1].file is not None and requests[-1].file.closed)


def test_there_is_no_file_without_a_body() -> None:
    with bench(NativeApp(_native)) as made:
        assert b"NoneType" in _answer(made, GET, [])
        assert b"NoneType" in _answer(made, POST % 0, [])
        assert b"BytesIO" in _answer(made, CHUNKED + b"0\r\n\r\n", [])
