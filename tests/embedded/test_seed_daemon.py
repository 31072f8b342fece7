"""The manual's page on starting and stopping; numbers are those of docs/libmicrohttpd.md."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from embedded.serving import CLOSE, GET, Setup, running_mhd
from embedded.statements import says
from embedded.test_seed_responses import Ended, handler, made
from harness.ports import Port
from quiesce import Connection
from quiesce.mhd import (
    FD_SET,
    FD_ZERO,
    MHD_DAEMON_INFO_BIND_PORT,
    MHD_DAEMON_INFO_LISTEN_FD,
    MHD_NO,
    MHD_NO_FLAG,
    MHD_OPTION_CONNECTION_LIMIT,
    MHD_OPTION_CONNECTION_TIMEOUT,
    MHD_OPTION_END,
    MHD_OPTION_LISTEN_SOCKET,
    MHD_OPTION_NOTIFY_CONNECTION,
    MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN,
    MHD_USE_EPOLL,
    MHD_USE_NO_LISTEN_SOCKET,
    MHD_USE_POLL,
    MHD_YES,
    Cell,
    MHD_add_connection,
    MHD_get_daemon_info,
    MHD_get_fdset,
    MHD_queue_response,
    MHD_quiesce_daemon,
    MHD_run,
    MHD_run_from_select,
    MHD_run_wait,
    MHD_set_panic_func,
    MHD_start_daemon,
    MHD_stop_daemon,
    MHD_suspend_connection,
    fd_set,
    get_errno,
    set_errno,
)
from quiesce.worker.embedded.panic import panic
from wire.serving import PATIENCE_S, read_reply, read_to_end

RESPONSE = made()
hello = handler(lambda connection: MHD_queue_response(connection, 200, RESPONSE))


@pytest.fixture
def panics() -> Iterator[list[tuple[Any, ...]]]:
    """What a panic function of ours was told."""
    told: list[tuple[Any, ...]] = []
    MHD_set_panic_func(lambda cls, file, line, reason: told.append((cls, file, line, reason)), "closure")
    yield told
    MHD_set_panic_func(None, None)


@says("S1", "S3")
def test_a_panic_function_is_told_what_and_where(setup: Setup, panics: list[tuple[Any, ...]]) -> None:
    def suspends(cls: Any, connection: Connection, context: Cell, code: int) -> None:
        if code == 0:
            MHD_suspend_connection(connection)  # without MHD_ALLOW_SUSPEND_RESUME

    with running_mhd(setup, hello, MHD_OPTION_NOTIFY_CONNECTION, suspends, None) as served:
        assert served.ask().status == 200
    cls, file, line, reason = panics[0]
    assert cls == "closure" and file.endswith("connection.py") and line > 0
    assert "MHD_ALLOW_SUSPEND_RESUME" in reason


@says("S3")
def test_a_panic_may_have_no_reason(panics: list[tuple[Any, ...]]) -> None:
    panic(None)
    assert panics[0][3] is None


@says("S2")
def test_without_a_panic_function_the_process_aborts() -> None:
    code = """if True:
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from quiesce.worker.embedded.panic import panic
        panic("beyond repair")
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGABRT
    assert "beyond repair" in run.stderr


@says("S4", "S7", "S9", "S13")
def test_a_daemon_serves_on_its_port(setup: Setup, port: Port) -> None:
    seen: list[tuple[str, str, str]] = []

    def access(cls: Any, connection: Connection, url: str, method: str, version: str, *rest: Any) -> int:
        seen.append((url, method, version))
        return hello(cls, connection, url, method, version, *rest)

    with running_mhd(setup, access, port=port.number) as served:
        assert MHD_get_daemon_info(served.daemon, MHD_DAEMON_INFO_BIND_PORT) == port.number
        for target in (b"/", b"/any/where?a=b"):
            with socket.create_connection(("127.0.0.1", port.number), PATIENCE_S) as sock:
                sock.sendall(CLOSE.replace(b" / ", b" %s " % target))
                assert b"Hello" in read_to_end(sock)
    assert set(seen) == {("/", "GET", "HTTP/1.1"), ("/any/where", "GET", "HTTP/1.1")}


@says("S5")
def test_flags_are_combined(setup: Setup) -> None:
    with running_mhd(setup, hello) as served:
        assert (served.daemon.info.mode, served.daemon.info.poller) == (setup.mode, setup.poller)
    assert MHD_start_daemon(MHD_USE_POLL | MHD_USE_EPOLL, 0, None, None, hello, None, MHD_OPTION_END) is None


