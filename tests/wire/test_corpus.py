"""Requests and what becomes of them: whole, byte by byte, with a tail.

A request that two servers read in two ways is how one user's bytes become another user's request, so every doubtful
one is refused, and refused the same way however it arrives.
"""

from __future__ import annotations

import pytest

from quiesce import Request, Response
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.core.limits import Limits
from wire.serving import bench

LIMITS = Limits(header_bytes=600, line_bytes=200, header_count=8, body_bytes=40, body_memory=8)

HOST = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

GOOD = {
    "plain": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no space after the colon": b"GET / HTTP/1.1\r\nHost:a\r\n\r\n",
    "white space round a value": b"GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n",
    "empty value": b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "latin-1 in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n",
    "tab in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "1.0 without host": b"GET / HTTP/1.0\r\n\r\n",
    "1.0 keep-alive": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "1.2 is 1.x": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "connection: close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "an offer to upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "content-length 0": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "leading zeros": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nhello",
    "get with a body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "body beyond memory": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n" + b"x" * 30,
    "chunked": CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "chunked in capitals": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "chunk extension": CHUNKED + b'3;a="b"\r\nabc\r\n0;x\r\n\r\n',
    "trailers": CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\nZ:\r\n\r\n",
    "leading zeros of a chunk": CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n",
}

