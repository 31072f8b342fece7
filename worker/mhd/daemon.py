"""MHD_start_daemon and what is done to a daemon, by the manual's names and argument orders."""

import errno
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.request import Address
from quiesce.worker.core.termination import Termination
from quiesce.worker.embedded.connection import Connection, Stage
from quiesce.worker.embedded.daemon import Daemon
from quiesce.worker.embedded.kinds import Mode, NotListening, Poller, WrongMode
from quiesce.worker.embedded.panic import panic, set_panic_handler
from quiesce.worker.mhd.c_types import FD_SET, Cell, fd_set, set_errno
from quiesce.worker.mhd.constants import (
    MHD_FLAG,
    MHD_INVALID_SOCKET,
    MHD_NO,
    MHD_OPTION,
    MHD_YES,
    MHD_ConnectionNotificationCode,
    MHD_DaemonInfoType,
    MHD_RequestTerminationCode,
)

F, O = MHD_FLAG, MHD_OPTION  # noqa: E741  (as short as the table wants it)
AcceptPolicyCallback = Callable[[Any, Address, int], int]
AccessHandlerCallback = Callable[[Any, Connection, str, str, str, "bytes | None", Cell, Cell], int]
PanicCallback = Callable[[Any, str, int, "str | None"], object]

_TWO_VALUES = frozenset(
    (
        O.MHD_OPTION_NOTIFY_COMPLETED,
        O.MHD_OPTION_URI_LOG_CALLBACK,
        O.MHD_OPTION_EXTERNAL_LOGGER,
        O.MHD_OPTION_UNESCAPE_CALLBACK,
        O.MHD_OPTION_NOTIFY_CONNECTION,
    )
)
_SOCKADDR_LENGTHS = {2: 16, 4: 28}  # a tuple's length → sizeof(struct sockaddr_in), sockaddr_in6


class MHD_Daemon(Daemon):
    """The handle; remembers what it was started with."""

    flags = F.MHD_NO_FLAG


class BadOption(ValueError):
    """MHD_start_daemon returns NULL for it."""


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
    pairs = _pairs(options)
    logger: Callable[[str], None] = _to_stderr if flags & F.MHD_USE_ERROR_LOG else lambda message: None
    for option, values in pairs:
        if option == O.MHD_OPTION_EXTERNAL_LOGGER and values[0] is not None:
            callback, cls = values
            logger = lambda message: callback(cls, "%s", message)  # noqa: B023, E731
    try:
        if dh is None:
            raise BadOption("there is no handler")
        made = _mode(MHD_FLAG(flags))
        made.update(_apply(pairs, made))
        if apc is not None:
            policy = apc
            made["policy"] = lambda peer: policy(apc_cls, peer, _length(peer)) == MHD_YES
        if "listener" not in made and not flags & F.MHD_USE_NO_LISTEN_SOCKET:
            made.setdefault("host", "::" if flags & F.MHD_USE_IPv6 else "0.0.0.0")
            made.setdefault("port", port)
        daemon = MHD_Daemon(access_handler=_access(dh, dh_cls), **made)
        daemon.flags = MHD_FLAG(flags)
        daemon.start()
    except (BadOption, OSError, ValueError, OverflowError) as exc:
        logger(f"cannot start the daemon: {exc}")
        return None
    return daemon


def _to_stderr(message: str) -> None:
    print(f"quiesce.mhd: {message}", file=sys.stderr, flush=True)


def _pairs(options: Sequence[Any]) -> list[tuple[int, tuple[Any, ...]]]:
    pairs: list[tuple[int, tuple[Any, ...]]] = []
    at = 0
    while at < len(options):
        option = options[at]
        if option == O.MHD_OPTION_END:
            return pairs
        count = 2 if option in _TWO_VALUES else 1
        values = tuple(options[at + 1 : at + 1 + count])
        if len(values) < count:
            break
        if option == O.MHD_OPTION_ARRAY:
            pairs += [pair for item in values[0] for pair in _pairs((*item, O.MHD_OPTION_END))]
        else:
            pairs.append((option, values))
        at += 1 + count
    raise TypeError("the list of options must end with MHD_OPTION_END")


def _mode(flags: MHD_FLAG) -> dict[str, Any]:
    """By the manual's table of flags."""
    per_connection = bool(flags & F.MHD_USE_THREAD_PER_CONNECTION)
    internal = per_connection or bool(flags & F.MHD_USE_INTERNAL_POLLING_THREAD)
    poll, epoll, auto = (bool(flags & flag) for flag in (F.MHD_USE_POLL, F.MHD_USE_EPOLL, F.MHD_USE_AUTO))
    if poll + epoll + auto > 1:
        raise BadOption("choose one of poll, epoll and auto")
    if epoll and per_connection:
        raise BadOption("a thread for each connection does not wait by epoll")
    if flags & F.MHD_USE_NO_THREAD_SAFETY and internal:
        raise BadOption("a daemon with threads is thread-safe")
    if flags & F.MHD_USE_TLS:
        raise BadOption("TLS is not built in")
    poller = Poller.POLL if poll else Poller.EPOLL if epoll else Poller.AUTO if auto else Poller.SELECT
    mode = Mode.THREAD_PER_CONNECTION if per_connection else Mode.THREAD if internal else Mode.EXTERNAL
    return {
        "mode": mode,
        "poller": poller,
        "allow_suspend": bool(flags & 8192),
        "listen": not flags & F.MHD_USE_NO_LISTEN_SOCKET,
    }


