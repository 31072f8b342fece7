"""A field line that is judged by itself is judged as the parser would: of any head, the two say the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from properties.worker.test_head_memo import verdict
from quiesce.worker.core.http1 import HeadParser
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.rejected import Rejected

LIMITS = Limits(header_bytes=500, header_count=8, line_bytes=80, body_bytes=10_000)
NAMES = (
    b"Host", b"hOST", b"Connection", b"connection", b"Content-Length", b"content-length", b"Content_Length",
    b"Transfer-Encoding", b"TRANSFER-encoding", b"Expect", b"Upgrade", b"Proxy-Connection", b"Cookie", b"Authorization",
    b"Content-Type", b"Accept", b"X", b"!#$%&'*+-.^_`|~09", b"Content-Lengt", b"Content-Length2",
)  # fmt: skip
VALUES = (
    b"", b"a", b"a:80", b"a b", b"u@a", b"\xe9", b"a, b", b"close", b"Close", b"keep-alive", b"Keep-Alive", b"x, close",
    b"upgrade", b"keep-alive, Upgrade", b",", b"0", b"3", b"03", b"+3", b"-1", b"3, 3", b"3 3", b"99999",
    b"9" * 30, b"0x3",
    b"chunked", b"CHUNKED", b"gzip, chunked", b"chunked, chunked", b"identity", b"chunked;q=1", b"100-continue",
    b"100-Continue", b"tea", b"websocket", b"h2c", b"text/html; q=0.9", b":", b"a:b:c", b"\x80\xff",
)  # fmt: skip
NASTY = (
    b" ", b"\t", b"\r", b"\n", b"\0", b"\x0b", b"\x1f", b"\x7f", b"\x80", b"\xff", b":", b",", b";", b"_", b"\r\n",
    b"\r\n ", b"\n\r", b" :", b"+", b'"', b"(", b"\\",
)  # fmt: skip
SPACE = st.sampled_from((b"", b" ", b" ", b" ", b"\t", b" \t "))
FIELDS = st.builds(
    b"%b:%b%b%b".__mod__,
    st.tuples(st.sampled_from(NAMES), SPACE, st.sampled_from(VALUES), SPACE),
)
REQUEST_LINES = st.sampled_from(
    (b"GET / HTTP/1.1", b"GET / HTTP/1.1", b"POST /a%20b?q HTTP/1.1", b"HEAD / HTTP/1.0", b"GET http://b/ HTTP/1.1",
     b"OPTIONS * HTTP/1.1", b"GET / HTTP/1.2", b"GET /x")
)  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Good ones for the most part, and what is nearly good."""
    fields = draw(st.lists(FIELDS, max_size=9))
    if draw(st.integers(0, 3)):  # else there is no Host, or a strange one, or two
        fields = [field for field in fields if field[:5].lower() != b"host:"]
        fields.insert(draw(st.sampled_from((0, 0, len(fields)))), b"Host: a")
    head = b"\r\n".join((draw(REQUEST_LINES), *fields))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(st.sampled_from(NASTY)) + head[at + draw(st.integers(0, 2)) :]
    head += b"\r\n\r\n"
    return head[: head.index(b"\r\n\r\n") + 4]


def taught(limits: Limits = LIMITS) -> HeadParser:
    """Who has seen these names, and is left with little to ask."""
    parser = HeadParser(limits)
    for name in NAMES:
        value = b"chunked" if name[:1] in b"Tt" else b"1"
        try:
            parser._parse(b"GET / HTTP/1.1\r\nHost: a\r\n%b: %b\r\n\r\n" % (name, value))
        except Rejected:
            pass  # whether it may say so is another question
        assert name in parser._names
    return parser


def the_parser_s(head: bytes, limits: Limits = LIMITS) -> tuple[object, ...]:
    """What it says when it judges the head as a whole."""
    parser = HeadParser(limits)
    parser.parse = parser._parse  # type: ignore[method-assign]
    return verdict(parser, head)


