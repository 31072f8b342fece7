"""MHD_start_daemon and what is done to a daemon, by the manual's names and argument orders."""

import errno
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.connection import Connection, Stage
from quiesce.worker.embedded.daemon import Daemon
from quiesce.worker.embedded.kinds import NotListening, WrongMode
from quiesce.worker.embedded.panic import panic, set_panic_handler
from quiesce.worker.mhd.c_types import FD_SET, FD_SETSIZE, Cell, fd_set, set_errno
from quiesce.worker.mhd.constants import (
    MHD_FLAG,
    MHD_INVALID_SOCKET,
    MHD_NO,
    MHD_OPTION,
    MHD_YES,
    MHD_DaemonInfoType,
)
from quiesce.worker.mhd.starting import BadOption, Option, pairs, sockaddr_length, understand

F, O = MHD_FLAG, MHD_OPTION  # noqa: E741
AcceptPolicyCallback = Callable[[Any, Address, int], int]
AccessHandlerCallback = Callable[[Any, Connection, str, str, str, "bytes | None", Cell, Cell], int]
PanicCallback = Callable[[Any, str, int, "str | None"], object]


class MHD_Daemon(Daemon):
    """The handle; remembers what it was started with."""

    flags = F.MHD_NO_FLAG


def MHD_set_panic_func(cb: PanicCallback | None, cls: Any) -> None:
    """Set a handler for fatal errors: ``cb(cls, file, line, reason)``; None brings back abort."""
    set_panic_handler(None if cb is None else lambda file, line, reason: cb(cls, file, line, reason))


def MHD_start_daemon(
    flags: int,
    port: int,
    apc: AcceptPolicyCallback | None,
    apc_cls: Any,
    dh: AccessHandlerCallback | None,
    dh_cls: Any,
    *options: Any,
) -> MHD_Daemon | None:
    """Start a web server; None on error.

    Raises:
        TypeError: The options do not end with MHD_OPTION_END.
    """
    return MHD_start_daemon_va(flags, port, apc, apc_cls, dh, dh_cls, options)


def MHD_start_daemon_va(
    flags: int,
    port: int,
    apc: AcceptPolicyCallback | None,
    apc_cls: Any,
    dh: AccessHandlerCallback | None,
    dh_cls: Any,
    ap: Sequence[Any],
) -> MHD_Daemon | None:
    """The same with its options in a sequence, which ends with MHD_OPTION_END too."""
    options = pairs(ap)
    log: Callable[[str], None] = _to_stderr if flags & F.MHD_USE_ERROR_LOG else _to_nobody
    try:
        if dh is None:
            raise BadOption("there is no handler")
        log, loggers = _loggers(options, flags, log)
        made, effective, warnings = understand(flags, options)
        made.update(loggers)
        if apc is not None:
            policy = apc
            made["policy"] = lambda peer: policy(apc_cls, peer, _length(peer)) == MHD_YES
        if "listener" not in made and made["listen"]:
            made.setdefault("host", "::" if flags & F.MHD_USE_IPv6 else "0.0.0.0")
            made.setdefault("port", port)
        daemon = MHD_Daemon(access_handler=_access(dh, dh_cls), **made)
        daemon.flags = effective
        daemon.start()
    except (BadOption, OSError, ValueError, OverflowError) as exc:
        log(f"cannot start the daemon: {exc}")
        return None
    for warning in warnings:
        log(warning)
    return daemon


def _loggers(
    options: Sequence[Option], flags: int, log: Callable[[str], None]
) -> tuple[Callable[[str], None], dict[str, Any]]:
    """Who hears of the start, and of everything afterwards.

    An option that is wrong is heard of by the logger that stands before it, so the options are tried one by one.
    """
    loggers: dict[str, Any] = {}
    good = _is_good(flags, ())  # else nobody's option is to blame
    for number, (option, values) in enumerate(options):
        if option == O.MHD_OPTION_EXTERNAL_LOGGER and values[0] is not None:
            if good and not _is_good(flags, options[:number]):
                break
            callback, cls = values
            log = loggers["logger"] = lambda line, callback=callback, cls=cls: callback(cls, "%s\n", (line,))
    return log, loggers


