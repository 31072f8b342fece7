"""What a client may not exceed: times and numbers.  Waits for the fact, with tiny limits."""

from __future__ import annotations

import socket

import pytest

from quiesce import Request, Response
from quiesce.worker.core.limits import Limits
from quiesce.worker.net import body_store
from quiesce.worker.net import counters as figures
from wire.serving import read_reply, read_to_end, serving
from wire.test_answers import GET, Streams, hello


def test_no_byte_is_a_silent_close() -> None:
    with serving(hello, limits=Limits(header_timeout=0.05)) as served, served.connect() as sock:
        assert read_to_end(sock) == b""


def test_half_a_head_is_408_however_busily_it_comes() -> None:
    with serving(hello, limits=Limits(header_timeout=0.15)) as served, served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        sock.settimeout(0.01)
        for _ in range(1000):  # every byte would re-arm a timeout of silence
            try:
                data = sock.recv(1000)
                break
            except TimeoutError:
                sock.send(b"x")
        assert data.startswith(b"HTTP/1.1 408 ")
        assert served.daemon.counters.slot[figures.TIMEOUTS] == 1


def test_idle_is_a_silent_close() -> None:
    for threads in (1, 2):
        with (
            serving(hello, threads=threads, limits=Limits(idle_timeout=0.05, header_timeout=0.05)) as served,
            served.connect() as sock,
        ):
            sock.sendall(GET)
            assert read_reply(sock).body == b"Hello"
            assert read_to_end(sock) == b""


def test_idle_timeout_counts_from_the_last_answer() -> None:
    with serving(hello, limits=Limits(idle_timeout=0.3)) as served, served.connect() as sock:
        for _ in range(3):
            sock.sendall(GET)
            read_reply(sock)
        began = served.loop.now()
        assert read_to_end(sock) == b""
        assert 0.2 < served.loop.now() - began < 5


@pytest.mark.parametrize("app", [hello, Streams()])
def test_silence_in_a_body_is_408(app: object) -> None:
    limits = Limits(body_timeout=0.05)
    with serving(app, limits=limits) as served, served.connect() as sock:  # type: ignore[arg-type]
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        assert read_reply(sock).status == 408
        assert sock.recv(1) == b""


def test_slow_body_is_408() -> None:
    limits = Limits(body_min_rate=1_000_000, body_grace=0.05)
    with serving(hello, limits=limits) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        sock.settimeout(0.01)
        data = b""
        for _ in range(2000):
            try:
                data = sock.recv(1000)
                break
            except TimeoutError:
                sock.send(b"x")
        assert data.startswith(b"HTTP/1.1 408 ")