def _apply(pairs: list[tuple[int, tuple[Any, ...]]], made: dict[str, Any]) -> dict[str, Any]:
    """Options to arguments of the daemon."""
    arguments: dict[str, Any] = {}
    limits = Limits()
    for option, values in pairs:
        value = values[0]
        if option == O.MHD_OPTION_CONNECTION_LIMIT:
            limits = limits._replace(connections=value)
        elif option == O.MHD_OPTION_PER_IP_CONNECTION_LIMIT:
            limits = limits._replace(connections_per_ip=value)
        elif option == O.MHD_OPTION_CONNECTION_TIMEOUT:
            arguments["timeout_s"] = float(value)
        elif option == O.MHD_OPTION_CONNECTION_MEMORY_LIMIT:
            if value:
                limits = limits._replace(header_bytes=max(value, 64), line_bytes=max(value, 64))
                arguments["upload_memory"] = max(value, 64)
        elif option == O.MHD_OPTION_LISTEN_SOCKET:
            if value != MHD_INVALID_SOCKET:
                if not made["listen"]:
                    raise BadOption("a listening socket was given, and MHD_USE_NO_LISTEN_SOCKET")
                arguments["listener"] = value
        elif option == O.MHD_OPTION_SOCK_ADDR:
            if value is not None:
                arguments["host"], arguments["port"] = value[:2]
        elif option == O.MHD_OPTION_THREAD_POOL_SIZE:
            if value > 1:
                if made["mode"] is not Mode.THREAD:
                    raise BadOption(
                        "a pool needs MHD_USE_INTERNAL_POLLING_THREAD, and no thread per connection"
                    )
                arguments.update(mode=Mode.POOL, threads=value)
        elif option == O.MHD_OPTION_LISTEN_BACKLOG_SIZE:
            arguments["backlog"] = value
        elif option in _TWO_VALUES:
            if value is not None:
                arguments.update(_callback(option, value, values[1]))
        elif option != O.MHD_OPTION_CONNECTION_MEMORY_INCREMENT:
            raise BadOption(f"option {option} is not known")
    arguments["limits"] = limits
    return arguments


def _callback(option: int, callback: Callable[..., Any], cls: Any) -> dict[str, Any]:
    if option == O.MHD_OPTION_NOTIFY_COMPLETED:

        def completed(connection: Connection, state: Any, why: Termination) -> None:
            callback(cls, connection, Cell(state), MHD_RequestTerminationCode(why))

        return {"on_completed": completed}
    if option == O.MHD_OPTION_NOTIFY_CONNECTION:

        def notify(connection: Connection, begins: bool) -> None:
            context = Cell(connection.socket_context)
            codes = MHD_ConnectionNotificationCode
            code = codes.MHD_CONNECTION_NOTIFY_STARTED if begins else codes.MHD_CONNECTION_NOTIFY_CLOSED
            callback(cls, connection, context, code)
            connection.socket_context = context.value

        return {"on_connection": notify}
    if option == O.MHD_OPTION_URI_LOG_CALLBACK:
        return {"uri_log": lambda connection, uri: callback(cls, uri, connection)}
    if option == O.MHD_OPTION_UNESCAPE_CALLBACK:
        return {"unescape": lambda text: callback(cls, None, text)}
    return {}


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
    if read_fd_set is None or write_fd_set is None:
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
    if daemon is None or read_fd_set is None or write_fd_set is None:
        return MHD_NO
    try:
        reading, writing = daemon.get_fdset()
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
    if daemon is None:
        return MHD_NO
    try:
        seconds = daemon.get_timeout()
    except QuiesceError:
        return MHD_NO
    if seconds is None:
        return MHD_NO
    timeout.value = -int(-seconds * 1000 // 1)  # rounded up: never a turn too early
    return MHD_YES


def MHD_add_connection(
    daemon: MHD_Daemon | None, client_socket: int, addr: tuple[Any, ...] | None, addrlen: int
) -> int:
    """Serve a connected socket, which is the daemon's and closed in any case; errno says what went wrong."""
    wanted = 0 if addr is None else _SOCKADDR_LENGTHS.get(len(addr), 0)
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
    }.get(MHD_DaemonInfoType(info_type))


def MHD_get_version() -> str:
    """Ours, not libmicrohttpd's."""
    from quiesce import __version__

    return __version__