def _is_good(flags: int, options: Sequence[Option]) -> bool:
    try:
        understand(flags, options)
    except BadOption:
        return False
    return True


def _to_stderr(message: str) -> None:
    print(f"quiesce.mhd: {message}", file=sys.stderr, flush=True)


def _to_nobody(message: str) -> None:
    pass


def _access(dh: AccessHandlerCallback, cls: Any) -> Callable[[Connection], bool]:
    """The manual's protocol: at the head, for each part of the body, at the end."""

    def access(connection: Connection) -> bool:
        request = connection.request
        upload = connection.upload
        data = upload.data if connection.stage is Stage.DATA else None
        size = Cell(len(data or b""))
        con_cls = Cell(connection.state)
        url, version = request.path, f"HTTP/{request.version}"
        result = dh(cls, connection, url, request.method, version, data, size, con_cls)
        connection.state = con_cls.value
        if data is not None:
            if not 0 <= size.value <= len(data):
                panic("the access handler has left more of an upload than there was")
                return False
            upload.read(len(data) - size.value)
        return result == MHD_YES

    return access


def MHD_quiesce_daemon(daemon: MHD_Daemon | None) -> int:
    """Stop accepting; the listening descriptor, the caller's from now on, or -1."""
    if daemon is None:
        return MHD_INVALID_SOCKET
    try:
        return daemon.quiesce().detach()
    except NotListening:
        return MHD_INVALID_SOCKET


def MHD_stop_daemon(daemon: MHD_Daemon | None) -> None:
    """Shut a daemon down.  None, or a second time: nothing happens."""
    if daemon is not None:
        daemon.stop()


def MHD_run(daemon: MHD_Daemon | None) -> int:
    """Do what can be done without waiting.  MHD_NO: the daemon has threads, or does not run."""
    return _turn(daemon, lambda daemon: daemon.run())


def MHD_run_wait(daemon: MHD_Daemon | None, millisec: int) -> int:
    """The same, after waiting ``millisec`` at most; -1: however long."""
    return _turn(daemon, lambda daemon: daemon.run_wait(None if millisec < 0 else millisec / 1000))


def MHD_run_from_select(
    daemon: MHD_Daemon | None,
    read_fd_set: fd_set | None,
    write_fd_set: fd_set | None,
    except_fd_set: fd_set | None,
) -> int:
    """Serve what the caller's select found ready; ``except_fd_set`` is not looked at."""
    return MHD_run_from_select2(daemon, read_fd_set, write_fd_set, except_fd_set, FD_SETSIZE)


def MHD_run_from_select2(
    daemon: MHD_Daemon | None,
    read_fd_set: fd_set | None,
    write_fd_set: fd_set | None,
    except_fd_set: fd_set | None,
    fd_setsize: int,
) -> int:
    """The same for sets of that size."""
    if read_fd_set is None or write_fd_set is None or fd_setsize <= 0:
        return MHD_NO
    readable, writable = read_fd_set, write_fd_set
    return _turn(daemon, lambda daemon: daemon.run_from_select(readable, writable))


def _turn(daemon: MHD_Daemon | None, turn: Callable[[MHD_Daemon], None]) -> int:
    if daemon is None:
        return MHD_NO
    try:
        turn(daemon)
    except QuiesceError:
        return MHD_NO
    return MHD_YES


def MHD_get_fdset(
    daemon: MHD_Daemon | None,
    read_fd_set: fd_set | None,
    write_fd_set: fd_set | None,
    except_fd_set: fd_set | None,
    max_fd: Cell | None,
) -> int:
    """Add to the sets what the caller's select should watch; ``max_fd`` is raised to the highest of it."""
    return MHD_get_fdset2(daemon, read_fd_set, write_fd_set, except_fd_set, max_fd, FD_SETSIZE)