@settings(max_examples=500, deadline=None)
@given(st.lists(heads(), min_size=1, max_size=4))
@example([b"GET / HTTP/1.1\r\nHost: a\r\nX \r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\t\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nX: a\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nX: a\r\nHost: a\r\nHost: a\r\n\r\n"])
@example([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"] * 3)
@example(
    [b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nExpect: 100-continue\r\n\r\n"] * 3
)
def test_both_judge_alike(several: list[bytes]) -> None:
    parser = taught()
    for head in several:
        said = the_parser_s(head)
        for _ in range(3):  # as something new, as lines that are known, as a head that is known
            assert verdict(parser, head) == said


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.binary(max_size=40), st.binary(max_size=4), st.binary(max_size=4))
def test_both_judge_any_bytes_alike(name: bytes, value: bytes, before: bytes, behind: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + before + name + behind + b":" + value + b"\r\n\r\n"
    head = head[: head.index(b"\r\n\r\n") + 4]
    assert verdict(taught(), head) == the_parser_s(head)


@pytest.mark.parametrize(
    "name", [b"X", b"Cookie", b"Host", b"Connection", b"Content-Length", b"Transfer-Encoding"]
)
def test_each_byte_in_each_place(name: bytes) -> None:
    parser = taught()
    value = b"chunked" if name[:1] == b"T" else b"11"
    for place in (
        b"%b" + name + b": " + value, name[:1] + b"%b" + name[1:] + b": " + value, name + b"%b: " + value,
        name + b":%b" + value, name + b": 1%b1", name + b": " + value + b"%b", name + b":%b",
        name + b"%b", name + b": %b ",
    ):  # fmt: skip
        for byte in range(256):
            line = place % bytes((byte,))
            for head in (
                b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % line,
                b"GET / HTTP/1.1\r\n%b\r\nHost: a\r\n\r\n" % line,
                b"GET / HTTP/1.1\r\n%b\r\n\r\n" % line,
            ):
                assert verdict(parser, head) == the_parser_s(head), head


def test_at_the_limits() -> None:
    for count in range(5, 12):
        lines = b"".join(b"X: %d\r\n" % number for number in range(count))
        for size in (100, 400, 499, 500, 501):
            for order in (b"Host: a\r\n" + lines, lines + b"Host: a\r\n"):
                start = b"GET / HTTP/1.1\r\n" + order
                head = start + b"Accept: %b\r\n\r\n" % (b"y" * (size - len(start) - 12))
                parser = taught()
                for _ in range(3):
                    assert verdict(parser, head) == the_parser_s(head)


def test_what_should_need_no_parser_needs_none() -> None:
    """Else all the above would hold two equals against each other."""
    for fields in (
        b"Host: a\r\nX: 1\r\nCookie: a=b\r\n",
        b"X: 1\r\nCookie: a=b\r\nHost: a\r\nAuthorization: Basic eA==\r\n",
        b"Host: a\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n",
        b"Host: a\r\nX:\r\nConnection: close\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
        b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    ):
        assert taught().memo.by_lines(b"GET / HTTP/1.1\r\n" + fields + b"\r\n") is not None
    for fields in (
        b"Host: a\r\nX : 1\r\n", b"Host: a\r\nUnknown: 1\r\n", b"Host: a\r\nX\r\n", b"Host: a\r\n X: 1\r\n",
        b"Host: a\r\nX: 1\0\r\n", b"Host: a\r\nHost: a\r\n", b"X: 1\r\n", b"Host: a b\r\n", b"",
        b"Host: a\r\n\r\nX: 1\r\n",
        b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"Host: a\r\nContent-Length: 10001\r\n",
    ):  # fmt: skip
        parser = taught()
        assert parser.memo.by_lines(b"GET / HTTP/1.1\r\n" + fields + b"\r\n") is None
        assert (
            parser.memo.by_lines(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is not None
        )  # of which nothing is left
        assert parser.parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").headers == [(b"host", b"a")]
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nAccept: a\r\nCookie: b\r\n\r\n"
    for end in range(len(head)):
        assert taught().memo.by_lines(head[:end]) is None
        assert taught().memo.by_lines(head + head[:end]) is None or not end
    for start in (
        b"",
        b"\r\n",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    ):
        assert taught().memo.by_lines(start) is None
