"""Each row of the table of discipline levels in docs/libmicrohttpd.md, at each level, whole and byte by byte."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded.serving import GET, Setup, running
from quiesce import Connection, Daemon, Kind, Mode, Poller, Response, Stage
from quiesce.worker.core import discipline as core
from quiesce.worker.core.discipline import GRANTED, LEVELS, SMUGGLING, Leniency, discipline, mend
from wire.serving import PATIENCE_S, read_reply, read_to_end

PAGE = Path(__file__).resolve().parents[2] / "docs" / "libmicrohttpd.md"
PLAIN = Setup(Mode.THREAD, Poller.EPOLL)
NEVER = -4


class Row(NamedTuple):
    """What is sent, and from which level down it is served."""

    request: bytes
    served: int  # the highest level that serves it
    explicit: bool = False  # and only to who allows request smuggling
    seen: str = ""  # what the application sees of it
    closes: bool = False
    redirected: tuple[int, ...] = ()  # the levels at which it is told to ask for what they would have seen


LEVEL_HEAD = b"GET /x HTTP/1.1\r\nHost: a\r\n"
BODY = b"POST /x HTTP/1.1\r\nHost: a\r\n"
ROWS = {
    "1.1 without Host": Row(b"GET /x HTTP/1.1\r\nA: b\r\n\r\n", -3, True, "a=b host="),
    "1.0 without Host": Row(b"GET /x HTTP/1.0\r\nA: b\r\n\r\n", 3, False, "a=b", True),
    "two Hosts": Row(LEVEL_HEAD + b"Host: a\r\n\r\n", NEVER),
    "bare LF at the end of the request line": Row(b"GET /x HTTP/1.1\nHost: a\r\n\r\n", 0),
    "bare LF at the end of a field": Row(LEVEL_HEAD + b"A: b\n\r\n", 0, False, "host=a a=b"),
    "bare LF for the empty line": Row(LEVEL_HEAD + b"\n", 0),
    "bare LF everywhere": Row(b"GET /x HTTP/1.1\nHost: a\nA: b\n\n", 0, False, "host=a a=b"),
    "bare LF in chunks": Row(BODY + b"Transfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n", NEVER),
    "bare CR in the request line": Row(b"GET\r/x HTTP/1.1\r\nHost: a\r\n\r\n", -2, True),
    "bare CR in a field": Row(LEVEL_HEAD + b"A: b\rc\r\n\r\n", -1, True, "host=a a=b c"),
    "an empty line first": Row(b"\r\n" + GET, 1),
    "empty lines first": Row(b"\r\n" * 3 + GET, 1),
    "more than 1024 empty lines first": Row(b"\r\n" * 1030 + GET, 1),
    "empty lines of bare LF first": Row(b"\n\r\n\n" + GET, 0),
    "two spaces round the target": Row(b"GET  /x  HTTP/1.1\r\nHost: a\r\n\r\n", -1, False, "/x"),
    "TAB as a delimiter": Row(b"GET\t/x\tHTTP/1.1\r\nHost: a\r\n\r\n", 0),
    "VT or FF as a delimiter": Row(b"GET\v/x\fHTTP/1.1\r\nHost: a\r\n\r\n", -1),
    "SP in the target": Row(b"GET /x y HTTP/1.1\r\nHost: a\r\n\r\n", -2, False, "/x%20y", redirected=(-1, 0)),
    "TAB in the target": Row(
        b"GET /x\ty HTTP/1.1\r\nHost: a\r\n\r\n", -2, False, "/x%20y", redirected=(-1, 0)
    ),
    "VT in the target": Row(b"GET /x\vy HTTP/1.1\r\nHost: a\r\n\r\n", -2, False, "/x%20y", redirected=(-1,)),
    "no target": Row(b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", NEVER),
    "a folded field": Row(LEVEL_HEAD + b"A: b\r\n  c\r\n\td\r\n\r\n", 0, False, "host=a a=b c d"),
    "a folded field that says how long the body is": Row(BODY + b"Content-Length:\r\n 2\r\n\r\nab", NEVER),
    "white space before the first field": Row(
        b"GET /x HTTP/1.1\r\n Content-Length: 5\r\nHost: a\r\n\r\n", -1, False, "host=a"
    ),
    "white space in a name": Row(LEVEL_HEAD + b"A b: c\r\nD: e\r\n\r\n", -2, True, "host=a d=e"),
    "an empty name": Row(LEVEL_HEAD + b": c\r\nD: e\r\n\r\n", -2, True, "host=a d=e"),
    "a line without a colon": Row(LEVEL_HEAD + b"Abc\r\nD: e\r\n\r\n", -2, True, "host=a d=e"),
    "white space before the colon": Row(LEVEL_HEAD + b"A : b\r\n\r\n", -3, True, "host=a a=b"),
    "NUL in a field": Row(LEVEL_HEAD + b"A: b\0c\r\n\r\n", -1, True, "host=a a=b c"),
    "Transfer-Encoding beside Content-Length": Row(
        BODY + b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        0,
        True,
        "body=ab",
        True,
    ),
    "two Content-Length, differing": Row(
        BODY + b"Content-Length: 2\r\nContent-Length: 7\r\n\r\nab", 0, True, "body=ab"
    ),
    "malformed Content-Length": Row(BODY + b"Content-Length: +2\r\n\r\nab", NEVER),
    "control characters in a field": Row(LEVEL_HEAD + b"A: b\x01c\r\n\r\n", NEVER),
    "octets above 127 in a field": Row(LEVEL_HEAD + b"A: b\xe9c\r\n\r\n", 3, False, "a=béc"),
    "an empty value": Row(LEVEL_HEAD + b"A:\r\n\r\n", 3, False, "host=a a="),
    "chunked in HTTP/1.0": Row(
        b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", NEVER
    ),
    "white space behind a chunk's size": Row(
        BODY + b"Transfer-Encoding: chunked\r\n\r\n2 \r\nab\r\n0\r\n\r\n", NEVER
    ),
    "NUL in the request line": Row(b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", NEVER),
    "SP before the method": Row(b" GET /x HTTP/1.1\r\nHost: a\r\n\r\n", NEVER),
    "SP behind the version": Row(b"GET /x HTTP/1.1 \r\nHost: a\r\n\r\n", NEVER),
    "no version": Row(b"GET /x\r\nHost: a\r\n\r\n", NEVER),
    "version in small letters": Row(b"GET /x http/1.1\r\nHost: a\r\n\r\n", NEVER),
    "a fragment": Row(b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", NEVER),
    "an unknown method": Row(b"BREW /x HTTP/1.1\r\nHost: a\r\n\r\n", 3),
}


def tell(connection: Connection) -> Response | None:
    if connection.stage is not Stage.END:
        connection.state = (connection.state or b"") + connection.upload.read()
        return None
    request = connection.request
    fields = " ".join(f"{k.decode('latin-1')}={v.decode('latin-1')}" for k, v in request.headers)
    body = connection.state.decode()
    return Response(f"{request.method} {request.target.decode()} {fields} body={body}")


@contextlib.contextmanager
def disciplined(level: int | None, smuggling: bool) -> Iterator[Daemon]:
    daemon = Daemon(
        access_handler=tell, listen=False, discipline=level, allow_request_smuggling_by_discipline=smuggling
    )
    with daemon:
        yield daemon


def connected(daemon: Daemon) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    daemon.add_connection(theirs)
    return ours


def deliver(sock: socket.socket, data: bytes, by: int) -> None:
    """In pieces; whoever refuses us in the middle may have closed."""
    with contextlib.suppress(OSError):
        for at in range(0, len(data), by):
            sock.sendall(data[at : at + by])


@pytest.mark.parametrize("smuggling", [False, True], ids=["safe", "smuggling"])
@pytest.mark.parametrize("level", LEVELS)
def test_each_row_at_each_level(level: int, smuggling: bool) -> None:
    with disciplined(level, smuggling) as daemon:
        for name, row in ROWS.items():
            served = level <= row.served and (smuggling or not row.explicit)
            for by in (len(row.request), 1):
                with connected(daemon) as sock:
                    deliver(sock, row.request, by)
                    reply = read_reply(sock)
                    where = f"{name}, level {level}, {by} bytes at a time: {reply.body!r}"
                    refused = 301 if level in row.redirected else 400
                    assert reply.status == (200 if served else refused), where
                    if not served:
                        assert reply.get("location") == (row.seen if refused == 301 else None), where
                    assert (reply.get("connection") == "close") is (not served or row.closes), where
                    if not served:
                        assert read_to_end(sock) == b""
                        continue
                    assert row.seen in reply.body.decode(), where
                    if not row.closes:  # and whatever was mended, the next request is where it is
                        deliver(sock, GET, by)
                        assert read_reply(sock, before=reply.rest).status == 200, where


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/a b c?d e", "/a%20b%20c?d%20e"),
        (b"/a\t/b", "/a%20/b"),
        (b"/%41%zz b", "/%41%zz%20b"),
        (b"/\\evil.example/ b", "/%5Cevil.example/%20b"),  # which a browser would take for //evil.example
        (b'/"<>^`{|} b', "/%22%3C%3E%5E%60%7B%7C%7D%20b"),
        (b"//evil.example/ b", None),
        (b"http://evil.example/ b", None),
        (b"\\\\evil.example/ b", None),
        (b" /b", None),
        (b"/b ", None),
        (b"* b", None),
        (b"/a#b c", None),
        (b"/a\rb c", None),
        (b"/a\r\nSet-Cookie: b c", None),
        (b"/a\0b c", None),
        (b"/a\x7fb c", None),
        (b"/\xe9 b", None),
    ],
)
def test_who_is_told_to_ask_again_is_sent_nowhere_else(target: bytes, location: str | None) -> None:
    """RFC 9112 §3.2.  A Location is a path of ours, and holds nothing that could end it."""
    with disciplined(0, False) as daemon:
        for method in (b"GET", b"HEAD", b"BREW"):
            for by in (1000, 1):
                with connected(daemon) as sock:
                    deliver(sock, method + b" " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n" + GET, by)
                    reply = read_reply(sock, head_only=method == b"HEAD")
                    assert (reply.status, reply.get("location")) == (301 if location else 400, location)
                    assert reply.get("connection") == "close"
                    assert reply.get("cache-control") == ("no-store" if location else None)
                    assert read_to_end(sock) == b""


def test_who_is_told_to_ask_again_speaks_http() -> None:
    for line in (b"GET /a b", b"GET /a b HTTP/0.9", b"GET /a b http/1.1", b"G@T /a b HTTP/1.1"):
        with disciplined(0, False) as daemon, connected(daemon) as sock:
            deliver(sock, line + b"\r\nHost: a\r\n\r\n", 1000)
            assert read_reply(sock).status in (400, 505)


def test_without_a_level_only_what_is_unequivocal_is_served() -> None:
    with disciplined(None, True) as daemon:
        for name, row in ROWS.items():
            with connected(daemon) as sock:
                sock.sendall(row.request)
                assert read_reply(sock).status == (200 if row.served >= 1 else 400), name


def test_careless_requests_may_be_pipelined() -> None:
    careless = (
        b"GET /1 HTTP/1.1\nHost: a\n\n" + b"\n\nPOST\t/2 HTTP/1.1\r\nHost: a\nContent-Length: 4\n\na\n\nb"
    )
    with disciplined(0, False) as daemon:
        for by in (1000, 7, 1):
            with connected(daemon) as sock:
                deliver(sock, careless + GET + careless, by)
                reply, bodies = read_reply(sock), []
                for _ in range(4):
                    bodies.append(reply.body)
                    reply = read_reply(sock, before=reply.rest)
                bodies.append(reply.body)
                assert [body.split()[1] for body in bodies] == [b"/1", b"/2", b"/", b"/1", b"/2"]
                assert bodies[1].endswith(b"body=a\n\nb") and bodies[4].endswith(b"body=a\n\nb")


def test_limits_hold_for_what_was_mended() -> None:
    with disciplined(-3, True) as daemon:
        for begin, status in ((b"GET /", 414), (b"GET / HTTP/1.1\nHost: a\nX: ", 431)):
            with connected(daemon) as sock:
                deliver(sock, begin + b"x" * 40_000, 40_000)
                assert read_reply(sock).status == status


COOKIES = [  # the cookies at levels 3, 2, 1, 0, -1, -2, -3
    ("n=v; n2=v2", [2, 2, 2, 2, 2, 2, 2]),
    ("n=v;n2=v2", [0, 0, 1, 2, 2, 2, 2]),
    ("n=v;\tn2=v2", [0, 0, 1, 2, 2, 2, 2]),
    ("n=v;  n2=v2", [0, 0, 1, 2, 2, 2, 2]),
    ("n1=v1;", [0, 0, 1, 1, 1, 1, 1]),
    ("; n=v", [0, 0, 0, 1, 1, 1, 1]),
    ("n=v ;", [0, 0, 0, 1, 1, 1, 1]),
    ('n="a b"', [0, 0, 0, 0, 0, 1, 1]),
    ('m=1; n="a b"', [0, 0, 1, 1, 1, 2, 2]),
    ("n = v", [0, 0, 0, 0, 0, 0, 1]),
    ("m=1; n = v", [0, 0, 1, 1, 1, 1, 2]),
    ("=", [0] * 7),
    ("var", [0] * 7),
    ("var=,", [0] * 7),
    ("var=v  x", [0] * 7),
]


def test_cookies_by_level() -> None:
    def count(connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            return None
        return Response(str(len(connection.values(Kind.COOKIE))))

    for level in LEVELS:
        with running(PLAIN, access_handler=count, discipline=level) as served, served.connect() as sock:
            for field, counts in COOKIES:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %s\r\n\r\n" % field.encode())
                reply = read_reply(sock)
                assert (reply.status, int(reply.body)) == (200, counts[3 - level]), (field, level)


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="-3 to 3"):
        Daemon(access_handler=tell, discipline=4)


def test_nothing_dangerous_is_forgiven_by_a_level_alone() -> None:
    for level in LEVELS:
        assert not discipline(level).forgives & SMUGGLING
    assert discipline(-3, True).forgives == frozenset(Leniency) == frozenset(GRANTED)
    assert not discipline(1, True).forgives


PIECES = [
    b"GET",
    b" ",
    b"\t",
    b"/x",
    b"HTTP/1.1",
    b"\r\n",
    b"\n",
    b"\r",
    b"Host: a",
    b"A: b",
    b" c",
    b":",
    b"\0",
    b"\v",
]
PIECES += [b"Content-Length: 1", b"Transfer-Encoding: chunked"]


@given(st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join), st.sampled_from(LEVELS), st.booleans())
def test_mending_twice_is_mending_once(data: bytes, level: int, smuggling: bool) -> None:
    """Else a request could be mended for ever."""
    forgives = discipline(level, smuggling).forgives
    if forgives:
        once, _ = mend(data, forgives)
        assert mend(once, forgives)[0] == once


@given(
    st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.sampled_from(LEVELS), st.integers(1, 5)
)
def test_a_request_is_the_same_however_it_comes(data: bytes, level: int, by: int) -> None:
    """Refused or served, and what of it is seen: whole, and in pieces."""
    data = b"GET /x HTTP/1.1\nHost: a\n" + data + b"\n\n"
    said = []
    for size in (len(data), by):
        options: dict[str, Any] = {"mode": Mode.EXTERNAL, "listen": False}
        options |= {"discipline": level, "allow_request_smuggling_by_discipline": True}
        with Daemon(access_handler=tell, **options) as daemon, connected(daemon) as sock:
            for at in range(0, len(data), size):
                with contextlib.suppress(OSError):
                    sock.sendall(data[at : at + size])
                daemon.run()
            while daemon.get_timeout() == 0:
                daemon.run()
            sock.setblocking(False)
            whole = b""
            with contextlib.suppress(OSError):
                whole = sock.recv(65536)
            answers = re.findall(rb"HTTP/1.1 (\d+)|(GET /.*)", whole)
            said.append(answers)
    assert said[0] == said[1]


def test_a_head_that_has_to_be_mended_line_by_line_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    plain = core._mend_field

    def counted(line: bytes, forgives: frozenset[Leniency]) -> bytes:
        looked.append(len(line))
        return plain(line, forgives)

    monkeypatch.setattr(core, "_mend_field", counted)
    with disciplined(0, False) as daemon, connected(daemon) as sock:
        deliver(sock, b"GET /x HTTP/1.1\nHost: a\n" + b"a:b\n" * 90 + b"\n", 1)
        assert read_reply(sock).status == 200
    # Each line when it comes, with the beginning of the next one, and all of them in the end.
    assert len(looked) < 4 * 92


def test_the_page_has_each_row() -> None:
    table = PAGE.read_text().partition("## Discipline")[2].partition("\n## ")[0]
    rows = {
        name: cells.split(" | ")
        for name, cells in re.findall(r"^\| ([^|]+) \| (.+) \|$", table, re.MULTILINE)
    }
    missing = [name for name in ROWS if name not in rows]
    assert missing == []
    for name, row in ROWS.items():
        for level, cell in zip(LEVELS, rows[name], strict=False):
            served = level <= row.served
            refused = "301" if level in row.redirected else "400"
            expected = refused if not served else "ugly" if row.explicit else "OK"
            assert cell == expected, (name, level)