def MHD_get_fdset2(
    daemon: MHD_Daemon | None,
    read_fd_set: fd_set | None,
    write_fd_set: fd_set | None,
    except_fd_set: fd_set | None,
    max_fd: Cell | None,
    fd_setsize: int,
) -> int:
    """The same for sets of that size; MHD_NO if one of the descriptors does not fit."""
    if daemon is None or read_fd_set is None or write_fd_set is None:
        return MHD_NO
    try:
        reading, writing = daemon.get_fdset()
        if any(fd >= fd_setsize for fd in reading | writing):
            return MHD_NO
        for fd in reading:
            FD_SET(fd, read_fd_set)
        for fd in writing:
            FD_SET(fd, write_fd_set)
    except (WrongMode, ValueError):
        return MHD_NO
    if max_fd is not None:
        max_fd.value = max(reading | writing, default=-1) if max_fd.value is None else max(
            max_fd.value, *reading, *writing
        )  # fmt: skip
    return MHD_YES


def MHD_get_timeout(daemon: MHD_Daemon | None, timeout: Cell) -> int:
    """How many milliseconds the caller may wait; MHD_NO: for ever."""
    milliseconds = MHD_get_timeout64s(daemon)
    if milliseconds < 0:
        return MHD_NO
    timeout.value = milliseconds
    return MHD_YES


MHD_get_timeout64 = MHD_get_timeout  # an integer here has no width


def MHD_get_timeout64s(daemon: MHD_Daemon | None) -> int:
    """The same as a result; -1: for ever."""
    try:
        seconds = None if daemon is None else daemon.get_timeout()
    except QuiesceError:
        return -1
    return -1 if seconds is None else -int(-seconds * 1000 // 1)  # rounded up: never a turn too early


def MHD_get_timeout_i(daemon: MHD_Daemon | None) -> int:
    """The same for functions that take an int of C: never more than fits one."""
    return min(MHD_get_timeout64s(daemon), (1 << 31) - 1)


def MHD_add_connection(
    daemon: MHD_Daemon | None, client_socket: int, addr: tuple[Any, ...] | None, addrlen: int
) -> int:
    """Serve a connected socket, which is the daemon's and closed in any case; errno says what went wrong."""
    wanted = 0 if addr is None else sockaddr_length(addr)
    if daemon is None or addrlen < wanted:
        _close(client_socket)
        set_errno(errno.EINVAL)
        return MHD_NO
    try:
        daemon.add_connection(client_socket, None if addr is None else (addr[0], addr[1]))
    except OSError as exc:
        set_errno(exc.errno or errno.EINVAL)
        return MHD_NO
    except QuiesceError:
        set_errno(errno.EINVAL)
        return MHD_NO
    return MHD_YES


def _close(fd: int) -> None:
    try:
        socket.close(fd)
    except OSError:
        pass  # it was none


def _length(peer: Address) -> int:
    if peer is None:
        return 0
    return 28 if ":" in peer[0] else 16


def MHD_get_daemon_info(daemon: MHD_Daemon | None, info_type: int) -> Any:
    """What is known; None for what is not."""
    if daemon is None:
        return None
    info, T = daemon.info, MHD_DaemonInfoType
    return {
        T.MHD_DAEMON_INFO_LISTEN_FD: info.listener_fd,
        T.MHD_DAEMON_INFO_EPOLL_FD: info.epoll_fd,
        T.MHD_DAEMON_INFO_CURRENT_CONNECTIONS: info.connections,
        T.MHD_DAEMON_INFO_FLAGS: daemon.flags,
        T.MHD_DAEMON_INFO_BIND_PORT: info.port,
    }.get(info_type)  # type: ignore[call-overload]