@says("S6", "S8")
def test_the_accept_policy_decides(setup: Setup) -> None:
    asked: list[tuple[Any, ...]] = []

    def policy(cls: Any, addr: Any, addrlen: int) -> int:
        asked.append((cls, addr, addrlen))
        return MHD_YES if len(asked) == 2 else MHD_NO

    with running_mhd(setup, hello, apc=policy, apc_cls="extra") as served:
        with served.connect() as denied:
            assert denied.recv(1) == b""
            assert asked == [("extra", denied.getsockname(), 16)]
        assert served.ask().status == 200


@says("S10")
def test_the_access_handler_is_given_its_extra_argument(setup: Setup) -> None:
    given: list[Any] = []

    def access(cls: Any, connection: Connection, *rest: Any) -> int:
        given.append(cls)
        return hello(cls, connection, *rest)

    with running_mhd(setup, access, dh_cls="extra") as served:
        served.ask()
    assert set(given) == {"extra"}


@says("S11")
def test_options_are_pairs(setup: Setup) -> None:
    with running_mhd(
        setup, hello, MHD_OPTION_CONNECTION_TIMEOUT, 7, MHD_OPTION_CONNECTION_LIMIT, 1
    ) as served:
        assert served.daemon.timeout_s == 7
        with served.connect() as first:
            first.sendall(GET)
            assert read_reply(first).status == 200
            assert served.ask().status == 503


@says("S12")
@pytest.mark.parametrize(
    "options", [(), (MHD_OPTION_CONNECTION_TIMEOUT, 7), (MHD_OPTION_CONNECTION_TIMEOUT,)]
)
def test_options_without_their_end_are_a_type_error(options: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match="MHD_OPTION_END"):
        MHD_start_daemon(MHD_NO_FLAG, 0, None, None, hello, None, *options)


@says("S13")
def test_what_cannot_be_started_is_null(setup: Setup, port: Port) -> None:
    assert MHD_start_daemon(setup.flags, 0, None, None, None, None, MHD_OPTION_END) is None
    assert MHD_start_daemon(setup.flags, 0, None, None, hello, None, 4711, 1, MHD_OPTION_END) is None
    with socket.create_server(("0.0.0.0", 0)) as taken:
        number = taken.getsockname()[1]
        assert MHD_start_daemon(setup.flags, number, None, None, hello, None, MHD_OPTION_END) is None


@says("S14", "S15", "S16", "S17", "S20")
def test_quiesce_stops_accepting_and_gives_the_socket_to_its_caller(setup: Setup) -> None:
    with running_mhd(setup, hello) as served, served.connect() as old:
        old.sendall(GET)
        read_reply(old)
        fd = served.do(lambda: MHD_quiesce_daemon(served.daemon))
        assert fd == MHD_get_daemon_info(served.daemon, MHD_DAEMON_INFO_LISTEN_FD) >= 0
        with served.connect() as new:
            new.sendall(GET)
            for _ in range(3):
                old.sendall(GET)
                assert read_reply(old).body == b"Hello"
            assert not select.select([new], [], [], 0.05)[0]
            # It listens, and is in nobody's hands: the connection is in its queue.
            served.stop()
            with socket.socket(fileno=fd) as listener:
                listener.settimeout(PATIENCE_S)
                taken, _ = listener.accept()
                with taken:
                    assert taken.recv(1000) == GET


@says("S19")
def test_a_daemon_that_does_not_listen_cannot_be_quiesced(setup: Setup) -> None:
    with running_mhd(setup, hello) as served:
        fd = served.do(lambda: MHD_quiesce_daemon(served.daemon))
        assert served.do(lambda: MHD_quiesce_daemon(served.daemon)) == -1
        os.close(fd)
    with running_mhd(setup, hello, flags=MHD_USE_NO_LISTEN_SOCKET) as served:
        assert served.do(lambda: MHD_quiesce_daemon(served.daemon)) == -1
    assert MHD_quiesce_daemon(None) == -1


NEWER = """if True:
    import socket, sys
    from quiesce import Daemon, Response
    with socket.socket(socket.AF_UNIX, fileno=0) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        with Daemon(lambda request: Response(b"newer"), listener=fds[0]):
            channel.send(b"r")
            channel.recv(1)
"""


