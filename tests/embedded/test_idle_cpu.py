"""Nothing happens, so nothing is done: in every mode, whatever the clients wait for.

Each scene ends with neither side having anything to do.  Then every loop of the daemon gets a known number of timers,
and turns about as often: a descriptor that is ready and cannot be served would turn it thousands of times meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import pytest

from embedded.serving import CLOSE, GET, Running, Setup, running
from embedded.turns import counted
from quiesce import Connection, Limits, Response
from wire.serving import read_reply

pytestmark = pytest.mark.slow

TICKS = 10
# A tick is a turn, or two where the wait ended a little before the timer; a client's deadline may come up as well.
MOST = 4 * TICKS
WINDOWS = 25  # until it is quiet
BIG = b"x" * (8 << 20)
# Of times, only those that a test could run into are longer: nothing is to end while we count.
LIMITS = Limits(header_timeout=60.0, body_timeout=60.0, linger_timeout=60.0, linger_time=60.0)


def request(path: str, more: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode()


def handle(connection: Connection) -> Response | None:
    path = connection.request.path
    if path == "/suspend":
        connection.suspend()
        return None
    if path == "/unread" and connection.state is None:
        connection.state = "asked"
        return None
    return Response(BIG if path == "/big" else b"hello\n")


def nobody(served: Running) -> None:
    pass


def keep_alive(served: Running) -> None:
    for _ in range(3):
        sock = served.connect()
        sock.sendall(GET)
        read_reply(sock)


def silent(served: Running) -> None:
    served.connect()


def half_a_head(served: Running) -> None:
    served.connect().sendall(b"GET / HTTP/1.1\r\nHo")


def half_a_body(served: Running) -> None:
    served.connect().sendall(request("/unread", "Content-Length: 100\r\n", "POST") + b"0123456789")


def suspended(served: Running) -> socket.socket:
    sock = served.connect()
    sock.sendall(request("/suspend"))
    return sock


def suspended_and_more_requests(served: Running) -> None:
    suspended(served).sendall(GET * 1000)


def suspended_and_half_closed(served: Running) -> None:
    suspended(served).shutdown(socket.SHUT_WR)


def suspended_and_gone(served: Running) -> None:
    suspended(served).close()


def suspended_and_reset(served: Running) -> None:
    sock = suspended(served)
    served.until(lambda: served.daemon.connections == 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def suspended_upload(served: Running) -> None:
    sock = served.connect()
    sock.sendall(request("/suspend", f"Content-Length: {len(BIG)}\r\n", "POST"))
    fill(sock)


def unread_upload(served: Running) -> None:
    sock = served.connect()
    sock.sendall(request("/unread", f"Content-Length: {len(BIG)}\r\n", "POST"))
    fill(sock)


def fill(sock: socket.socket) -> None:
    """Send until it stops, or is ended."""
    sock.settimeout(0.1)
    with contextlib.suppress(OSError):
        sock.sendall(BIG)


def reads_nothing(served: Running) -> socket.socket:
    sock = served.connect(receive_buffer=4096)
    sock.sendall(request("/big"))
    return sock


def reads_nothing_and_half_closes(served: Running) -> None:
    reads_nothing(served).shutdown(socket.SHUT_WR)


def reads_nothing_and_asks_on(served: Running) -> None:
    fill(reads_nothing(served))


def does_not_close(served: Running) -> None:
    sock = served.connect()
    sock.sendall(CLOSE)
    read_reply(sock)


def quiesced(served: Running) -> None:
    keep_alive(served)
    listener = served.do(served.daemon.quiesce)
    served.sockets.append(listener)
    late = socket.create_connection(listener.getsockname(), timeout=20.0)  # nobody accepts it
    served.sockets.append(late)


def draining(served: Running) -> None:
    keep_alive(served)
    served.do(lambda: served.daemon.drain(60.0))
    served.connect()


SCENES: list[Callable[[Running], object]] = [
    nobody, keep_alive, silent, half_a_head, half_a_body, suspended, suspended_and_more_requests,
    suspended_and_half_closed, suspended_and_gone, suspended_and_reset, suspended_upload, unread_upload,
    reads_nothing, reads_nothing_and_half_closes, reads_nothing_and_asks_on, does_not_close, quiesced, draining,
]  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_an_idle_daemon_sleeps(scene: Callable[[Running], object], setup: Setup) -> None:
    with counted() as turns, served_at_rest(setup) as served:
        scene(served)
        seen = []
        while not seen or seen[-1] > MOST * loops_of(served):
            assert len(seen) < WINDOWS, f"turns in each of {WINDOWS} windows of {TICKS} timers: {seen}"
            seen.append(turns.during(served, TICKS))


def loops_of(served: Running) -> int:
    shell = served.daemon._shell
    assert shell is not None
    return len(served.do(shell.all_seats))


@contextlib.contextmanager
def served_at_rest(setup: Setup):  # type: ignore[no-untyped-def]
    with running(setup, access_handler=handle, allow_suspend=True, limits=LIMITS) as served:
        served.sockets = served._sockets
        yield served


def test_a_busy_loop_is_seen(threaded: Setup) -> None:
    """What the other tests rest on: a descriptor that stays ready, with nobody who serves it."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    with counted() as turns, served_at_rest(threaded) as served:
        seat = served.daemon._shell.seats[0]
        seat.do(lambda: seat.loop.watch(reader, lambda mask: None))
        assert turns.during(served, TICKS) > 10 * MOST
        seat.do(lambda: seat.loop.unwatch(reader))
    os.close(reader)
    os.close(writer)
