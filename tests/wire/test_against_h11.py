"""What we accept, h11 accepts too, and reads the same way.

h11 is the strictest parser around, and not ours: a request that both read alike is one that no proxy in between
reads differently.
"""

from __future__ import annotations

import h11
from hypothesis import HealthCheck, given, settings
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

_NASTY = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"\0", b"\x0b", b"\x7f", b"\xe9", b"0", b"3", b"a", b"\r\n ",
     b"\r\n\r\n", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: b\r\n", b"+", b"-"]
)  # fmt: skip
_HEADERS = st.lists(
    st.sampled_from(
        [b"Host: a", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked",
         b"transfer-encoding: CHUNKED", b"X: y", b"X: y \t ", b"X-Y: \xe9 z", b"Connection: close",
         b"Connection: keep-alive, x",
         b"Expect: 100-continue", b"Accept: */*", b"Cookie: a=b; c", b"Content-Length: 03", b"Upgrade: x", b"X:"]
    ),
    max_size=4,
)  # fmt: skip
_BODIES = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n", b"0\r\n\r\n"]
)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    line = b" ".join(
        (
            draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"BREW", b"get"])),
            draw(st.sampled_from([b"/", b"/a?b", b"/%41", b"/a#b", b"http://a/b", b"*", b"x"])),
            draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"])),
        )
    )
    host = draw(st.sampled_from([[b"Host: a"], [b"Host: a"], [b"Host: a"], []]))
    data = b"\r\n".join([line, *host, *draw(_HEADERS), b"", b""]) + draw(_BODIES)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_NASTY) + data[at + draw(st.integers(0, 2)) :]
    return data


def _h11(data: bytes) -> tuple[h11.Request, bytes] | None:
    """The first request as h11 reads it; None if it refuses it or waits for more."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    try:
        request = server.next_event()
        if not isinstance(request, h11.Request):
            return None
        body = b""
        while isinstance(event := server.next_event(), h11.Data):
            body += bytes(event.data)
        return (request, body) if isinstance(event, h11.EndOfMessage) else None
    except h11.RemoteProtocolError:
        return None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_requests(), st.integers(0, 200))
def test_whatever_we_serve_h11_reads_the_same(data: bytes, split: int) -> None:
    _seen.clear()
    with bench(APP, LIMITS) as one:
        one.send(data[:split])
        one.send(data[split:])
        reply = one.read()
    stripped = data
    while stripped.startswith(b"\r\n"):  # RFC 9112 §2.2, which h11 leaves out
        stripped = stripped[2:]
    theirs = _h11(stripped)
    if not _seen:
        assert b" 200 " not in reply
        return
    assert theirs is not None, f"served {data!r}, which h11 refuses"
    method, target, headers, body = _seen[0]
    request, their_body = theirs
    assert (method.encode(), target, body) == (bytes(request.method), bytes(request.target), their_body)
    if target.startswith(b"/"):
        ours = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in headers]
        assert ours == [(bytes(n), bytes(v)) for n, v in request.headers]


@settings(max_examples=200, deadline=None)
@given(_requests(), st.data())
def test_verdict_does_not_depend_on_the_split(data: bytes, draw: st.DataObject) -> None:
    verdicts = []
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    for pieces in ([data], [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]):
        _seen.clear()
        with bench(APP, LIMITS) as one:
            for piece in pieces:
                one.send(piece)
            reply = one.read()
        statuses = [int(part[:3]) for part in reply.split(b"HTTP/1.1 ")[1:]]
        verdicts.append(([s for s in statuses if s != 100], _seen.copy(), reply.endswith(b"EOF")))
    assert verdicts[0] == verdicts[1]