@says("S18", "S15")
def test_a_newer_process_accepts_while_we_finish(setup: Setup) -> None:
    with running_mhd(setup, hello) as served, served.connect() as old:
        old.sendall(GET)
        read_reply(old)
        fd = served.do(lambda: MHD_quiesce_daemon(served.daemon))
        ours, theirs = socket.socketpair()
        with ours, theirs, subprocess.Popen([sys.executable, "-c", NEWER], stdin=theirs) as newer:
            socket.send_fds(ours, [b"l"], [fd])
            os.close(fd)  # at once: none of our threads uses it any more
            ours.settimeout(PATIENCE_S)
            assert ours.recv(1) == b"r"
            assert served.ask().body == b"newer"
            old.sendall(GET)
            assert read_reply(old).body == b"Hello"
            ours.send(b"x")
            assert newer.wait(PATIENCE_S) == 0


@says("S21")
def test_stop_shuts_down(setup: Setup) -> None:
    ended = Ended()
    inside = threading.Event()
    threads = threading.active_count()

    def access(cls: Any, connection: Connection, *rest: Any) -> int:
        inside.set()
        return MHD_YES

    with running_mhd(setup, access, *ended.option) as served, served.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
        assert inside.wait(PATIENCE_S)
        number = served.daemon.info.port
        served.stop()
        assert ended.codes == [MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN]
        assert threading.active_count() == threads
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number), PATIENCE_S)
        MHD_stop_daemon(None)


