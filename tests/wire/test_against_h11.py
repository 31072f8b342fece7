"""What we accept, h11 accepts too, and reads the same way; what it accepts and we do not, is on a list.

h11 is the strictest parser around, and not ours: a request that both read alike is one that no proxy in between
reads differently.
"""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quiesce import Request, Response
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.core.limits import Limits
from wire.serving import bench

_seen: list[tuple[str, bytes, list[tuple[bytes, bytes]], bytes]] = []


def handler(request: Request) -> Response:
    _seen.append((request.method, request.target, list(request.headers), request.body))
    return Response(b"")


APP = NativeApp(handler)
LIMITS = Limits(header_bytes=4000, line_bytes=1000)

_H = b"GET / HTTP/1.1\r\nHost: a\r\n"
_C = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

# Where we are stricter than h11: our reason, and a request that h11 reads.  Why is in docs/http1.md.
STRICTER = {
    "a line ends in a bare CR or LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "control characters in the header section": _H + b"X: a\x01b\r\n\r\n",
    "exactly one Host is needed": b"GET / HTTP/1.2\r\n\r\n",
    "Host is malformed": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "the request target is neither a path nor an http URI": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "the request target's host is malformed": b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "the request target holds a fragment": b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
    "this server speaks HTTP/1.1 and 1.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "this server is no proxy": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no method has so long a name": b"A" * 65 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "Transfer-Encoding in an HTTP/1.0 request": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "the only expectation known here is 100-continue": _H + b"Expect: tea\r\n\r\n",
    "a chunk's size is not a hexadecimal number": _C + b"1 \r\na\r\n0\r\n\r\n",
    "a chunk's extension is malformed": _C + b"1;\r\na\r\n0\r\n\r\n",
    "control characters in a chunk's size or trailer": _C + b"1;a\x01\r\na\r\n0\r\n\r\n",
    "a trailer field is malformed": _C + b"0\r\nX: a\r\n b\r\n\r\n",
    "the header section is larger than": _H + b"X: " + b"y" * 4000 + b"\r\n\r\n",
    "the request line is longer than": b"GET /" + b"y" * 1000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "more than 100 fields": _H + b"X: y\r\n" * 100 + b"\r\n",
    "a chunk's size line is too long": _C + b"1;a=" + b"b" * 300 + b"\r\na\r\n0\r\n\r\n",
}  # fmt: skip

# The same where llhttp is first to say it, in the words of its version: by what is wrong with the head.
MALFORMED = {
    "folded": _H + b"X: a\r\n b\r\n\r\n",
    "length twice": _H + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length in a list": _H + b"Content-Length: 0, 0\r\n\r\n",
    "length and chunked": _C[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
}
_MALFORMED = re.compile(
    rb"\r\n[ \t]|content-length:[^\r]*,|(content-length|transfer-encoding):.*\n(content-length|transfer-encoding):",
    re.I | re.S,
)

# Where h11 is stricter: it does not know white space before a chunk extension, which RFC 9112 §7.1.1 allows for; keeps
# no connection of HTTP/1.0 alive (§9.3); and knows no empty lines before a request (§2.2), so that we take them away.
# And it judges a Content-Length among the trailers, which says nothing there (RFC 9110 §6.5.1).
_BAD_TRAILER = re.compile(
    rb"\r\n0+[^\r]*\r\n(?:[^\r]+\r\n)*?(?:content-length|transfer-encoding)[ \t]*:", re.I
)
_BAD_WHITE_SPACE = re.compile(rb"[0-9A-Fa-f][ \t]+;")
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r]*\r\n")

_NASTY = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"\0", b"\x0b", b"\x7f", b"\xe9", b"0", b"3", b"a", b"\r\n ",
     b"\r\n\r\n", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: b\r\n", b"+", b"-",
     b"#", b"@", b"[", b"%", b'"', b"\\", b"=", b"/", b"HTTP/1.1"]
)  # fmt: skip
_HEADERS = st.lists(
    st.sampled_from(
        [b"Host: a", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked",
         b"transfer-encoding: CHUNKED", b"X: y", b"X: y \t ", b"X-Y: \xe9 z", b"Connection: close",
         b"Connection: keep-alive, x", b"Connection: , CLOSE", b"Transfer-Encoding: gzip, chunked",
         b"Transfer-Encoding: identity", b"Content-Length: 3, 3", b"Content-Length: +3", b"Content_Length: 5",
         b"Expect: 100-continue", b"Expect: ,", b"Accept: */*", b"Cookie: a=b; c", b"Content-Length: 03", b"Upgrade: x",
         b"X:", b"X : y", b"X", b"TE: trailers", b"Connection: upgrade", b"Upgrade: websocket"]
    ),
    max_size=4,
)  # fmt: skip
_BODIES = st.sampled_from(
    [b"", b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n", b"0\r\n\r\n",
     b'2 ; a = "b;\\"" \t;c\r\nab\r\n0\r\n\r\n', b"0\r\nContent-Length: 3\r\n\r\n"]
)  # fmt: skip
_HOSTS = st.sampled_from(
    [[b"Host: a"]] * 6
    + [[], [b"Host:"], [b"Host: a:80"], [b"Host: [::1]:8"], [b"Host: a, b"], [b"Host: a:b"], [b"Host: a/b"]]
)


