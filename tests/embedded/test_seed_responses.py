"""The manual's page on queueing a response; numbers are those of docs/libmicrohttpd.md."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Any

from embedded.serving import GET, Setup, running_mhd
from embedded.statements import says
from quiesce import Connection, Response
from quiesce.mhd import (
    MHD_ALLOW_SUSPEND_RESUME,
    MHD_NO,
    MHD_OPTION_NOTIFY_COMPLETED,
    MHD_REQUEST_TERMINATED_COMPLETED_OK,
    MHD_RESPMEM_PERSISTENT,
    MHD_YES,
    Cell,
    MHD_create_response_from_buffer,
    MHD_create_response_from_buffer_with_free_callback,
    MHD_destroy_response,
    MHD_queue_response,
    MHD_resume_connection,
    MHD_suspend_connection,
)
from wire.serving import PATIENCE_S, read_reply

Last = Callable[[Connection], int]


def handler(last: Last) -> Callable[..., int]:
    """An access handler that does this when the request is complete."""

    def access(
        cls: Any,
        connection: Connection,
        url: str,
        method: str,
        version: str,
        data: bytes | None,
        size: Cell,
        con_cls: Cell,
    ) -> int:
        if data is not None:
            size.value = 0
        elif con_cls.value is None:
            con_cls.value = "seen"
        else:
            return last(connection)
        return MHD_YES

    return access


def made(data: bytes = b"Hello") -> Response:
    response = MHD_create_response_from_buffer(len(data), data, MHD_RESPMEM_PERSISTENT)
    assert response is not None
    return response


class Ended:
    """What MHD_OPTION_NOTIFY_COMPLETED said."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.option = (MHD_OPTION_NOTIFY_COMPLETED, self._note, None)

    def _note(self, cls: Any, connection: Connection, con_cls: Cell, code: int) -> None:
        self.codes.append(code)


@says("R1")
def test_nothing_is_sent_before_the_handler_has_returned(setup: Setup) -> None:
    queued, looked = threading.Event(), threading.Event()
    response = made()

    def last(connection: Connection) -> int:
        result = MHD_queue_response(connection, 200, response)
        queued.set()
        assert looked.wait(PATIENCE_S)
        return result

    with running_mhd(setup, handler(last)) as served, served.connect() as sock:
        sock.sendall(GET)
        assert queued.wait(PATIENCE_S)
        sent_early = select.select([sock], [], [], 0.05)[0]
        looked.set()
        assert not sent_early
        assert read_reply(sock).body == b"Hello"


@says("R2", "R6", "R4")
def test_a_second_reply_is_refused_and_the_first_one_stands(setup: Setup) -> None:
    results: list[int] = []
    first, second = made(b"first"), made(b"second")

    def last(connection: Connection) -> int:
        results.append(MHD_queue_response(connection, 201, first))
        results.append(MHD_queue_response(connection, 200, second))
        assert second.references == 1
        return MHD_YES

    with running_mhd(setup, handler(last)) as served:
        reply = served.ask()
    assert (reply.status, reply.body) == (201, b"first")
    assert results == [MHD_YES, MHD_NO]


@says("R2")
def test_where_queueing_is_not_legal_nothing_happens(setup: Setup) -> None:
    during: list[int] = []
    kept: list[Connection] = []
    response = made()

    def access(
        cls: Any, connection: Connection, url: str, method: str, version: str,
        data: bytes | None, size: Cell, con_cls: Cell,
    ) -> int:  # fmt: skip
        if data is not None:
            during.append(MHD_queue_response(connection, 200, response))
            size.value = 0
            return MHD_YES
        if con_cls.value is None:
            con_cls.value = 1
            return MHD_YES
        during.extend(MHD_queue_response(connection, status, response) for status in (99, 0, 1000, 100, 101))
        kept.append(connection)
        return MHD_queue_response(connection, 200, response)

    with running_mhd(setup, access) as served:
        reply = served.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        assert reply.status == 200
        assert set(during) == {MHD_NO} and len(during) == 6
        served.until(lambda: response.references == 1)
        # After the reply, and from a thread that is not the handler's.
        assert MHD_queue_response(kept[0], 200, response) == MHD_NO
        assert response.references == 1


@says("R5")
def test_null_is_refused(setup: Setup) -> None:
    results: list[int] = []
    response = made()

    def last(connection: Connection) -> int:
        results.append(MHD_queue_response(None, 200, response))
        results.append(MHD_queue_response(connection, 200, None))
        return MHD_queue_response(connection, 200, response)

    with running_mhd(setup, handler(last)) as served:
        assert served.ask().status == 200
    assert results == [MHD_NO, MHD_NO]


