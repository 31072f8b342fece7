"""The access handler's protocol, what a connection tells, and how requests end."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from embedded.serving import CLOSE, GET, Setup, running
from quiesce import (
    Connection,
    Daemon,
    Kind,
    Limits,
    Mode,
    NotNow,
    Poller,
    Request,
    Response,
    Stage,
    Termination,
)
from wire.serving import PATIENCE_S, read_reply, read_to_end

RESET = b"\1\0\0\0\0\0\0\0"
POST = b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
CHUNKED = b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Notes:
    """Notes every call of the handler and of the callbacks."""

    def __init__(self) -> None:
        self.calls: list[tuple[Stage, bytes]] = []
        self.ends: list[tuple[Any, Termination]] = []
        self.events: list[str] = []
        self.called = threading.Event()
        self.targets: list[str] = []

    def handler(self, connection: Connection) -> Response | None:
        """Takes the whole body, and answers with it."""
        self.calls.append((connection.stage, connection.upload.data))
        self.called.set()
        if connection.stage is Stage.HEAD:
            connection.state = b""
        elif connection.stage is Stage.DATA:
            connection.state += connection.upload.read()
        else:
            return Response(connection.state)
        return None

    def completed(self, connection: Connection, state: Any, why: Termination) -> None:
        self.events.append("completed")
        self.ends.append((state, why))

    def connection(self, connection: Connection, begins: bool) -> None:
        self.events.append("started" if begins else "closed")

    @property
    def options(self) -> dict[str, Callable[..., None]]:
        return {"on_completed": self.completed, "on_connection": self.connection}


def test_a_request_without_a_body_is_shown_twice(setup: Setup) -> None:
    notes = Notes()
    with running(setup, access_handler=notes.handler, **notes.options) as served:
        with served.connect() as sock:
            for _ in range(2):
                sock.sendall(GET)
                assert read_reply(sock).status == 200
        served.until(lambda: len(notes.events) == 4)
    assert notes.calls == [(Stage.HEAD, b""), (Stage.END, b"")] * 2
    assert notes.events == ["started", "completed", "completed", "closed"]
    assert notes.ends == [(b"", Termination.COMPLETED_OK)] * 2


def test_an_upload_is_shown_part_by_part(setup: Setup) -> None:
    notes = Notes()
    with running(setup, access_handler=notes.handler) as served, served.connect() as sock:
        for _ in range(2):
            sock.sendall(POST)
            for number, part in enumerate((b"Hel", b"lo123"), 1):
                served.until(lambda: notes.called.is_set())
                sock.sendall(part)
                served.until(lambda number=number: sum(s is Stage.DATA for s, _ in notes.calls) >= number)
            assert read_reply(sock).body == b"Hello123"
            assert notes.calls == [
                (Stage.HEAD, b""),
                (Stage.DATA, b"Hel"),
                (Stage.DATA, b"lo123"),
                (Stage.END, b""),
            ]
            notes.calls.clear()


def test_what_is_left_unread_is_shown_again_with_more(setup: Setup) -> None:
    shown: list[bytes] = []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is Stage.DATA:
            shown.append(connection.upload.data)
            if len(connection.upload) == 8:
                connection.state = connection.upload.read(5), connection.upload.read()
        return Response(b"+".join(connection.state)) if connection.stage is Stage.END else None

    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(POST + b"Hel")
        served.until(lambda: shown == [b"Hel"])
        sock.sendall(b"lo123")
        assert read_reply(sock).body == b"Hello+123"
    assert shown == [b"Hel", b"Hello123"]


@pytest.mark.parametrize("body", [b"x" * 8, b"x" * 100_000])
def test_who_never_reads_its_upload_is_told_with_500(setup: Setup, body: bytes) -> None:
    calls: list[int] = []
    head = POST.replace(b"8", b"%d" % len(body))

    def handler(connection: Connection) -> None:
        calls.append(len(connection.upload))

    with running(setup, access_handler=handler, upload_memory=1000) as served, served.connect() as sock:
        sock.sendall(head + body)
        assert read_reply(sock).status == 500
    assert len(calls) < 10  # and it is not asked for ever


def test_who_said_close_is_not_waited_for(setup: Setup) -> None:
    """It is told that its answer was sent, then that it has gone, while the client has not read a byte."""
    notes = Notes()
    limits = Limits(linger_timeout=3 * PATIENCE_S, linger_time=3 * PATIENCE_S)
    with (
        running(setup, access_handler=notes.handler, limits=limits, **notes.options) as served,
        served.connect() as sock,
    ):
        sock.sendall(CLOSE)
        served.until(lambda: notes.events == ["started", "completed", "closed"])
        assert read_to_end(sock).endswith(b"\r\n\r\n")
    assert notes.ends == [(b"", Termination.COMPLETED_OK)]


def test_who_is_there_with_his_request_is_served_in_the_turn_that_accepts_him() -> None:
    notes = Notes()
    options = {"access_handler": notes.handler, "mode": Mode.EXTERNAL, "poller": Poller.EPOLL}
    with Daemon(**options, **notes.options) as daemon:
        clients = [socket.create_connection(("127.0.0.1", daemon.info.port), PATIENCE_S) for _ in range(3)]
        for client in clients:
            client.sendall(CLOSE)
        daemon.run()
        assert notes.events == ["started"] * 3 + ["completed", "closed"] * 3
        for client in clients:
            assert read_to_end(client).endswith(b"\r\n\r\n")
            client.close()


def test_trailers_are_their_own_requests(setup: Setup) -> None:
    told: list[list[tuple[bytes, bytes]]] = []

    def handler(connection: Connection) -> Response | None:
        connection.upload.read()
        if connection.stage is not Stage.END:
            return None
        told.append(connection.trailers)
        return Response()

    with running(setup, access_handler=handler) as served, served.connect() as sock:
        for request in (CHUNKED + b"1\r\na\r\n0\r\nX: y\r\n\r\n", GET, POST + b"12345678"):
            sock.sendall(request)
            read_reply(sock)
    assert told == [[(b"x", b"y")], [], []]


def test_chunks_and_trailers(setup: Setup) -> None:
    notes, trailers = Notes(), []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is Stage.END:
            trailers.extend(connection.trailers)
            assert connection.lookup(Kind.FOOTER, "Digest") == "abc"
        else:
            assert connection.trailers == []
        return notes.handler(connection)

    with running(setup, access_handler=handler) as served:
        body = b"4\r\nHell\r\n4\r\no123\r\n0\r\nDigest: abc\r\n\r\n"
        assert served.ask(CHUNKED + body).body == b"Hello123"
    assert trailers == [(b"digest", b"abc")]


def test_100_continue_comes_when_the_handler_wants_the_body(setup: Setup) -> None:
    notes = Notes()
    head = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with running(setup, access_handler=notes.handler) as served, served.connect() as sock:
        sock.sendall(head)
        assert read_reply(sock).status == 100
        assert notes.calls == [(Stage.HEAD, b"")]
        sock.sendall(b"Hello123")
        assert read_reply(sock).body == b"Hello123"


def test_an_early_answer_needs_no_body(setup: Setup) -> None:
    calls: list[Stage] = []

    def handler(connection: Connection) -> Response:
        calls.append(connection.stage)
        return Response(b"too much", 413)

    head = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(head)
        reply = read_reply(sock)
        assert (reply.status, reply.get("connection")) == (413, "close")
        assert sock.recv(1) == b""
    assert calls == [Stage.HEAD]


def test_a_get_that_is_answered_at_once_keeps_its_connection(setup: Setup) -> None:
    with (
        running(setup, access_handler=lambda connection: Response(b"early")) as served,
        served.connect() as sock,
    ):
        for _ in range(3):
            sock.sendall(GET)
            assert read_reply(sock).body == b"early"


def test_false_drops_the_client_without_a_word(setup: Setup) -> None:
    notes = Notes()
    with running(setup, access_handler=lambda connection: False, **notes.options) as served:
        with served.connect() as sock:
            sock.sendall(GET)
            assert sock.recv(1) == b""
        served.until(lambda: notes.events == ["started", "completed", "closed"])
    assert notes.ends == [(None, Termination.WITH_ERROR)]


def test_a_handler_that_raises_or_says_nothing_is_a_500(setup: Setup) -> None:
    notes = Notes()

    def handler(connection: Connection) -> None:
        if connection.request.path == "/raise":
            raise RuntimeError("on purpose")

    with running(setup, access_handler=handler, **notes.options) as served:
        assert served.ask(CLOSE.replace(b" / ", b" /raise ")).status == 500
        assert served.ask(CLOSE).status == 500  # never an answer, and nobody would ever call again
        served.until(lambda: notes.ends == [(None, Termination.WITH_ERROR)] * 2)


ENDS = [*range(1, len(POST), 11), len(POST), len(POST) + 3]


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
def test_who_stops_anywhere_leaves_nothing_behind(setup: Setup, reset: bool) -> None:
    """Cut the request after so many bytes, by FIN and by reset."""
    notes = Notes()
    with running(setup, access_handler=notes.handler, **notes.options) as served:
        for count in ENDS:
            notes.calls.clear()
            notes.ends.clear()
            notes.events.clear()
            notes.called.clear()
            sock = served.connect()
            sock.sendall((POST + b"Hello123")[:count])
            served.until(lambda: served.daemon.connections == 1)
            if count >= len(POST):
                assert notes.called.wait(PATIENCE_S)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
            served.until(lambda: served.daemon.connections == 0 and notes.events[-1:] == ["closed"])
            if notes.calls:
                why = Termination.READ_ERROR if reset else Termination.CLIENT_ABORT
                assert [code for _, code in notes.ends] == [why], count
                assert notes.events == ["started", "completed", "closed"]
            else:
                assert notes.events == ["started", "closed"]
        assert served.ask(POST + b"Hello123").body == b"Hello123"


def test_who_falls_silent_runs_out_of_time(setup: Setup) -> None:
    notes = Notes()
    with running(setup, access_handler=notes.handler, timeout_s=0.3, **notes.options) as served:
        with served.connect() as sock:
            sock.sendall(POST + b"Hel")
            assert read_reply(sock).status == 408
        served.until(lambda: notes.events == ["started", "completed", "closed"])
    assert [code for _, code in notes.ends] == [Termination.TIMEOUT_REACHED]


def test_a_connection_may_have_a_time_of_its_own(setup: Setup) -> None:
    def handler(connection: Connection) -> Response | None:
        if connection.stage is Stage.HEAD:
            assert connection.timeout_s == 0.0
            connection.timeout_s = 0.3
            assert connection.info.timeout_s == 0.3
            return None
        return Response(b"soon over")

    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(GET)
        assert read_reply(sock).body == b"soon over"
        assert sock.recv(1) == b""  # idle for so long, and not for the daemon's 75 s


def test_suspended_and_resumed_it_is_called_again_with_its_state(setup: Setup) -> None:
    calls: list[tuple[Stage, Any]] = []
    resumed: list[threading.Thread] = []

    def handler(connection: Connection) -> Response | None:
        calls.append((connection.stage, connection.state))
        connection.state = len(calls)
        if len(calls) % 2:
            connection.suspend()
            resumed.append(threading.Thread(target=connection.resume))
            resumed[-1].start()
            return None
        return Response(connection.upload.read() or b"done") if connection.stage is Stage.END else None

    with running(setup, access_handler=handler, allow_suspend=True) as served:
        assert served.ask(GET).body == b"done"
        assert calls[:2] == [(Stage.HEAD, None), (Stage.HEAD, 1)] or calls[1][0] is Stage.END
    for thread in resumed:
        thread.join(PATIENCE_S)


def test_suspended_within_an_upload_it_reads_on_afterwards(setup: Setup) -> None:
    parked: list[Connection] = []
    got: list[bytes] = []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is Stage.DATA:
            if not parked:
                parked.append(connection)
                connection.suspend()
                return None
            got.append(connection.upload.read())
        return Response(b"".join(got)) if connection.stage is Stage.END else None

    with running(setup, access_handler=handler, allow_suspend=True) as served, served.connect() as sock:
        sock.sendall(POST + b"Hel")
        served.until(lambda: bool(parked) and parked[0].is_suspended)
        sock.sendall(b"lo123")
        assert not select.select([sock], [], [], 0.05)[0] and not got
        parked[0].resume()
        assert read_reply(sock).body == b"Hello123"


def test_a_suspended_client_has_all_the_time_it_needs(setup: Setup) -> None:
    parked: list[Connection] = []
    there = threading.Event()

    def handler(connection: Connection) -> Response | None:
        if parked:
            return Response(b"late") if connection.stage is Stage.END else None
        parked.append(connection)
        connection.suspend()
        there.set()
        return None

    options: dict[str, Any] = {"allow_suspend": True, "timeout_s": 0.1}
    with running(setup, access_handler=handler, **options) as served, served.connect() as sock:
        sock.sendall(GET)
        assert there.wait(PATIENCE_S)
        assert not select.select([sock], [], [], 0.4)[0]
        parked[0].resume()
        assert read_reply(sock).body == b"late"


def test_a_suspended_client_that_resets_is_noticed(setup: Setup) -> None:
    notes = Notes()
    parked: list[Connection] = []

    def handler(connection: Connection) -> None:
        parked.append(connection)
        connection.suspend()

    with running(setup, access_handler=handler, allow_suspend=True, **notes.options) as served:
        sock = served.connect()
        sock.sendall(GET)
        served.until(lambda: bool(parked))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        served.until(lambda: notes.events == ["started", "completed", "closed"])
        parked[0].resume()  # too late, and harmless
        assert [code for _, code in notes.ends] == [Termination.READ_ERROR]


def test_without_leave_nobody_is_suspended(setup: Setup) -> None:
    def handler(connection: Connection) -> Response | None:
        with pytest.raises(NotNow):
            connection.suspend()
        return Response(b"ok") if connection.stage is Stage.END else None

    with running(setup, access_handler=handler) as served:
        assert served.ask().body == b"ok"


def test_what_a_connection_tells(setup: Setup) -> None:
    seen: list[Any] = []

    def handler(connection: Connection) -> Response | None:
        if connection.stage is not Stage.END:
            assert connection.info.status is None
            return None
        connection.add_value(Kind.HEADER, "X-Added", "later")
        everything = Kind.ARGUMENT | Kind.HEADER | Kind.COOKIE
        seen.extend(connection.values(everything))
        for kind, name in (
            (Kind.ARGUMENT, "A"),
            (Kind.ARGUMENT, "bare"),
            (Kind.HEADER, "X-ADDED"),
            (Kind.COOKIE, "n"),
        ):
            seen.append(connection.lookup(kind, name))
        connection.queue(Response(b"ok", 201))
        seen.append(connection.info)
        return None

    cookie = b'n=v; q="w"; bad cookie=1; z=1'
    target = b"/hello+world?a=%26&b=x+y&e=&bare"
    request = b"GET %s HTTP/1.1\r\nHost: h\r\nCookie: %s\r\n\r\n" % (target, cookie)
    with running(setup, access_handler=handler) as served, served.connect() as sock:
        sock.sendall(request)
        assert read_reply(sock).status == 201
        A, H, C = Kind.ARGUMENT, Kind.HEADER, Kind.COOKIE
        assert seen[:9] == [
            (A, ("a", "&")), (A, ("b", "x y")), (A, ("e", "")), (A, ("bare", None)),
            (H, ("host", "h")), (H, ("cookie", 'n=v; q="w"; bad cookie=1; z=1')),
            (C, ("n", "v")), (C, ("q", "w")), (H, ("X-Added", "later")),
        ]  # fmt: skip
        assert seen[9:13] == ["&", None, "later", "v"]
        info = seen[13]
        assert info.peer == sock.getsockname() and info.local == sock.getpeername()
        assert info.daemon is served.daemon and info.status == 201 and info.header_size == len(request)
        assert info.fd >= 0 and not info.suspended


def test_contexts_of_connection_and_request(setup: Setup) -> None:
    logged: list[str] = []

    def opened(connection: Connection, begins: bool) -> None:
        if begins:
            connection.socket_context = "mine"

    def uri_log(connection: Connection, target: str) -> str:
        logged.append(target)
        return f"state of {target}"

    def handler(connection: Connection) -> Response | None:
        assert connection.socket_context == "mine"
        return Response(connection.state) if connection.stage is Stage.END else None

    with running(setup, access_handler=handler, on_connection=opened, uri_log=uri_log) as served:
        assert served.ask(GET.replace(b" / ", b" /%41?b ")).body == b"state of /%41?b"
    assert logged == ["/%41?b"]


def logged(setup: Setup, notes: Notes, **options: Any) -> Any:
    """A daemon that logs targets, and lets the state be what was logged."""

    def uri_log(connection: Connection, target: str) -> str:
        notes.targets.append(target)
        return f"state of {target}"

    return running(setup, uri_log=uri_log, **notes.options, **options)


LATE = b"POST /late?a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"


@pytest.mark.parametrize("way", ["fin", "reset", "silence", "fault"])
def test_a_target_is_logged_when_its_line_is_there(setup: Setup, way: str) -> None:
    """And what was logged ends once, with the right code, though no handler saw it."""
    notes = Notes()
    limits = Limits(header_timeout=0.2) if way == "silence" else Limits()
    with logged(setup, notes, access_handler=notes.handler, limits=limits) as served:
        with served.connect() as sock:
            for octet in LATE:
                sock.sendall(bytes((octet,)))
            served.until(lambda: notes.targets == ["/late?a"])
            if way == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif way == "silence":
                assert read_reply(sock).status == 408
            elif way == "fault":
                sock.sendall(b"no field\r\n\r\n")
                assert read_reply(sock).status == 400
        served.until(lambda: notes.events == ["started", "completed", "closed"])
        code = {
            "fin": Termination.CLIENT_ABORT, "reset": Termination.READ_ERROR,
            "silence": Termination.TIMEOUT_REACHED, "fault": Termination.WITH_ERROR,
        }[way]  # fmt: skip
        assert notes.ends == [("state of /late?a", code)] and notes.targets == ["/late?a"]
        assert notes.calls == []


def test_a_target_is_logged_once_however_its_request_comes(setup: Setup) -> None:
    notes = Notes()

    def handler(request: Request) -> Response:
        return Response(request.body)

    with logged(setup, notes, handler=handler) as served, served.connect() as sock:
        for octet in LATE + b"\r\nbody":
            sock.sendall(bytes((octet,)))
        assert read_reply(sock).body == b"body"
        sock.sendall((LATE + b"\r\nbody") * 2 + LATE)
        reply = read_reply(sock)
        assert read_reply(sock, before=reply.rest).body == b"body"
        served.until(lambda: len(notes.targets) == 4)
        assert len(notes.ends) == 3
        sock.sendall(b"\r\n")  # the head is there, the body is not
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        served.until(lambda: len(notes.ends) == 4)
    ok = ("state of /late?a", Termination.COMPLETED_OK)
    assert notes.ends == [ok, ok, ok, ("state of /late?a", Termination.CLIENT_ABORT)]
    assert notes.targets == ["/late?a"] * 4


def test_a_target_is_logged_before_the_body_is_there(setup: Setup) -> None:
    notes = Notes()
    with logged(setup, notes, handler=lambda request: Response(request.body)) as served:
        with served.connect() as sock:
            sock.sendall(LATE + b"\r\nbo")
            served.until(lambda: notes.targets == ["/late?a"])
            sock.sendall(b"dy")
            assert read_reply(sock).body == b"body"
        served.until(lambda: notes.ends == [("state of /late?a", Termination.COMPLETED_OK)])
    assert notes.targets == ["/late?a"]


def test_a_target_is_logged_of_a_request_that_is_refused_whole(setup: Setup) -> None:
    notes = Notes()
    with logged(setup, notes, access_handler=notes.handler) as served:
        assert served.ask(b"GET /refused HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").status == 400
        served.until(lambda: len(notes.events) == 3)
        assert served.ask(b"GET no-path HTTP/1.1\r\nHost: a\r\n\r\n").status == 400
        served.until(lambda: len(notes.events) == 5)
    assert notes.ends == [("state of /refused", Termination.WITH_ERROR)]
    assert notes.targets == ["/refused"]


def test_a_log_that_raises_harms_nobody(setup: Setup) -> None:
    lines: list[str] = []

    def uri_log(connection: Connection, target: str) -> None:
        raise RuntimeError("on purpose")

    with running(setup, lambda request: Response(b"Hello"), uri_log=uri_log, logger=lines.append) as served:
        assert served.ask().body == b"Hello"
    assert "RuntimeError: on purpose" in lines


def test_arguments_are_decoded_as_the_application_wants(setup: Setup) -> None:
    def handler(connection: Connection) -> Response | None:
        return (
            Response(connection.lookup(Kind.ARGUMENT, "a") or "") if connection.stage is Stage.END else None
        )

    with running(setup, access_handler=handler, unescape=str.swapcase) as served:
        assert served.ask(GET.replace(b" / ", b" /?A=%4a ")).body == b"%4A"


def test_callbacks_that_raise_harm_nobody(setup: Setup, capfd: pytest.CaptureFixture[str]) -> None:
    raised: list[bool] = []

    def raises(*told: Any) -> None:
        raised.append(True)
        raise RuntimeError("on purpose")

    def handler(connection: Connection) -> None:
        if connection.stage is Stage.END:
            with Response.from_buffer(b"Hello", free=raises) as response:
                connection.queue(response)

    options: dict[str, Any] = {"on_completed": raises, "on_connection": raises}
    with running(setup, access_handler=handler, **options) as served:
        for _ in range(2):
            with served.connect() as sock:
                for _ in range(2):
                    sock.sendall(GET)
                    assert read_reply(sock).body == b"Hello"
        served.until(lambda: served.daemon.connections == 0)
    assert len(raised) == 2 * 2 + 4 * 2  # not counted in what is printed: threads print into each other
    assert "on purpose" in capfd.readouterr().err


def test_a_whole_request_with_its_body(setup: Setup) -> None:
    def handler(request: Request) -> Response:
        return Response(request.body + request.path.encode())

    notes = Notes()
    with running(setup, handler, limits=Limits(body_memory=4), **notes.options) as served:
        for _ in range(2):
            assert served.ask(POST + b"Hello123").body == b"Hello123/up"
        served.until(lambda: notes.ends == [(None, Termination.COMPLETED_OK)] * 2)


def test_pipelined_requests_are_answered_in_order(setup: Setup) -> None:
    notes = Notes()
    with running(setup, access_handler=notes.handler, **notes.options) as served, served.connect() as sock:
        sock.sendall(POST + b"Hello123" + CHUNKED + b"2\r\nab\r\n0\r\n\r\n" + GET + CLOSE)
        data = read_to_end(sock)
    assert data.count(b"HTTP/1.1 200") == 4
    assert data.index(b"Hello123") < data.index(b"ab")
    assert notes.ends[0] == (b"Hello123", Termination.COMPLETED_OK) and len(notes.ends) == 4
