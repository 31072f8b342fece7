"""A parser that has seen heads before says of the next one what a new parser says."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quiesce.worker.core import head_memo
from quiesce.worker.core.http1 import HeadParser
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Request

LIMITS = Limits(header_bytes=400, header_count=6, line_bytes=60)
REQUEST_LINES = (
    b"GET / HTTP/1.1", b"GET /a%20b?q=1 HTTP/1.1", b"GET / HTTP/1.0", b"POST / HTTP/1.1", b"OPTIONS * HTTP/1.1",
    b"GET http://a/x HTTP/1.1", b"GET  / HTTP/1.1", b"GET /\x01 HTTP/1.1", b"GET /#f HTTP/1.1", b"GET /\r HTTP/1.1",
    b"GET / HTTP/2.0", b"CONNECT a:1 HTTP/1.1", b"PURGE /x HTTP/1.1", b"GET /" + b"x" * 60 + b" HTTP/1.1",
)  # fmt: skip
FIELDS = (
    b"Host: a", b"host:a", b"Host: a b", b"Host: b", b"Connection: close", b"Connection: keep-alive",
    b"Connection: Keep-Alive, Upgrade", b"Connection: x,close", b"Upgrade: websocket", b"Content-Length: 3",
    b"Content-Length: 4", b"Content-Length: x", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
    b"Expect: x", b"Accept: */*", b"accept:  */* ", b"Cookie: a=1", b"Cookie: a=2", b"X: ", b"X:", b"X", b": x",
    b" folded", b"\tfolded", b"X : 1", b"X: a\rb", b"X: a\nb", b"X: \x00", b"X: \xff", b"Y: " + b"y" * 300, b"",
)  # fmt: skip
HEADS = st.builds(
    lambda line, fields: b"\r\n".join((line, *fields)) + b"\r\n\r\n",
    st.sampled_from(REQUEST_LINES),
    st.lists(st.sampled_from(FIELDS), max_size=7).map(lambda fields: [b"Host: a", *fields])
    | st.lists(st.sampled_from(FIELDS), max_size=7),
).map(lambda head: head[: head.index(b"\r\n\r\n") + 4])


def verdict(parser: HeadParser, head: bytes) -> tuple[object, ...]:
    try:
        request = parser.parse(head)
    except Rejected as rejected:
        return rejected.status, rejected.reason
    return (
        request.method, request.target, request.version, request.headers, request.length, request.keep_alive,
        request.expects_continue, request.offers_upgrade, request.raw_path, request.path,
        request.query,
    )  # fmt: skip


@settings(max_examples=200)
@given(st.lists(HEADS, min_size=2, max_size=8))
@example(
    [b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n"]
)
@example([b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"] * 2)
@example([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"] * 3)
@example([b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nHost: a\r\n\r\n"] * 2)
def test_what_was_seen_before_changes_no_verdict(heads: list[bytes]) -> None:
    used = HeadParser(LIMITS)
    for head in heads * 2:
        assert verdict(used, head) == verdict(HeadParser(LIMITS), head)


def test_headers_are_the_requests_own() -> None:
    parser = HeadParser(LIMITS)
    for _ in range(6):
        request = parser.parse(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n")
        assert request.headers == [(b"host", b"a"), (b"x", b"1")]
        request.headers.clear()


def test_it_is_bounded_and_keeps_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_memo, "_MOST", 50)
    parser = HeadParser(Limits())
    for number in range(500):
        for _ in range(2):
            parser.parse(
                b"GET /%d HTTP/1.1\r\nHost: h%d\r\nX: %d\r\nCookie: %d\r\nAuthorization: %d\r\n\r\n"
                % ((number,) * 5)
            )
    memo, fields = parser.memo, parser.memo._fields
    for known in (memo._heads, memo._lines, memo._hosts, fields, fields._deciding):
        assert len(known) <= 50
        assert not any(b"ookie" in line or b"uthorization" in line for line in known)


def test_long_lines_are_not_kept() -> None:
    parser = HeadParser(Limits())
    long = b"y" * 300
    for _ in range(3):
        parser.parse(
            b"GET /%b HTTP/1.1\r\nHost: %b\r\nX: %b\r\nConnection: %b\r\n\r\n" % (long, long, long, long)
        )
    memo, fields = parser.memo, parser.memo._fields
    assert not memo._heads and not memo._lines and not memo._hosts and not fields and not fields._deciding


def test_a_request_that_is_recalled_lacks_nothing() -> None:
    """It is made without its constructor."""
    head = b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n"
    parser = HeadParser(Limits())
    new = parser.parse(head)
    while (recalled := parser.memo.recall(head)) is None:
        parser.parse(head)
    assert new.raw_path == b"/a"
    for name in Request.__slots__:
        if name != "_parts":  # where each has a place of its own
            assert getattr(recalled, name) == getattr(new, name)