BAD = {
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "two hosts in 1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "host with a user": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "length and chunked": (400, POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked and length": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    "length twice, same": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "length twice, different": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "length list": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length with plus": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "length with minus": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "length in hex": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "length with letters": (400, POST + b"Content-Length: 3abc\r\n\r\nabc"),
    "empty length": (400, POST + b"Content-Length:\r\n\r\n"),
    "length with a space inside": (400, POST + b"Content-Length: 3 3\r\n\r\nabc"),
    "length in other digits": (400, POST + b"Content-Length: \xb2\r\n\r\nabc"),
    "length beyond 64 bits": (413, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    "body too large": (413, POST + b"Content-Length: 41\r\n\r\n"),
    "gzip": (501, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "gzip, chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, chunked": (501, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, identity": (501, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "identity": (501, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "xchunked": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "quoted chunked": (501, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "chunked twice": (501, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "vertical tab before chunked": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunked in 1.0": (400, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "connect": (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "http/2.0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "http/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\n"),
    "http/0.9 with a version": (505, b"GET / HTTP/0.9\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: a\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "two digits": (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    "not http": (400, b"GET / HTCPCP/1.0\r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space behind the version": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "space in front": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab as a delimiter": (400, b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    "method is no token": (400, b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "long method": (400, b"A" * 65 + b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "raw utf-8 in the target": (400, "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
    "delete in the target": (400, b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": (400, b"GET x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk for get": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "user in the target": (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no authority": (400, b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare lf in the line": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare lf in the head": (400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
    "bare lfs only": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare cr in a value": (400, HOST + b"X: a\rb\r\n\r\n"),
    "bare cr in the line": (400, b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n"),
    "nul in a value": (400, HOST + b"X: a\0b\r\n\r\n"),
    "control character in a value": (400, HOST + b"X: a\x01b\r\n\r\n"),
    "delete in a value": (400, HOST + b"X: a\x7fb\r\n\r\n"),
    "folded": (400, HOST + b"X: a\r\n b\r\n\r\n"),
    "folded by a tab": (400, HOST + b"X: a\r\n\tb\r\n\r\n"),
    "white space before the first field": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "space before the colon": (400, HOST + b"X : a\r\n\r\n"),
    "space before length's colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "space in a name": (400, HOST + b"X Y: a\r\n\r\n"),
    "empty name": (400, HOST + b": a\r\n\r\n"),
    "no colon": (400, HOST + b"X\r\n\r\n"),
    "latin-1 in a name": (400, HOST + b"X\xe9: a\r\n\r\n"),
    "brackets in a name": (400, HOST + b"X(): a\r\n\r\n"),
    "tls on a plain port": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "long line": (414, b"GET /" + b"x" * 250 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "endless line": (414, b"GET /" + b"x" * 700),
    "large header": (431, HOST + b"X: " + b"x" * 700 + b"\r\n\r\n"),
    "endless header": (431, HOST + b"X: " + b"x" * 700),
    "many fields": (431, HOST + b"A: b\r\n" * 8 + b"\r\n"),
    "expects something else": (417, HOST + b"Expect: 200-ok\r\n\r\n"),
    "chunk size is no number": (400, CHUNKED + b"x\r\n\r\n"),
    "chunk size in 0x": (400, CHUNKED + b"0x1\r\na\r\n0\r\n\r\n"),
    "negative chunk": (400, CHUNKED + b"-1\r\n\r\n"),
    "chunk size with a plus": (400, CHUNKED + b"+1\r\na\r\n0\r\n\r\n"),
    "chunk size with an underscore": (400, CHUNKED + b"1_0\r\na\r\n0\r\n\r\n"),
    "space behind a chunk size": (400, CHUNKED + b"1 \r\na\r\n0\r\n\r\n"),
    "empty chunk size": (400, CHUNKED + b"\r\n0\r\n\r\n"),
    "chunk size beyond everything": (400, CHUNKED + b"f" * 17 + b"\r\n"),
    "chunk too large": (413, CHUNKED + b"29\r\n"),
    "chunks too large together": (413, CHUNKED + b"20\r\n" + b"x" * 32 + b"\r\n10\r\n"),
    "chunk longer than its size": (400, CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    "chunk ended by lf": (400, CHUNKED + b"1\r\na\n0\r\n\r\n"),
    "chunk size ended by lf": (400, CHUNKED + b"1\na\r\n0\r\n\r\n"),
    "long extension": (400, CHUNKED + b"1;" + b"x" * 300),
    "open quote in an extension": (400, CHUNKED + b'1;a="\r\na\r\n0\r\n\r\n'),
    "nul in an extension": (400, CHUNKED + b"1;\0\r\na\r\n0\r\n\r\n"),
    "trailer without colon": (400, CHUNKED + b"0\r\nX\r\n\r\n"),
    "trailer with a space": (400, CHUNKED + b"0\r\nX : y\r\n\r\n"),
    "large trailers": (431, CHUNKED + b"0\r\nX: " + b"y" * 700),
}  # fmt: skip

_seen: list[tuple[str, bytes, bytes]] = []


def handler(request: Request) -> Response:
    _seen.append((request.method, request.target, request.body))
    return Response(b"<" + request.body + b">")


APP = NativeApp(handler)
TAIL = b"GET /tail HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def _run(pieces: list[bytes]) -> bytes:
    _seen.clear()
    with bench(APP, LIMITS) as one:
        for piece in pieces:
            one.send(piece)
        return one.read()


def _splits(data: bytes) -> dict[str, list[bytes]]:
    return {
        "whole": [data],
        "byte by byte": [data[i : i + 1] for i in range(len(data))],
        "with a tail": [data + TAIL],
        "tail in its own piece": [data, TAIL],
    }


@pytest.mark.parametrize("split", ["whole", "byte by byte", "with a tail", "tail in its own piece"])
@pytest.mark.parametrize("name", GOOD)
def test_served_however_it_arrives(name: str, split: str) -> None:
    data = GOOD[name]
    reply = _run(_splits(data)[split])

    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    last = b"Connection: close" in data or (b"HTTP/1.0" in data and b"keep-alive" not in data)
    served = len(_seen)
    if "tail" in split and not last:
        assert [target for _, target, _ in _seen][1:] == [b"/tail"]
        assert reply.endswith(b"<>EOF")
    else:
        assert served == 1
        assert reply.endswith(b"EOF") == last


@pytest.mark.parametrize("split", ["whole", "byte by byte", "with a tail", "tail in its own piece"])
@pytest.mark.parametrize("name", BAD)
def test_refused_however_it_arrives(name: str, split: str) -> None:
    status, data = BAD[name]
    reply = _run(_splits(data)[split])

    assert reply.startswith(b"HTTP/1.1 %d " % status), reply
    assert b"\r\nConnection: close\r\n" in reply
    assert b"\r\nContent-Type: text/plain" in reply
    assert reply.endswith(b"EOF")
    assert reply.count(b"\r\nDate: ") == 1, "what followed was taken for a request"
    assert _seen == []


def test_bodies_arrive_whole() -> None:
    for name, want in (("chunked", b"abc0123456789"), ("content-length", b"hello"), ("trailers", b"abc")):
        for pieces in _splits(GOOD[name]).values():
            _run(pieces)
            assert _seen[0][2] == want


def test_empty_input_gets_no_answer() -> None:
    assert _run([b"\r\n"]) == b""
    assert _run([b""]) == b""