@says("R3", "R7", "R8", "R9", "R10", "R11", "R12")
def test_references_are_counted_as_the_manual_tells_it(setup: Setup) -> None:
    counts: list[int] = []
    freed: list[bytes] = []
    ended = Ended()
    body = b"Hello"

    def last(connection: Connection) -> int:
        response = MHD_create_response_from_buffer_with_free_callback(len(body), body, freed.append)
        assert response is not None
        counts.append(response.references)
        assert MHD_queue_response(connection, 200, response) == MHD_YES
        counts.append(response.references)
        MHD_destroy_response(response)
        counts.append(response.references)
        counts.append(len(freed))
        return MHD_YES

    with running_mhd(setup, handler(last), *ended.option) as served, served.connect() as sock:
        for number in (1, 2):
            sock.sendall(GET)
            assert read_reply(sock).body == body
            served.until(lambda number=number: len(ended.codes) == number)
            assert freed == [body] * number
    assert counts == [1, 2, 1, 0, 1, 2, 1, 1]
    assert ended.codes == [MHD_REQUEST_TERMINATED_COMPLETED_OK] * 2


@says("R3", "R8", "R12")
def test_one_response_for_many_clients_is_kept_until_the_last_one_has_it(setup: Setup) -> None:
    freed: list[bytes] = []
    body = b"x" * 4_000_000  # more than all socket buffers hold
    response = MHD_create_response_from_buffer_with_free_callback(len(body), body, freed.append)
    assert response is not None

    with running_mhd(setup, handler(lambda c: MHD_queue_response(c, 200, response))) as served:
        socks = [served.connect(receive_buffer=4096) for _ in range(4)]
        for sock in socks:
            sock.sendall(GET)
        served.until(lambda: response.references == 5)
        MHD_destroy_response(response)
        for left, sock in zip((3, 2, 1), socks, strict=False):
            assert read_reply(sock).body == body
            served.until(lambda left=left: response.references == left)
            assert not freed
        socks[3].close()  # who goes without having it all needs it no more either
        served.until(lambda: freed == [body])
        assert response.references == 0


@says("R3", "R7")
def test_a_response_of_the_whole_program_outlives_the_daemon(setup: Setup) -> None:
    freed: list[bytes] = []
    response = MHD_create_response_from_buffer_with_free_callback(5, b"Hello", freed.append)
    assert response is not None
    with running_mhd(setup, handler(lambda c: MHD_queue_response(c, 200, response))) as served:
        for _ in range(3):
            assert served.ask().body == b"Hello"
    assert response.references == 1 and not freed
    MHD_destroy_response(response)
    assert freed == [b"Hello"]
    MHD_destroy_response(None)


@says("R1", "R2")
def test_a_suspended_connection_takes_its_reply_from_any_thread(setup: Setup) -> None:
    parked: list[Connection] = []
    waiting = threading.Event()
    response = made()
    seen: list[Any] = []

    def last(connection: Connection) -> int:
        seen.append(connection)
        MHD_suspend_connection(connection)
        parked.append(connection)
        waiting.set()
        return MHD_YES

    with (
        running_mhd(setup, handler(last), flags=MHD_ALLOW_SUSPEND_RESUME) as served,
        served.connect() as sock,
    ):
        sock.sendall(GET)
        assert waiting.wait(PATIENCE_S)
        served.until(lambda: parked[0].is_suspended)
        assert MHD_queue_response(parked[0], 200, response) == MHD_YES
        assert not select.select([sock], [], [], 0.05)[0]  # not before it is resumed
        MHD_resume_connection(parked[0])
        assert read_reply(sock).body == b"Hello"
    assert len(seen) == 1


@says("R8", "R12")
def test_stop_gives_back_what_was_queued(setup: Setup) -> None:
    freed: list[bytes] = []
    body = b"x" * 4_000_000
    response = MHD_create_response_from_buffer_with_free_callback(len(body), body, freed.append)
    assert response is not None
    with running_mhd(setup, handler(lambda c: MHD_queue_response(c, 200, response))) as served:
        sock = served.connect(receive_buffer=4096)
        sock.sendall(GET)
        served.until(lambda: response.references == 2)
        MHD_destroy_response(response)
        served.stop()
        assert freed == [body]


def test_a_freed_response_is_not_queued(setup: Setup) -> None:
    response = made()
    MHD_destroy_response(response)
    results: list[int] = []

    def last(connection: Connection) -> int:
        results.append(MHD_queue_response(connection, 200, response))
        return MHD_NO

    with running_mhd(setup, handler(last)) as served, served.connect() as sock:
        sock.sendall(GET)
        assert sock.recv(1) == b""  # the handler's MHD_NO: closed without a word
    assert results == [MHD_NO]