def test_client_that_takes_nothing_is_cut() -> None:
    big = bytes(20_000_000)
    for threads in (1, 2):
        with (
            serving(
                lambda request: Response(big), threads=threads, limits=Limits(send_timeout=0.1)
            ) as served,
            served.connect(receive_buffer=4096) as sock,
        ):
            sock.sendall(GET)
            sock.recv(1)
            served.until(lambda: served.daemon.open == 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("high_water", [1 << 20, 1 << 30], ids=["still produced", "all queued"])
def test_client_that_takes_its_answer_byte_by_byte_is_cut(
    high_water: int, version: bytes, threads: int
) -> None:
    """Each byte begins the send timeout anew.  It must not take the part that it has for the whole."""

    def endless(request: Request) -> Response:
        return Response(
            iter((bytes(64 << 20),))
        )  # more than any socket takes at once: some of it has to wait

    limits = Limits(
        body_min_rate=1 << 40,
        body_grace=0.0,
        high_water=high_water,  # nobody is as fast as that
    )
    with serving(endless, threads=threads, limits=limits) as served:
        with served.connect(receive_buffer=4096) as sock:
            sock.sendall(b"GET / HTTP/%s\r\nHost: a\r\n\r\n" % version)
            with pytest.raises(ConnectionResetError):
                while sock.recv(1000):
                    pass
        served.until(lambda: served.daemon.open == 0)
        assert served.daemon.counters.slot[figures.TIMEOUTS] == 1


def test_pace_is_kept_by_whoever_takes_all_that_there_is() -> None:
    """However little that is: nothing waits for it."""

    def slow(request: Request) -> Response:
        return Response(iter((b"a", b"b", b"c")))

    with serving(slow, limits=Limits(body_min_rate=1 << 40, body_grace=0.0)) as served:
        assert served.ask(GET).body == b"abc"


def test_thread_that_waits_for_a_client_is_released_by_the_send_timeout() -> None:
    def handler(request: Request) -> Response:
        return Response(bytes(100_000) for _ in range(200)) if request.path == "/big" else hello(request)

    with serving(handler, threads=2, limits=Limits(send_timeout=0.1)) as served:
        stuck = [served.connect(receive_buffer=4096) for _ in range(2)]
        for sock in stuck:
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            sock.recv(1)
        assert served.ask(GET).body == b"Hello"


def test_too_many_connections_are_told_so() -> None:
    with serving(hello, limits=Limits(connections=2)) as served:
        first, second = served.connect(), served.connect()
        for sock in (first, second):
            sock.sendall(GET)
            read_reply(sock)
        third = served.connect()
        reply = read_reply(third)
        assert (reply.status, reply.get("retry-after"), reply.get("connection")) == (503, "1", "close")
        third.close()
        first.close()
        served.until(lambda: served.daemon.open == 1)
        assert served.ask(GET).status == 200
        assert served.daemon.counters.slot[figures.REFUSED] == 1


def test_too_many_connections_of_one_address() -> None:
    with serving(hello, limits=Limits(connections_per_ip=1)) as served:
        first = served.connect()
        first.sendall(GET)
        read_reply(first)
        with served.connect() as second:
            assert read_reply(second).status == 503
        first.close()
        served.until(lambda: served.daemon.open == 0)
        assert served.ask(GET).status == 200
        assert served.do(lambda: len(served.daemon.roster._by_ip)) <= 1


def test_a_connection_that_was_given_is_not_limited() -> None:
    with serving(hello, limits=Limits(connections=1)) as served, served.connect() as first:
        first.sendall(GET)
        read_reply(first)
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(10)
            served.do(lambda: served.daemon.add_connection(theirs, peer=None, local=None))
            ours.sendall(GET)
            assert read_reply(ours).status == 200


def test_large_body_goes_through_a_file_and_holds_no_thread() -> None:
    def size(request: Request) -> Response:
        return Response(f"{len(request.body)} {type(request.file).__name__}")

    with serving(size, threads=2, limits=Limits(body_memory=1000)) as served:
        slow = [served.connect() for _ in range(4)]  # more than threads
        for sock in slow:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(99_999))
        assert served.ask(GET).body == b"0 NoneType"
        for sock in slow:
            sock.sendall(b"x")
            assert read_reply(sock).body == b"100000 BufferedRandom"
            sock.close()


@pytest.mark.parametrize("size", [2_000, 300_000], ids=["at its end", "in its middle"])
def test_body_for_which_the_disk_is_full_is_a_500(
    size: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The kernel's own ENOSPC.  So little fits the file's buffer that only the end of the body tries the disk.
    monkeypatch.setattr(body_store, "_unlinked_file", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
    with serving(hello, threads=2, limits=Limits(body_memory=1000)) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        reply = read_reply(sock)
        assert (reply.status, reply.get("connection")) == (500, "close")
        assert read_to_end(sock) == b""
        sock.close()
        served.until(lambda: served.daemon.open == 0)
        assert served.ask(GET).status == 200
    err = capfd.readouterr().err
    assert err.count("a request body cannot be kept") == 1 and "Traceback" not in err


def test_counters() -> None:
    def handler(request: Request) -> Response:
        return Response(b"", int(request.path[1:]))

    with serving(handler, threads=4) as served:
        for status in (200, 201, 302, 404, 500, 503):
            served.ask(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % status)
        served.ask(b"nonsense\r\n\r\n")
        slot = served.daemon.counters.slot
        served.until(lambda: served.daemon.open == 0 and slot[figures.REQUESTS] == 6)
        base = figures.RESPONSES
        assert [slot[base + n] for n in (1, 2, 3, 4, 5)] == [0, 2, 1, 2, 2]
        assert (slot[figures.REQUESTS], slot[figures.ACCEPTED]) == (6, 7)
        assert slot[figures.BYTES_IN] > 6 * 30 and slot[figures.BYTES_OUT] > 7 * 50
        assert [slot[f] for f in (figures.CONN_OPEN, figures.CONN_BUSY, figures.CONN_IDLE)] == [0, 0, 0]
