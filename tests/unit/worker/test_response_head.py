"""What an application may put into a head, and what comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce import Response
from quiesce.worker.core.request import Request, unquote
from quiesce.worker.core.response_head import BadResponse, encode


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4), st.binary(max_size=8))
def test_no_header_ends_the_head_early(headers: list[tuple[bytes, bytes]], reason: bytes) -> None:
    try:
        head = encode(200, headers, reason)
    except BadResponse:
        return
    lines = head.lines.split(b"\r\n")
    assert lines[-1] == b"" and b"" not in lines[:-1]
    assert len(lines) <= len(headers) + 2
    assert not any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines)


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 1000])
def test_only_final_statuses(status: int) -> None:
    with pytest.raises(BadResponse):
        encode(status, [])


def test_length_given_twice_alike_is_sent_once_and_otherwise_refused() -> None:
    head = encode(200, [(b"Content-Length", b"3"), (b"content-length", b"3")])
    assert (head.length, head.lines.lower().count(b"content-length")) == (3, 1)
    with pytest.raises(BadResponse):
        encode(200, [(b"Content-Length", b"3"), (b"Content-Length", b"4")])


def test_no_length_in_204() -> None:
    assert b"Content-Length" not in encode(204, [(b"Content-Length", b"3")]).lines


def test_response_takes_text_bytes_mappings_and_pairs() -> None:
    assert Response("é").body == "é".encode()
    assert (
        Response("", headers=[("Set-Cookie", "a"), ("Set-Cookie", "b")]).head.lines.count(b"Set-Cookie") == 2
    )
    assert b"Content-Type: text/html\r\n" in Response("", content_type="text/html").head.lines
    own = Response("", headers={"content-type": "x/y"}).head.lines
    assert own.lower().count(b"content-type") == 1


def test_wire_is_cached_until_the_date_or_the_connection_changes() -> None:
    response = Response(b"x")
    first = response.wire(b"Date: 1\r\n", b"")
    assert response.wire(b"Date: 1\r\n", b"") is first
    assert response.wire(b"Date: 2\r\n", b"") != first
    assert b"Connection: close" in response.wire(b"Date: 2\r\n", b"Connection: close\r\n")


@pytest.mark.parametrize(
    ("target", "raw", "path", "query"),
    [
        (b"/", b"/", "/", b""),
        (b"/a%20b?c=%20", b"/a%20b", "/a b", b"c=%20"),
        (b"/caf%c3%A9", b"/caf%c3%A9", "/café", b""),
        (b"/%e9", b"/%e9", "/é", b""),
        (b"/%zz%4", b"/%zz%4", "/%zz%4", b""),
        (b"/%2541", b"/%2541", "/%41", b""),
        (b"/a?b?c", b"/a", "/a", b"b?c"),
        (b"/a#b?c", b"/a", "/a", b""),
        (b"*", b"*", "*", b""),
        (b"http://h", b"/", "/", b""),
        (b"http://h/p?q", b"/p", "/p", b"q"),
        (b"http://h?q/r", b"/", "/", b"q/r"),
    ],
)
def test_targets(target: bytes, raw: bytes, path: str, query: bytes) -> None:
    request = Request("GET", target)
    assert (request.raw_path, request.path, request.query) == (raw, path, query)


@given(st.binary(max_size=20))
def test_unquote_undoes_quoting(data: bytes) -> None:
    assert unquote(b"".join(b"%%%02X" % c for c in data)) == data
    assert unquote(data.replace(b"%", b"%25")) == data
