"""Whatever an application does, what reaches the client can be read in one way only: over native, WSGI and ASGI."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quiesce import Request, Response
from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core.limits import Limits
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.net import deadline, ending, stream
from quiesce.worker.net.exchange import Exchange
from wire.serving import Served, bench, read_reply, read_to_end
from wire.test_answers import GET, Streams, hello


class Says(NamedTuple):
    """What the application says to the next request; ``/second`` is always answered by "second"."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    parts: tuple[Any, ...] = (b"one", b"two")
    streamed: bool = False


_said = Says()
_SECOND = Says(parts=(b"second",))
INTERFACES = ("native", "wsgi", "asgi")


def native(request: Request) -> Response:
    says = _SECOND if request.path == "/second" else _said
    body: Any = iter(says.parts) if says.streamed else b"".join(says.parts)
    return Response(body, says.status, says.headers)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    says = _SECOND if environ["PATH_INFO"] == "/second" else _said
    start_response(f"{says.status} Reason", list(says.headers))
    return iter(says.parts) if says.streamed else says.parts


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    if scope["type"] != "http":
        raise RuntimeError
    says = _SECOND if scope["path"] == "/second" else _said
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in says.headers]
    await send({"type": "http.response.start", "status": says.status, "headers": headers})
    if not says.streamed:
        await send({"type": "http.response.body", "body": b"".join(says.parts)})
        return
    for part in says.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


@pytest.fixture(scope="module")
def all_served() -> Iterator[dict[str, Served]]:
    loop = AsyncioLoop()
    served = {
        "native": Served(NativeApp(native)),
        "wsgi": Served(WsgiApp(wsgi), threads=2),
        "asgi": Served(AsgiApp(asgi, loop), loop=loop),
    }
    yield served
    for one in served.values():
        one.close()


@pytest.fixture(autouse=True)
def all_closed(all_served: dict[str, Served]) -> Iterator[None]:
    yield
    for one in all_served.values():
        one.until(lambda one=one: one.daemon.open == 0)  # type: ignore[misc]


@pytest.fixture(params=INTERFACES)
def served(request: pytest.FixtureRequest, all_served: dict[str, Served]) -> Served:
    return all_served[request.param]


SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask(served: Served, says: Says, request: bytes) -> bytes:
    """All that comes for a request and one that is pipelined behind it."""
    global _said
    _said = says
    with served.connect() as sock:
        sock.sendall(request + SECOND)
        return read_to_end(sock)