@says("S21", "S16")
def test_stop_never_shuts_a_shared_listener_down(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with running_mhd(setup, hello, MHD_OPTION_LISTEN_SOCKET, os.dup(listener.fileno())) as served:
            assert served.ask().status == 200
        with socket.create_connection(listener.getsockname(), PATIENCE_S):
            listener.settimeout(PATIENCE_S)
            listener.accept()[0].close()


class Calls:
    """The builtin functions that this thread calls inside of the block, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            self.names.append(argument.__name__)


@says("S22")
def test_run_never_waits(external: Setup) -> None:
    with running_mhd(external, hello) as served, served.connect() as sock:
        served.pause(True)
        sock.sendall(GET)

        def turn() -> None:
            # With nothing to do it returns as well: were it to wait, this would hang.
            for _ in range(100):
                assert MHD_run(served.daemon) == MHD_YES

        served.do(turn)
        assert read_reply(sock).body == b"Hello"
        served.pause(False)


@says("S23", "S26", "S27", "S28", "S29", "S30", "S31")
def test_run_from_select_serves_the_given_sets_and_selects_no_more(external: Setup) -> None:
    if external.poller.value == "poll":
        with running_mhd(external, hello) as served:
            no = served.do(lambda: MHD_run_from_select(served.daemon, fd_set(), fd_set(), None))
            assert no == MHD_NO
        return
    with running_mhd(external, hello) as served, served.connect() as sock, served.connect() as foreign:
        served.pause(True)
        calls = Calls()

        def select_once(timeout: float | None) -> None:
            daemon = served.daemon
            reading, writing, highest = fd_set(), fd_set(), Cell()
            assert MHD_get_fdset(daemon, reading, writing, None, highest) == MHD_YES
            assert highest.value == max([*reading, *writing])
            FD_SET(foreign.fileno(), reading)  # not the daemon's: it must not be touched
            readable, writable, _ = select.select(list(reading), list(writing), [], timeout)
            FD_ZERO(reading)
            FD_ZERO(writing)
            for fd in (*readable, foreign.fileno()):
                FD_SET(fd, reading)
            for fd in writable:
                FD_SET(fd, writing)
            with calls:
                assert MHD_run_from_select(daemon, reading, writing, None) == MHD_YES

        def serve() -> None:
            sock.sendall(GET)
            while not select.select([sock], [], [], 0)[0]:
                select_once(PATIENCE_S)

        served.do(serve)
        assert read_reply(sock).body == b"Hello"
        assert "recv" in calls.names
        if external.poller.value == "select":
            assert not {"select", "poll"} & set(calls.names)
        served.pause(False)


@says("S26")
def test_what_is_not_in_the_sets_is_not_served(external: Setup) -> None:
    if external.poller.value != "select":
        return  # one descriptor stands for all
    with running_mhd(external, hello) as served, served.connect() as sock:
        sock.sendall(GET)
        read_reply(sock)
        served.pause(True)
        sock.sendall(GET)
        for _ in range(3):
            assert served.do(lambda: MHD_run_from_select(served.daemon, fd_set(), fd_set(), None)) == MHD_YES
        assert not select.select([sock], [], [], 0.05)[0]
        served.pause(False)
        assert read_reply(sock).body == b"Hello"


@says("S24")
def test_run_is_for_polling_and_selecting_applications(external: Setup) -> None:
    with running_mhd(external, hello) as served, served.connect() as sock:
        served.pause(True)
        sock.sendall(GET)

        def serve() -> None:
            while not select.select([sock], [], [], 0)[0]:
                assert MHD_run_wait(served.daemon, -1) == MHD_YES

        served.do(serve)
        assert read_reply(sock).status == 200
        served.pause(False)


@says("S25", "S31")
def test_a_daemon_with_threads_is_not_run(threaded: Setup) -> None:
    with running_mhd(threaded, hello) as served:
        assert MHD_run(served.daemon) == MHD_NO
        assert MHD_run_wait(served.daemon, 0) == MHD_NO
        assert MHD_run_from_select(served.daemon, fd_set(), fd_set(), None) == MHD_NO
        assert MHD_get_fdset(served.daemon, fd_set(), fd_set(), None, None) == MHD_NO
    assert MHD_run(served.daemon) == MHD_NO  # nor one that was stopped
    assert MHD_run(None) == MHD_NO


@says("S31")
def test_run_from_select_without_sets_is_no(external: Setup) -> None:
    with running_mhd(external, hello) as served:
        assert served.do(lambda: MHD_run_from_select(served.daemon, None, fd_set(), None)) == MHD_NO
        assert served.do(lambda: MHD_run_from_select(served.daemon, fd_set(), None, None)) == MHD_NO


@says("S32", "S33", "S34", "S36", "S37", "S38")
def test_a_socket_that_we_connected_out_is_served(setup: Setup) -> None:
    seen: list[Any] = []

    def access(cls: Any, connection: Connection, *rest: Any) -> int:
        seen.append(connection.info.peer)
        return hello(cls, connection, *rest)

    with (
        socket.create_server(("127.0.0.1", 0)) as client_side,
        running_mhd(setup, access, flags=MHD_USE_NO_LISTEN_SOCKET) as served,
    ):
        # The client is behind NAT and listens; the server calls it.
        out = socket.create_connection(client_side.getsockname(), PATIENCE_S)
        client, _ = client_side.accept()
        addr = ("192.0.2.7", 4711)
        fd = out.detach()
        assert served.do(lambda: MHD_add_connection(served.daemon, fd, addr, 16)) == MHD_YES
        with client:
            client.settimeout(PATIENCE_S)
            client.sendall(GET)
            assert read_reply(client).body == b"Hello"
    assert set(seen) == {addr}


@says("S35")
def test_the_daemon_closes_what_was_added(setup: Setup) -> None:
    with running_mhd(setup, hello) as served:
        ours, theirs = socket.socketpair()
        fd = theirs.detach()
        assert served.do(lambda: MHD_add_connection(served.daemon, fd, None, 0)) == MHD_YES
        with ours:
            ours.settimeout(PATIENCE_S)
            ours.sendall(CLOSE)
            assert b"Hello" in read_to_end(ours)
        served.until(lambda: served.daemon.connections == 0)
        with pytest.raises(OSError):
            os.fstat(fd)


@says("S38", "S39")
def test_whom_the_daemon_does_not_take_is_closed_and_errno_says_why(setup: Setup) -> None:
    def refused(fd: int, addr: Any, addrlen: int) -> int:
        set_errno(0)
        result: list[int] = []

        def add() -> int:
            answer = MHD_add_connection(served.daemon, fd, addr, addrlen)
            result.append(get_errno())
            return answer

        assert served.do(add) == MHD_NO
        with pytest.raises(OSError):
            os.fstat(fd)
        return result[0]

    with running_mhd(
        setup,
        hello,
        MHD_OPTION_CONNECTION_LIMIT,
        1,
        apc=lambda cls, addr, length: addr is None or addr[1] != 9,
    ) as served:
        with socket.socket() as sock:
            short = os.dup(sock.fileno())
            assert refused(short, ("192.0.2.7", 1), 4) == errno.EINVAL
        with socket.socket() as unconnected:
            assert refused(os.dup(unconnected.fileno()), None, 0) == errno.ENOTCONN
        reader, writer = os.pipe()
        os.close(writer)
        assert refused(reader, None, 0) == errno.ENOTSOCK
        pairs = [socket.socketpair() for _ in range(3)]
        assert refused(pairs[0][1].detach(), ("192.0.2.7", 9), 16) == errno.EACCES
        with served.connect() as only:
            only.sendall(GET)
            read_reply(only)
            assert refused(pairs[1][1].detach(), None, 0) == errno.ENFILE
        served.stop()
        assert refused(pairs[2][1].detach(), None, 0) == errno.EINVAL
        for ours, _ in pairs:
            ours.settimeout(PATIENCE_S)
            assert ours.recv(1) == b""
            ours.close()
