"""quiesce.mhd beyond the manual's two pages: the table of flags, every option, the smaller functions."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedded.serving import CLOSE, GET, Setup, running, running_mhd
from embedded.test_seed_responses import handler, made
from quiesce import Connection, Mode, Poller, __version__, mhd
from quiesce.worker.mhd.starting import TWO_VALUES
from wire.serving import PATIENCE_S, read_reply, read_to_end

F = mhd.MHD_FLAG
TPC, INT = F.MHD_USE_THREAD_PER_CONNECTION, F.MHD_USE_INTERNAL_POLLING_THREAD
POLL, EPOLL, AUTO = F.MHD_USE_POLL, F.MHD_USE_EPOLL, F.MHD_USE_AUTO
ITC, NO_LISTEN, LOG = F.MHD_USE_ITC, F.MHD_USE_NO_LISTEN_SOCKET, F.MHD_USE_ERROR_LOG
PLAIN = Setup(Mode.THREAD, Poller.EPOLL, flags=INT | EPOLL)
RESPONSE = made()
hello = handler(lambda connection: mhd.MHD_queue_response(connection, 200, RESPONSE))


class Log:
    """An external logger: what it was told, as C would have printed it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.option = (mhd.MHD_OPTION_EXTERNAL_LOGGER, self._note, "closure")

    def _note(self, cls: Any, fmt: str, args: tuple[Any, ...]) -> None:
        assert cls == "closure" and fmt.endswith("\n")
        self.lines.append((fmt % args).rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def start(flags: int, *options: Any, dh: Any = hello) -> Any:
    return mhd.MHD_start_daemon(flags, 0, None, None, dh, None, *options, mhd.MHD_OPTION_END)


# -- the table of flags -----------------------------------------------------------------------------

POOL = mhd.MHD_OPTION_THREAD_POOL_SIZE
NOTIFY = (mhd.MHD_OPTION_NOTIFY_COMPLETED, lambda *told: None, None)
COMBINATIONS: list[tuple[str, int, tuple[Any, ...], tuple[Mode, Poller, int] | None]] = [
    ("external select", 0, (), (Mode.EXTERNAL, Poller.SELECT, 0)),
    ("external epoll", EPOLL, (), (Mode.EXTERNAL, Poller.EPOLL, EPOLL)),
    ("external poll, which C refuses", POLL, (), (Mode.EXTERNAL, Poller.POLL, POLL)),
    ("poll and epoll", POLL | EPOLL | INT, (), None),
    ("auto and poll", AUTO | POLL | INT, (), None),
    ("auto and epoll", AUTO | EPOLL | INT, (), None),
    ("epoll and a thread per connection", EPOLL | TPC | INT, (), None),
    ("a thread per connection alone", TPC, (), (Mode.THREAD_PER_CONNECTION, Poller.SELECT, TPC | INT)),
    ("auto, external", AUTO, (), (Mode.EXTERNAL, Poller.EPOLL, AUTO | EPOLL)),
    ("auto, internal", AUTO | INT, (), (Mode.THREAD, Poller.EPOLL, AUTO | INT | EPOLL)),
    (
        "auto, thread per connection", AUTO | TPC | INT, (),
        (Mode.THREAD_PER_CONNECTION, Poller.POLL, AUTO | TPC | INT | POLL),
    ),
    ("no thread safety, internal", F.MHD_USE_NO_THREAD_SAFETY | INT, (), None),
    (
        "no thread safety strips ITC", F.MHD_USE_NO_THREAD_SAFETY | ITC, (),
        (Mode.EXTERNAL, Poller.SELECT, F.MHD_USE_NO_THREAD_SAFETY),
    ),
    ("no listener, internal", NO_LISTEN | INT, (), (Mode.THREAD, Poller.SELECT, NO_LISTEN | INT | ITC)),
    ("no listener, pool", NO_LISTEN | INT, (POOL, 4), (Mode.POOL, Poller.SELECT, NO_LISTEN | INT | ITC)),
    (
        "thread per connection that notifies", TPC | INT, NOTIFY,
        (Mode.THREAD_PER_CONNECTION, Poller.SELECT, TPC | INT | ITC),
    ),
    ("plain internal", INT, (), (Mode.THREAD, Poller.SELECT, INT)),
    ("suspend brings ITC", INT | F.MHD_ALLOW_SUSPEND_RESUME, (), (Mode.THREAD, Poller.SELECT, INT | ITC | 8192)),
    ("upgrade brings both", INT | F.MHD_ALLOW_UPGRADE, (), (Mode.THREAD, Poller.SELECT, INT | ITC | 8192 | 32768)),
    ("a pool of none", INT, (POOL, 0), (Mode.THREAD, Poller.SELECT, INT)),
    ("a pool of one", INT, (POOL, 1), (Mode.THREAD, Poller.SELECT, INT)),
    ("a pool of two", INT | EPOLL, (POOL, 2), (Mode.POOL, Poller.EPOLL, INT | EPOLL)),
    ("a pool without threads", 0, (POOL, 2), None),
    ("a pool of threads per connection", TPC | INT, (POOL, 2), None),
    ("TLS", F.MHD_USE_TLS | INT, (), None),
    ("flags of TLS alone", F.MHD_USE_INSECURE_TLS_EARLY_DATA, (), (Mode.EXTERNAL, Poller.SELECT, 1 << 18)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "options", "expected"), [row[1:] for row in COMBINATIONS], ids=[r[0] for r in COMBINATIONS]
)
def test_each_combination_of_flags(flags: int, options: tuple[Any, ...], expected: Any) -> None:
    log = Log()
    daemon = start(flags | LOG, *log.option, *options)
    if expected is None:
        assert daemon is None and "cannot start the daemon" in log.text
        return
    assert daemon is not None
    effective = mhd.MHD_get_daemon_info(daemon, mhd.MHD_DAEMON_INFO_FLAGS)
    assert (daemon.info.mode, daemon.info.poller, int(effective)) == (*expected[:2], expected[2] | LOG)
    mhd.MHD_stop_daemon(daemon)


@pytest.mark.parametrize(
    ("flags", "options"), [(TPC, ()), (INT, (POOL, 1))], ids=["per connection", "pool of one"]
)
def test_what_is_odd_is_warned_of(flags: int, options: tuple[Any, ...]) -> None:
    log = Log()
    mhd.MHD_stop_daemon(start(flags, *log.option, *options))
    assert len(log.lines) == 1


def test_a_socket_that_was_given_in_vain_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as other:
        given = (mhd.MHD_OPTION_LISTEN_SOCKET, listener.fileno())
        address = (mhd.MHD_OPTION_SOCK_ADDR_LEN, 16, ("127.0.0.1", 0))
        assert start(INT | NO_LISTEN, *given) is None
        assert start(INT, *given, *address) is None
        assert start(INT, *given, mhd.MHD_OPTION_THREAD_STACK_SIZE, 1) is None
        assert start(INT, mhd.MHD_OPTION_LISTEN_SOCKET, other.fileno()) is None
        with socket.create_connection(listener.getsockname(), PATIENCE_S):
            listener.accept()[0].close()
        assert other.getsockname() is not None


# -- options ----------------------------------------------------------------------------------------


def test_no_date(setup: Setup) -> None:
    with running_mhd(setup, hello, flags=F.MHD_USE_SUPPRESS_DATE_NO_CLOCK) as served:
        reply = served.ask()
        assert (reply.status, reply.body, reply.get("date")) == (200, b"Hello", None)
        assert served.ask(b"nonsense\r\n\r\n").get("date") is None
    with running_mhd(setup, hello) as served:
        assert served.ask().get("date") is not None


def test_flags_that_are_only_hints_change_nothing(setup: Setup) -> None:
    with running_mhd(setup, hello, flags=F.MHD_USE_TURBO) as served:
        assert served.ask().body == b"Hello"


ADDRESSES = [
    (16, ("127.0.0.1", 0), True),
    (15, ("127.0.0.1", 0), False),
    (8, ("127.0.0.1", 0), False),
    (28, ("127.0.0.1", 0), False),
    (28, ("::1", 0, 0, 0), True),
    (16, ("::1", 0, 0, 0), False),
    (0, None, True),
    (16, None, False),
    (0, ("127.0.0.1", 0), False),
]


@pytest.mark.parametrize(("length", "address", "good"), ADDRESSES)
def test_an_address_has_the_length_of_its_family(length: int, address: Any, good: bool) -> None:
    daemon = start(INT, mhd.MHD_OPTION_SOCK_ADDR_LEN, length, address)
    assert (daemon is not None) is good
    if daemon is not None:
        port = mhd.MHD_get_daemon_info(daemon, mhd.MHD_DAEMON_INFO_BIND_PORT)
        host = address[0] if address else "127.0.0.1"
        with socket.create_connection((host, port), PATIENCE_S) as sock:
            sock.sendall(GET)
            assert read_reply(sock).status == 200
        mhd.MHD_stop_daemon(daemon)


@pytest.mark.parametrize("length", [None, 110, 3, 200])
def test_an_address_may_be_a_unix_socket(length: int | None, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    option = (mhd.MHD_OPTION_SOCK_ADDR,) if length is None else (mhd.MHD_OPTION_SOCK_ADDR_LEN, length)
    daemon = start(INT | EPOLL, *option, path)
    assert (daemon is not None) is (length in (None, 110))
    if daemon is None:
        return
    assert mhd.MHD_get_daemon_info(daemon, mhd.MHD_DAEMON_INFO_BIND_PORT) == 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        sock.sendall(CLOSE)
        assert b"Hello" in read_to_end(sock)
    mhd.MHD_stop_daemon(daemon)


def test_what_is_no_address_is_null() -> None:
    assert start(INT, mhd.MHD_OPTION_SOCK_ADDR, (1, 2, 3)) is None


def test_both_families_or_one() -> None:
    for flags, both in ((F.MHD_USE_IPv6, False), (F.MHD_USE_DUAL_STACK, True)):
        daemon = start(INT | flags)
        port = daemon.info.port
        with socket.create_connection(("::1", port), PATIENCE_S) as sock:
            sock.sendall(GET)
            assert read_reply(sock).status == 200
        if both:
            socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
        else:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        mhd.MHD_stop_daemon(daemon)


def option_of(daemon: Any, level: int, name: int) -> int:
    with socket.socket(fileno=os.dup(daemon.info.listener_fd)) as listener:
        return listener.getsockopt(level, name)


def test_an_address_is_shared_or_not() -> None:
    for option, (reuse, share) in ((None, (1, 0)), (1, (1, 1)), (0, (0, 0))):
        options = () if option is None else (mhd.MHD_OPTION_LISTENING_ADDRESS_REUSE, option)
        daemon = start(INT, *options, mhd.MHD_OPTION_SOCK_ADDR, ("127.0.0.1", 0))
        assert bool(option_of(daemon, socket.SOL_SOCKET, socket.SO_REUSEADDR)) is bool(reuse)
        assert bool(option_of(daemon, socket.SOL_SOCKET, socket.SO_REUSEPORT)) is bool(share)
        second = start(INT, *options, mhd.MHD_OPTION_SOCK_ADDR, ("127.0.0.1", daemon.info.port))
        assert (second is not None) is bool(share)
        mhd.MHD_stop_daemon(daemon)
        mhd.MHD_stop_daemon(second)


def test_fast_open_has_a_queue_only_with_its_flag() -> None:
    size = (mhd.MHD_OPTION_TCP_FASTOPEN_QUEUE_SIZE, 7)
    for flags, options, queue in (
        (0, size, 0),
        (F.MHD_USE_TCP_FASTOPEN, size, 7),
        (F.MHD_USE_TCP_FASTOPEN, (), 10),
    ):
        daemon = start(INT | flags, *options)
        assert option_of(daemon, socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == queue
        mhd.MHD_stop_daemon(daemon)


def test_the_backlog_holds_so_many() -> None:
    daemon = start(0, mhd.MHD_OPTION_LISTEN_BACKLOG_SIZE, 3, mhd.MHD_OPTION_SOCK_ADDR, ("127.0.0.1", 0))
    # TCP_INFO of a listener: tcpi_sacked is its backlog.
    with socket.socket(fileno=os.dup(daemon.info.listener_fd)) as listener:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    assert int.from_bytes(info[28:32], "little") == 3
    mhd.MHD_stop_daemon(daemon)


STACK = 24 * 1024 * 1024  # larger than any that a thread which has ended may have left for the next one


def test_threads_have_the_stack_that_was_asked_for(threaded: Setup) -> None:
    before = threading.stack_size()
    sizes: list[int] = []

    def last(connection: Connection) -> int:
        for line in Path("/proc/thread-self/maps").read_text().splitlines():
            begin, _, end = line.split()[0].partition("-")
            if int(begin, 16) <= address_of_local() < int(end, 16):
                sizes.append(int(end, 16) - int(begin, 16))
        return mhd.MHD_queue_response(connection, 200, RESPONSE)

    with running_mhd(threaded, handler(last), mhd.MHD_OPTION_THREAD_STACK_SIZE, STACK) as served:
        assert served.ask().status == 200
    assert sizes == [STACK]
    assert threading.stack_size() == before
    assert start(INT, mhd.MHD_OPTION_THREAD_STACK_SIZE, 1) is None


def address_of_local() -> int:
    """Somewhere on this thread's stack: its stack pointer, as the kernel says it."""
    return int(Path("/proc/thread-self/syscall").read_text().split()[-2], 16)


def test_the_size_of_sets_is_the_system_s() -> None:
    for flags, size, good in ((0, 1024, True), (0, 2048, False), (0, 0, False), (INT, 1024, False)):
        daemon = start(flags, mhd.MHD_OPTION_APP_FD_SETSIZE, size)
        assert (daemon is not None) is good
        mhd.MHD_stop_daemon(daemon)


@pytest.mark.parametrize(
    "option", ["SERVER_INSANITY", "SIGPIPE_HANDLED_BY_APP", "CONNECTION_MEMORY_INCREMENT"]
)
def test_options_without_a_meaning_here_are_taken(option: str) -> None:
    daemon = start(INT, getattr(mhd, f"MHD_OPTION_{option}"), 0)
    assert daemon is not None
    mhd.MHD_stop_daemon(daemon)


def test_options_of_the_later_order_are_null_and_said() -> None:
    for name in mhd.MHD_OPTION.__members__:
        if any(word in name for word in ("HTTPS", "DIGEST", "NONCE", "TLS", "PSK")):
            log = Log()
            option = mhd.MHD_OPTION[name]
            values = (1, 1) if option in TWO_VALUES else (1,)
            assert start(INT | LOG, *log.option, option, *values) is None
            assert name in log.text


STRICTNESS = [
    (0, (), None), (F.MHD_USE_PEDANTIC_CHECKS, (), 1),
    *((0, (mhd.MHD_OPTION_CLIENT_DISCIPLINE_LVL, level), level) for level in range(-3, 4)),
    (0, (mhd.MHD_OPTION_CLIENT_DISCIPLINE_LVL, 9), 3), (0, (mhd.MHD_OPTION_CLIENT_DISCIPLINE_LVL, -9), -3),
    (0, (mhd.MHD_OPTION_STRICT_FOR_CLIENT, 1), 1), (0, (mhd.MHD_OPTION_STRICT_FOR_CLIENT, 0), 0),
    (0, (mhd.MHD_OPTION_STRICT_FOR_CLIENT, -1), -3),
    (F.MHD_USE_PEDANTIC_CHECKS, (mhd.MHD_OPTION_CLIENT_DISCIPLINE_LVL, -2), -2),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "options", "level"), STRICTNESS)
def test_how_strict_it_is(flags: int, options: tuple[Any, ...], level: int | None) -> None:
    with running_mhd(PLAIN, hello, *options, flags=flags) as served:
        forgives_lf = level is not None and level <= 0
        reply = served.ask(b"GET / HTTP/1.1\nHost: a\n\n")
        assert reply.status == (200 if forgives_lf else 400)
        spaced = served.ask(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n").status
        assert spaced == (400 if level is None or level > 0 else 301 if level > -2 else 200)
        forgives_empty = level is None or level <= 1
        assert served.ask(b"\r\n" + GET).status == (200 if forgives_empty else 400)


def test_options_in_an_array(setup: Setup) -> None:
    ended: list[Any] = []
    inner = [
        (mhd.MHD_OPTION_CONNECTION_LIMIT, 1, None),
        (mhd.MHD_OPTION_END, 0, None),
        ("never", "looked", "at"),
    ]
    items = [
        (mhd.MHD_OPTION_CONNECTION_TIMEOUT, 7),  # as one would write it here
        (mhd.MHD_OPTION_PER_IP_CONNECTION_LIMIT, 5, None),  # as in C: a number, and no pointer
        (mhd.MHD_OPTION_SOCK_ADDR, 0, ("127.0.0.1", 0)),  # a pointer, and no number
        (mhd.MHD_OPTION_NOTIFY_COMPLETED, lambda *told: ended.append(told[0]), "closure"),
        (mhd.MHD_OPTION_ARRAY, 0, inner),
    ]
    with running_mhd(setup, hello, mhd.MHD_OPTION_ARRAY, items) as served:
        assert served.daemon.timeout_s == 7
        with served.connect() as first:
            first.sendall(GET)
            assert read_reply(first).status == 200
            assert served.ask().status == 503
        served.until(lambda: ended == ["closure"])


# -- the logger -------------------------------------------------------------------------------------


def test_what_the_library_complains_about_goes_to_the_logger(
    setup: Setup, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()

    def raises(*told: Any) -> int:
        raise RuntimeError("on purpose")

    with running_mhd(setup, raises, *log.option) as served:
        assert served.ask().status == 500
    assert "raised RuntimeError in GET /" in log.lines[0]
    assert log.lines[-1] == "RuntimeError: on purpose"  # the traceback's end
    assert all("\n" not in line for line in log.lines)
    assert capfd.readouterr().err == ""


def test_callbacks_that_raise_are_told_to_the_logger(setup: Setup, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def raises(*told: Any) -> None:
        raise RuntimeError("on purpose")

    options: dict[str, Any] = {"on_completed": raises, "logger": lines.append}
    with running(setup, lambda request: made(), **options) as served:
        assert served.ask().body == b"Hello"
        served.until(lambda: "RuntimeError: on purpose" in lines)
    assert capfd.readouterr().err == ""


def test_a_logger_that_raises_is_told_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(line: str) -> None:
        raise OSError("the disk is full")

    def raises(request: object) -> Any:
        raise RuntimeError("on purpose")

    with running(PLAIN, raises, logger=broken) as served:
        assert served.ask().status == 500
    err = capfd.readouterr().err
    assert "raised RuntimeError in GET /" in err and "the disk is full" in err


def test_an_option_that_is_wrong_is_heard_of_by_the_logger_before_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = Log(), Log()
    assert start(INT | LOG, *first.option, 4711, 1, *second.option) is None
    assert "4711" in first.text and second.lines == []
    assert start(INT | LOG, 4711, 1, *second.option) is None
    assert second.lines == [] and "4711" in capfd.readouterr().err
    assert start(INT, 4711, 1) is None
    assert capfd.readouterr().err == ""  # nobody asked for messages


def test_a_start_that_fails_is_said(setup: Setup) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        log = Log()
        number = taken.getsockname()[1]
        assert mhd.MHD_start_daemon(setup.flags, number, None, None, hello, None, *log.option, 0) is None
        assert f"port {number}: Address already in use" in log.text


# -- functions --------------------------------------------------------------------------------------


def test_options_come_as_a_sequence_too(setup: Setup) -> None:
    daemon = mhd.MHD_start_daemon_va(setup.flags, 0, None, None, hello, None, [mhd.MHD_OPTION_END])
    assert daemon is not None
    mhd.MHD_stop_daemon(daemon)
    with pytest.raises(TypeError):
        mhd.MHD_start_daemon_va(setup.flags, 0, None, None, hello, None, [])


def test_what_is_supported() -> None:
    yes = {name for name, value in mhd.MHD_FEATURE.__members__.items() if mhd.MHD_is_feature_supported(value)}
    assert {"MHD_FEATURE_EPOLL", "MHD_FEATURE_SENDFILE", "MHD_FEATURE_THREADS", "MHD_FEATURE_MESSAGES"} <= yes
    assert not {
        name for name in yes if "DIGEST" in name or "TLS" in name or "UPGRADE" in name or "POSTP" in name
    }
    assert mhd.MHD_is_feature_supported(4711) == mhd.MHD_NO


def test_the_version_is_ours() -> None:
    assert mhd.MHD_get_version() == __version__
    number = mhd.MHD_get_version_bin()
    digits = [f"{number >> shift & 0xFF:x}" for shift in (24, 16, 8)]
    assert ".".join(digits) == __version__


def test_small_helpers() -> None:
    assert mhd.MHD_http_unescape("a%20b%zz%4") == "a b%zz%4"
    cell = mhd.Cell("%41b")
    assert (mhd.MHD_http_unescape(cell), cell.value) == (2, "Ab")
    assert mhd.MHD_get_reason_phrase_for(404) == "Not Found" and mhd.MHD_get_reason_phrase_len_for(404) == 9
    for code in (0, 99, 600):
        assert mhd.MHD_get_reason_phrase_for(code) == "Unknown"
        assert mhd.MHD_get_reason_phrase_len_for(code) == 0
    mhd.MHD_free("anything")


def test_values_with_their_lengths(setup: Setup) -> None:
    seen: list[Any] = []

    def last(connection: Connection) -> int:
        kind = mhd.MHD_GET_ARGUMENT_KIND
        assert mhd.MHD_set_connection_value_n(connection, kind, "addedX", 5, "value", 3) == mhd.MHD_YES
        assert mhd.MHD_set_connection_value_n(connection, kind, "nul", 3, "\0", 1) == mhd.MHD_YES
        assert (
            mhd.MHD_set_connection_value_n(connection, mhd.MHD_HEADER_KIND, "nul", 3, "\0", 1) == mhd.MHD_NO
        )
        visit = lambda *told: seen.append(told) or mhd.MHD_YES  # type: ignore[func-returns-value]  # noqa: E731
        seen.append(mhd.MHD_get_connection_values_n(connection, kind, visit, "cls"))
        assert mhd.MHD_get_connection_values_n(connection, kind, None, None) == seen[-1]
        assert mhd.MHD_get_connection_values_n(None, kind, None, None) == -1
        for key, size in (("a-and-more", 1), ("bare", 4), ("none", 4)):
            value, length = mhd.Cell("before"), mhd.Cell(-1)
            found = mhd.MHD_lookup_connection_value_n(connection, kind, key, size, value, length)
            seen.append((found, value.value, length.value))
        assert mhd.MHD_lookup_connection_value_n(connection, kind, "a", 1, None, None) == mhd.MHD_YES
        assert mhd.MHD_lookup_connection_value_n(None, kind, "a", 1, None, None) == mhd.MHD_NO
        assert mhd.MHD_get_connection_info(connection, mhd.MHD_CONNECTION_INFO_PROTOCOL) is None
        assert mhd.MHD_get_connection_info(connection, 4711) is None
        return mhd.MHD_queue_response(connection, 200, RESPONSE)

    with running_mhd(setup, handler(last)) as served:
        assert served.ask(GET.replace(b" / ", b" /?a=xyz&bare ")).status == 200
    A = mhd.MHD_GET_ARGUMENT_KIND
    assert seen[:4] == [
        ("cls", A, "a", 1, "xyz", 3),
        ("cls", A, "bare", 4, None, 0),
        ("cls", A, "added", 5, "val", 3),
        ("cls", A, "nul", 3, "\0", 1),
    ]
    assert seen[4:] == [4, (mhd.MHD_YES, "xyz", 3), (mhd.MHD_YES, None, 0), (mhd.MHD_NO, "before", -1)]


def test_what_a_daemon_does_not_know_of_itself() -> None:
    daemon = start(INT)
    for info in (mhd.MHD_DAEMON_INFO_KEY_SIZE, mhd.MHD_DAEMON_INFO_MAC_KEY_SIZE, 4711):
        assert mhd.MHD_get_daemon_info(daemon, info) is None
    mhd.MHD_stop_daemon(daemon)


def test_sets_of_a_size(external: Setup) -> None:
    with running_mhd(external, hello) as served:
        if external.poller is Poller.POLL:
            return
        sets = mhd.fd_set(), mhd.fd_set()

        def ask(size: int) -> int:
            return mhd.MHD_get_fdset2(served.daemon, *sets, None, None, size)  # type: ignore[arg-type]

        assert served.do(lambda: ask(1024)) == mhd.MHD_YES and len(sets[0]) > 0
        assert served.do(lambda: ask(1)) == mhd.MHD_NO
        turn: Callable[[int], int] = lambda size: mhd.MHD_run_from_select2(served.daemon, *sets, None, size)  # type: ignore[arg-type]  # noqa: E731
        assert served.do(lambda: turn(1024)) == mhd.MHD_YES
        assert served.do(lambda: turn(0)) == mhd.MHD_NO


def test_the_time_to_wait_in_every_width(external: Setup) -> None:
    with running_mhd(external, hello, mhd.MHD_OPTION_CONNECTION_TIMEOUT, 60) as served:
        cell = mhd.Cell()
        served.until(lambda: served.do(lambda: mhd.MHD_get_timeout64s(served.daemon)) == -1)
        assert served.do(lambda: mhd.MHD_get_timeout_i(served.daemon)) == -1
        assert served.do(lambda: mhd.MHD_get_timeout64(served.daemon, cell)) == mhd.MHD_NO
        with served.connect():
            served.until(lambda: served.daemon.connections == 1)
            # 0 for a moment: what was posted to the loop is waiting for a turn.
            served.until(lambda: 0 < served.do(lambda: mhd.MHD_get_timeout64s(served.daemon)) <= 60_000)
            served.until(lambda: 0 < served.do(lambda: mhd.MHD_get_timeout_i(served.daemon)) <= 60_000)
            assert served.do(lambda: mhd.MHD_get_timeout64(served.daemon, cell)) == mhd.MHD_YES
            assert 0 <= cell.value <= 60_000


def test_responses_by_their_names_of_old(tmp_path: Path) -> None:
    buffer = bytearray(b"Hello")
    copied = mhd.MHD_create_response_from_data(5, buffer, 0, 1)
    borrowed = mhd.MHD_create_response_from_data(5, buffer, 0, 0)
    buffer[:] = b"Jello"
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    ranged = mhd.MHD_create_response_from_fd_at_offset(3, os.open(path, os.O_RDONLY), 4)
    bodies = []
    for response in (copied, borrowed, ranged):
        assert response is not None
        answer = handler(lambda connection, r=response: mhd.MHD_queue_response(connection, 200, r))  # type: ignore[misc]
        with running_mhd(PLAIN, answer) as served:
            bodies.append(served.ask().body)
        mhd.MHD_destroy_response(response)
    assert bodies == [b"Hello", b"Jello", b"456"]


def test_icy(setup: Setup) -> None:
    response = made()

    def last(connection: Connection) -> int:
        result = mhd.MHD_queue_response(connection, 200 | mhd.MHD_ICY_FLAG, response)
        assert mhd.MHD_get_connection_info(connection, mhd.MHD_CONNECTION_INFO_HTTP_STATUS) == 200
        return result

    with running_mhd(setup, handler(last)) as served, served.connect() as sock:
        sock.sendall(CLOSE)
        assert read_to_end(sock).startswith(b"ICY 200 OK\r\n")
        assert response.references <= 2
    plain = handler(lambda connection: mhd.MHD_queue_response(connection, 200, response))
    with running_mhd(setup, plain) as served, served.connect() as sock:
        sock.sendall(CLOSE)
        assert read_to_end(sock).startswith(b"HTTP/1.1 200 OK\r\n")  # the flag was that answer's


def test_102_and_103_go_out_before_the_answer(setup: Setup) -> None:
    hints = made(b"")
    mhd.MHD_add_response_header(hints, "Link", "</style.css>; rel=preload")
    results: list[int] = []

    def last(connection: Connection) -> int:
        results.extend(mhd.MHD_queue_response(connection, status, hints) for status in (102, 103, 101, 100))
        return mhd.MHD_queue_response(connection, 200, RESPONSE)

    with running_mhd(setup, handler(last)) as served, served.connect() as sock:
        sock.sendall(CLOSE)
        data = read_to_end(sock)
    assert results == [mhd.MHD_YES, mhd.MHD_YES, mhd.MHD_NO, mhd.MHD_NO]
    first, second, third, _ = data.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 102 Processing\r\n")
    assert second == b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload"
    assert third.startswith(b"HTTP/1.1 200 OK\r\n")