def _as_h11_reads(method: str, data: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of both answers; h11 raises for what a client must not be sent."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    client.receive_data(b"")
    answers = []
    for verb in (method, "GET"):
        client.send(h11.Request(method=verb, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        response = client.next_event()
        assert isinstance(response, h11.Response), response
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        answers.append((response.status_code, body))
        if client.their_state is not h11.DONE:
            break
        client.start_next_cycle()
    return answers


def _check_head(version: str, status: int, data: bytes) -> None:
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n"
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-1]]
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert names.count(b"date") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert not (version == "1.0" and b"transfer-encoding" in names)
    if status in (204, 304):
        assert b"transfer-encoding" not in names
    if status == 204:
        assert b"content-length" not in names
    if status == 205:
        assert b"\r\nContent-Length: 0\r\n" in head


_STATUSES = (200, 204, 205, 304, 404)
_METHODS = ("GET", "HEAD", "POST")
_BODIES = (
    Says(),
    Says(streamed=True),
    Says(headers=(("Content-Length", "6"),)),
    Says(headers=(("Content-Length", "6"),), streamed=True),
    Says(parts=()),
    Says(parts=(), streamed=True),
)


def test_every_status_method_and_body_is_framed_right(served: Served) -> None:
    for status, method, says in itertools.product(_STATUSES, _METHODS, _BODIES):
        request = f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        data = ask(served, says._replace(status=status), request)
        _check_head("1.1", status, data)
        silent = method == "HEAD" or status in (204, 205, 304)
        body = b"" if silent else b"".join(says.parts)
        assert _as_h11_reads(method, data) == [(status, body), (200, b"second")], (status, method, says)


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_is_framed_by_length_or_by_the_end(served: Served, keep: bytes) -> None:
    for status, method, says in itertools.product(_STATUSES, _METHODS, _BODIES):
        data = ask(served, says._replace(status=status), b"%s / HTTP/1.0\r\n%s\r\n" % (method.encode(), keep))
        _check_head("1.0", status, data)
        head, _, rest = data.partition(b"\r\n\r\n")
        silent = method == "HEAD" or status in (204, 205, 304)
        body = b"" if silent else b"".join(says.parts)
        assert rest.startswith(body)
        rest = rest[len(body) :]
        if b"Connection: keep-alive" in head:
            assert keep and (silent or b"Content-Length: " in head)
            assert rest.startswith(b"HTTP/1.1 200 ") and rest.endswith(b"second")
        else:
            assert b"Connection: close" in head and rest == b""


_INJECTED = [
    ("X", "a\r\nSet-Cookie: b"),
    ("X", "a\nb"),
    ("X", "a\rb"),
    ("X", "a\0b"),
    ("X", "\x1b[2J"),
    ("X", "\x7f"),
    ("X\r\nY", "a"),
    ("X\0", "a"),
    ("X:", "a"),
    ("X ", "a"),
    ("", "a"),
    ("Content-Length", "5, 5"),
    ("Content-Length", "-1"),
    ("Content-Length", "x"),
    ("Content-Length", "1\r\n\r\nHTTP/1.1 200 OK"),
]


@pytest.mark.parametrize("header", _INJECTED)
def test_no_header_says_more_than_one_thing(
    served: Served, header: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    data = ask(served, Says(headers=(("X-Before", "1"), header)), GET)
    assert data.startswith(b"HTTP/1.1 500 ") and data.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in data and b"X-Before" not in data
    capfd.readouterr()


@pytest.mark.parametrize("status", [0, 99, 100, 101, 103, 199, 1000])
def test_a_status_that_ends_no_exchange_is_a_500(
    served: Served, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ask(served, Says(status=status), GET).startswith(b"HTTP/1.1 500 ")
    capfd.readouterr()


def test_reason_phrases_cannot_end_the_line(all_served: dict[str, Served]) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 " + environ["QUERY_STRING"].replace("R", "\r\n").replace("Z", "\0"), [])
        return [b"x"]

    with bench(WsgiApp(app)) as one:
        one.send(b"GET /?aRb HTTP/1.1\r\nHost: a\r\n\r\n")
        assert one.read().startswith(b"HTTP/1.1 500 ")
    with bench(WsgiApp(app)) as one:
        one.send(b"GET /?Z HTTP/1.1\r\nHost: a\r\n\r\n")
        assert one.read().startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("streamed", [False, True])
def test_too_short_is_cut_so_that_it_shows(
    served: Served, streamed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ConnectionResetError, EOFError)):
        global _said
        _said = Says(headers=(("Content-Length", "7"),), streamed=streamed)
        with served.connect() as sock:
            sock.sendall(GET)
            read_reply(sock)
    assert "1 bytes short of its Content-Length" in capfd.readouterr().err


@pytest.mark.parametrize("streamed", [False, True])
def test_too_long_is_truncated_said_and_the_last(
    served: Served, streamed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ask(served, Says(headers=(("Content-Length", "5"),), streamed=streamed), GET)
    assert data.endswith(b"\r\n\r\nonetw") and data.count(b"HTTP/1.1") == 1
    assert streamed or b"\r\nConnection: close\r\n" in data  # who streams had said its head
    assert "more than its Content-Length" in capfd.readouterr().err


@pytest.mark.parametrize("interface", ["wsgi", "native"])
def test_text_in_a_streamed_body_is_a_500(
    all_served: dict[str, Served], interface: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it was sent when it turned out to be no bytes."""
    data = ask(all_served[interface], Says(parts=("text",), streamed=True), GET)
    assert data.startswith(b"HTTP/1.1 500 ")
    assert "TypeError" in capfd.readouterr().err


def test_other_buffers_are_bytes(all_served: dict[str, Served]) -> None:
    numbers = memoryview(b"fourfive").cast("I")  # its len() is 2
    parts = (bytearray(b"one"), memoryview(b"two"), memoryview(b"t-h-r-e-e")[::2], numbers)
    says = Says(parts=parts, streamed=True)
    body = b"onetwothreefourfive"
    for interface in ("wsgi", "native"):
        assert _as_h11_reads("GET", ask(all_served[interface], says, GET))[0] == (200, body)


def test_framing_fields_of_an_application_are_ours(served: Served) -> None:
    headers = (
        ("Transfer-Encoding", "gzip, chunked"), ("TE", "x"), ("Trailer", "x"), ("Keep-Alive", "timeout=1"),
        ("Proxy-Connection", "keep-alive"), ("Connection", "x-private"), ("Upgrade", "h2c"), ("Date", "yesterday"),
        ("Date", "today"),
    )  # fmt: skip
    data = ask(served, Says(headers=headers), GET)
    head = data.partition(b"\r\n\r\n")[0].lower()
    assert _as_h11_reads("GET", data) == [(200, b"onetwo"), (200, b"second")]
    for name, _ in headers[:-2]:
        assert b"\r\n" + name.lower().encode() + b":" not in head
    assert head.count(b"\r\ndate: ") == 1 and b"\r\ndate: yesterday" in head


def test_426_says_what_to_upgrade_to(served: Served) -> None:
    data = ask(served, Says(status=426, headers=(("Upgrade", "HTTP/3.0"),)), GET)
    assert b"\r\nUpgrade: HTTP/3.0\r\nConnection: upgrade\r\n" in data
    assert _as_h11_reads("GET", data)[1:] == [(200, b"second")]


def test_the_status_line_has_its_second_space(served: Served) -> None:
    """RFC 9112 §4: with no reason phrase as well."""
    data = ask(served, Says(status=299), GET)
    assert data.startswith((b"HTTP/1.1 299 \r\n", b"HTTP/1.1 299 Reason\r\n"))

    def without(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("299", [])
        return []

    with bench(WsgiApp(without)) as one:
        one.send(GET)
        assert one.read().startswith(b"HTTP/1.1 299 \r\n")


def test_date_is_an_imf_fixdate(served: Served) -> None:
    date = re.search(rb"\r\nDate: ([^\r]*)\r\n", ask(served, Says(), GET))
    assert date and re.fullmatch(
        rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
        rb"\d\d:\d\d:\d\d GMT",
        date[1],
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD / HTTP/2.0\r\n", 505),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n", 413),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nX: \0", 400),
    ],
)
def test_a_head_that_is_refused_gets_no_content(request_: bytes, status: int) -> None:
    with bench(NativeApp(hello), Limits(body_bytes=10)) as one:
        one.send(request_)
        head, _, body = one.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"Content-Length: " in head
    assert body == b"EOF"


class Turns:
    """An application that streams, and tells the test when it may read."""

    interface, streams_body, blocking = "asgi", True, False

    def __init__(self, *, pauses: bool = False) -> None:
        self.exchange: Exchange | None = None
        self.pauses = pauses

    def handle(self, exchange: Exchange) -> None:
        self.exchange = exchange
        if self.pauses:
            self.read()

    def read(self) -> None:
        exchange = self.exchange
        assert exchange is not None

        def on_body(data: bytes, more: bool) -> None:
            if self.pauses:
                self.pauses = False
                exchange.pause_reading()
            if not more:
                exchange.start(200)
                exchange.finish(b"done")

        exchange.read_body(on_body)


class Clock:
    """Stands still until it is turned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (stream, ending, deadline):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 400\r\n"
RATE = Limits(body_min_rate=10, body_grace=5.0)


def test_a_body_slower_than_its_rate_is_408_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for app in (NativeApp(hello), Streams()):
        with bench(app, RATE) as one:
            one.send(BODY + b"\r\n")
            for _ in range(50):
                clock.now += 0.2
                one.send(b"x")
            reply = one.read()
            assert reply.startswith(b"HTTP/1.1 408 ") and reply.endswith(b"EOF")


def test_a_body_as_fast_as_its_rate_is_served_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for app in (NativeApp(hello), Streams()):
        with bench(app, RATE) as one:
            one.send(BODY + b"\r\n")
            for _ in range(200):
                clock.now += 0.19
                one.send(b"xx")
            assert one.read().startswith(b"HTTP/1.1 200 ")


def test_an_application_that_reads_late_does_not_slow_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    app = Turns(pauses=True)
    with bench(app, RATE) as one:
        one.send(BODY + b"\r\n" + b"x" * 10)
        clock.now += 1000
        assert app.exchange is not None
        app.exchange.resume_reading()
        one.send(b"x" * 10)
        one.send(b"x" * 380)
        assert one.read().endswith(b"done")


def test_a_client_that_waits_for_100_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    app = Turns()
    with bench(app, RATE) as one:
        one.send(BODY + b"Expect: 100-continue\r\n\r\n")
        assert one.read() == b""
        clock.now += 1000
        app.read()
        assert one.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.send(b"x" * 10)
        one.send(b"x" * 390)
        assert one.read().endswith(b"done")


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_100_continue_is_said_once_and_only_to_who_waits(framing: bytes) -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue, \r\nExpect: 100-continue\r\n%s\r\n\r\n"
        % framing
    )
    body = b"3\r\nabc\r\n0\r\n\r\n" if b"chunked" in framing else b"abc"
    said = b"HTTP/1.1 100 Continue\r\n\r\n"
    for app in (NativeApp(hello), Streams()):
        with bench(app) as one:
            one.send(head)
            assert one.read() == said
            for i in range(len(body)):
                one.send(body[i : i + 1])
            assert one.read().startswith(b"HTTP/1.1 200 ")
            one.send(head + body[:1])  # it does not wait
            one.send(body[1:])
            assert one.read().startswith(b"HTTP/1.1 200 ")


def test_an_early_answer_to_who_was_told_to_go_on_is_not_the_last() -> None:
    """It was told to send its body, so it does, and what is left of that is known."""
    app = Turns()
    with bench(app) as one:
        one.send(BODY + b"Expect: 100-continue\r\n\r\n")
        assert app.exchange is not None
        app.read()
        assert one.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
        app.exchange.start(200)
        app.exchange.finish(b"early")
        reply = one.read()
        assert reply.endswith(b"early") and b"Connection: close" not in reply
        one.send(b"x" * 400 + SECOND)
        app.exchange.start(200)
        app.exchange.finish(b"second")
        assert one.read().endswith(b"secondEOF")


@pytest.mark.parametrize("rest", [b"Content-Length: 70000", b"Transfer-Encoding: chunked"])
def test_an_early_answer_is_the_last_if_nobody_knows_how_much_follows(rest: bytes) -> None:
    with bench(Streams()) as one:
        one.send(b"POST /blind HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % rest)
        reply = one.read()
        assert b"\r\nConnection: close\r\n" in reply and reply.endswith(b"blindEOF")


def test_an_early_answer_before_a_malformed_rest_stands() -> None:
    with bench(Streams()) as one:
        one.send(b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        assert one.read().endswith(b"blind")
        one.send(b"hello" + b"nonsense\r\n\r\n")
        reply = one.read()
        assert reply.startswith(b"HTTP/1.1 400 ") and reply.endswith(b"EOF")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\nhell", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_half_a_body_is_no_request(framing: bytes) -> None:
    """RFC 9112 §6.3, §8: the application is not called, or is told that nothing more comes."""
    called: list[Request] = []
    streams = Streams()

    def handler(request: Request) -> Response:
        called.append(request)
        return Response(b"")

    for app in (NativeApp(handler), streams):
        with bench(app) as one:
            one.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing)
            one.client.shutdown(socket.SHUT_WR)
            one.ready()
            assert one.read() == b"EOF"
    assert called == [] and streams.events == ["disconnect"]


def test_eight_thousand_bytes_of_request_line_are_supported() -> None:
    """RFC 9112 §3 recommends it."""
    with bench(NativeApp(hello)) as one:
        one.send(b"GET /" + b"x" * 7986 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert one.read().startswith(b"HTTP/1.1 200 ")


_NAMES = st.sampled_from(
    [
        "X",
        "x-y",
        "Set-Cookie",
        "Content-Length",
        "content-length",
        "Connection",
        "Date",
        "Transfer-Encoding",
        "",
        "A B",
    ]
) | st.text(st.characters(max_codepoint=300), max_size=6)
_VALUES = st.sampled_from(
    ["1", "3", "6", "close", "chunked", "a\r\nB: c", "a\nb", "\t a ", "", "x\0", "\r\n\r\nHTTP/1.1 200 OK"]
) | st.text(st.characters(max_codepoint=300), max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Says,
        st.sampled_from([200, 200, 204, 205, 304, 404, 426, 500, 299]),
        st.lists(st.tuples(_NAMES, _VALUES), max_size=3).map(tuple),
        st.lists(st.binary(max_size=4), max_size=3).map(tuple),
        st.booleans(),
    ),
    st.sampled_from(["GET", "HEAD", "POST"]),
)
@example(Says(headers=(("Content-Length", "7"),)), "GET")
@example(Says(200, (("Content-Length", "1"),), (b"\0\0",), True), "GET")
def test_whatever_an_application_says_is_one_answer(says: Says, method: str) -> None:
    """Or a 500, or a cut that shows; and no more of it than one."""
    global _said
    _said = says
    for app in (NativeApp(native), WsgiApp(wsgi)):
        with bench(app) as one, contextlib.redirect_stderr(io.StringIO()):
            one.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode() + SECOND)
            for _ in range(10):
                one.loop.turn()
            reply = one.read()
        sent = b"".join(says.parts)
        try:
            answers = _as_h11_reads(method, reply.removesuffix(b"EOF"))
        except h11.RemoteProtocolError as exc:
            lengths = [int(value) for name, value in says.headers if name.lower() == "content-length"]
            if "without sending complete message body" in str(exc):
                assert any(length > len(sent) for length in lengths)
            else:  # it said too much: the answer is whole, and the connection is cut before the next one
                assert "ConnectionClosed when role=SERVER and state=SEND_RESPONSE" in str(exc)
                assert any(length < len(sent) for length in lengths)
            continue
        status, body = answers[0]
        silent = method == "HEAD" or says.status in (204, 205, 304)
        assert answers[1:] in ([], [(200, b"second")])
        assert status in (says.status, 500)
        if status == says.status != 500:
            assert body == b"" if silent else sent.startswith(body)