@st.composite
def _one(draw: st.DrawFn) -> bytes:
    line = b" ".join(
        (
            draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"BREW", b"get", b"OPTIONS"])),
            draw(
                st.sampled_from([b"/", b"/a?b", b"/%41", b"/a#b", b"http://a/b", b"http://a:1", b"*", b"x"])
            ),
            draw(st.sampled_from([b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"])),
        )
    )
    return b"\r\n".join([line, *draw(_HOSTS), *draw(_HEADERS), b"", b""]) + draw(_BODIES)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(_one(), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_NASTY) + data[at + draw(st.integers(0, 2)) :]
    return data


def _h11(data: bytes) -> list[tuple[h11.Request, bytes]]:
    """The requests as h11 reads them, up to one that it refuses, that is not whole, or after which it closes."""
    read = []
    try:
        while data := _without_empty_lines(data):
            server = h11.Connection(h11.SERVER)
            server.receive_data(data)
            request = server.next_event()
            if not isinstance(request, h11.Request):
                break
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                break
            read.append((request, body))
            server.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                break
            data = server.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return read


def _ours(pieces: list[bytes]) -> bytes:
    _seen.clear()
    with bench(APP, LIMITS) as one:
        for piece in pieces:
            one.send(piece)
        return one.read()


def _reason(reply: bytes) -> str:
    """What we say about a request that we refuse; "" if nothing was refused."""
    status = int(_STATUS.findall(reply)[-1]) if b"HTTP/1.1 " in reply else 0
    return reply.rpartition(b"%d " % status)[2].partition(b": ")[2].decode() if status >= 400 else ""


def _without_empty_lines(data: bytes) -> bytes:
    while data.startswith(b"\r\n"):  # RFC 9112 §2.2, which h11 leaves out
        data = data[2:]
    return data


def _same(
    ours: tuple[str, bytes, list[tuple[bytes, bytes]], bytes], theirs: tuple[h11.Request, bytes]
) -> None:
    method, target, headers, body = ours
    request, their_body = theirs
    assert (method.encode(), target, body) == (bytes(request.method), bytes(request.target), their_body)
    if target.startswith(b"/"):
        lower = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in headers]
        assert lower == [(bytes(n), bytes(v)) for n, v in request.headers]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_requests(), st.integers(0, 200))
@example(_C + b"3\r\nabc\r\n0\r\nContent-Length:: 3\r\n\r\n", 0)
def test_whatever_we_serve_h11_reads_the_same(data: bytes, split: int) -> None:
    reply = _ours([data[:split], data[split:]])
    served = len(_seen)
    theirs = _h11(data)
    for ours, their in zip(_seen, theirs, strict=False):
        _same(ours, their)
    if served > len(theirs):
        last = theirs[-1][0] if theirs else None
        assert (
            _BAD_WHITE_SPACE.search(data)
            or _BAD_TRAILER.search(data)
            or (last is not None and last.http_version == b"1.0")  # of which h11 keeps none alive
        ), f"served {data!r}, which h11 refuses"
    if served < len(theirs):
        # The answer to HEAD says no reason.
        reason = _reason(_ours([data.replace(b"HEAD ", b"POST ")]) if b"HEAD " in data else reply)
        assert reason, f"did not serve {data!r}, which h11 does, and said nothing"
        known = any(reason.startswith(known) for known in STRICTER)
        if reason.startswith("the header section is malformed"):
            known = _MALFORMED.search(data) is not None
        assert known, f"{data!r}: {reason}, which h11 serves"


@pytest.mark.parametrize("reason", [*STRICTER, *MALFORMED])
def test_the_list_of_where_we_are_stricter_holds(reason: str) -> None:
    data = STRICTER.get(reason) or MALFORMED[reason]
    assert len(_h11(data)) == 1, "h11 has learned"
    reply = _ours([data])
    assert _seen == [] and reply.startswith(b"HTTP/1.1 ")
    if reason in STRICTER:
        assert _reason(reply).startswith(reason)


@settings(max_examples=200, deadline=None)
@given(_requests(), st.data())
def test_verdict_does_not_depend_on_the_split(data: bytes, draw: st.DataObject) -> None:
    verdicts = []
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for split in ([data], pieces, [data[i : i + 1] for i in range(len(data))]):
        reply = _ours(split)
        statuses = [int(s) for s in _STATUS.findall(reply) if s != b"100"]
        verdicts.append((statuses, _seen.copy(), reply.endswith(b"EOF")))
    assert verdicts[0] == verdicts[1] == verdicts[2]
