"""Flags and options of MHD_start_daemon, as arguments of the daemon."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from quiesce.worker.core.limits import Limits
from quiesce.worker.core.termination import Termination
from quiesce.worker.embedded.connection import Connection
from quiesce.worker.embedded.kinds import Mode, Poller
from quiesce.worker.mhd.c_types import FD_SETSIZE, Cell
from quiesce.worker.mhd.constants import (
    MHD_FLAG,
    MHD_INVALID_SOCKET,
    MHD_OPTION,
    MHD_ConnectionNotificationCode,
    MHD_RequestTerminationCode,
)

F, O = MHD_FLAG, MHD_OPTION  # noqa: E741  (as short as the tables want it)

TWO_VALUES = frozenset(
    (
        O.MHD_OPTION_NOTIFY_COMPLETED, O.MHD_OPTION_URI_LOG_CALLBACK, O.MHD_OPTION_EXTERNAL_LOGGER,
        O.MHD_OPTION_UNESCAPE_CALLBACK, O.MHD_OPTION_NOTIFY_CONNECTION, O.MHD_OPTION_SOCK_ADDR_LEN,
        O.MHD_OPTION_GNUTLS_PSK_CRED_HANDLER, O.MHD_OPTION_DIGEST_AUTH_RANDOM,
        O.MHD_OPTION_DIGEST_AUTH_RANDOM_COPY,
    )
)  # fmt: skip
_POINTERS = frozenset(
    (
        O.MHD_OPTION_SOCK_ADDR, O.MHD_OPTION_ARRAY, O.MHD_OPTION_HTTPS_MEM_KEY, O.MHD_OPTION_HTTPS_MEM_CERT,
        O.MHD_OPTION_HTTPS_PRIORITIES, O.MHD_OPTION_HTTPS_MEM_TRUST, O.MHD_OPTION_HTTPS_CERT_CALLBACK,
        O.MHD_OPTION_HTTPS_MEM_DHPARAMS, O.MHD_OPTION_HTTPS_KEY_PASSWORD, O.MHD_OPTION_HTTPS_CERT_CALLBACK2,
        O.MHD_OPTION_HTTPS_PRIORITIES_APPEND,
    )
)  # fmt: skip
_FAST_OPEN = 10  # what libmicrohttpd's code says; its manual has 50
_SOCKADDR_UN = 110
_LENGTHS = {2: 16, 4: 28}  # of a tuple → sizeof(struct sockaddr_in), sockaddr_in6

Option = tuple[int, tuple[Any, ...]]
Log = Callable[[str], None]


class BadOption(ValueError):
    """MHD_start_daemon returns NULL for it."""


class Start(NamedTuple):
    """What was understood."""

    arguments: dict[str, Any]
    flags: MHD_FLAG  # with what they bring along
    warnings: list[str]


def sockaddr_length(address: Any) -> int:
    """sizeof() of an address: a tuple, or the path of a unix socket; 0 for what is none."""
    if isinstance(address, (str, bytes)):
        return _SOCKADDR_UN
    return _LENGTHS.get(len(address), 0)


def pairs(options: Sequence[Any]) -> list[Option]:
    """The list of options, with those of MHD_OPTION_ARRAY in their place.

    Raises:
        TypeError: It does not end with MHD_OPTION_END.
    """
    found: list[Option] = []
    at = 0
    while at < len(options):
        option = options[at]
        if option == O.MHD_OPTION_END:
            return found
        count = 2 if option in TWO_VALUES else 1
        values = tuple(options[at + 1 : at + 1 + count])
        if len(values) < count:
            break
        if option == O.MHD_OPTION_ARRAY:
            found += _items(values[0])
        else:
            found.append((option, values))
        at += 1 + count
    raise TypeError("the list of options must end with MHD_OPTION_END")


def _items(items: Sequence[Sequence[Any]]) -> list[Option]:
    """Of an array: (option, value, pointer) each, as in C, or (option, values...)."""
    found: list[Option] = []
    for option, *values in items:
        if option == O.MHD_OPTION_END:
            break
        if len(values) == 2 and option not in TWO_VALUES:
            values = values[1:] if option in _POINTERS else values[:1]
        found += pairs((option, *values, O.MHD_OPTION_END))
    return found


def understand(given: int, options: Sequence[Option]) -> Start:
    """Flags and options, by the manual's tables.

    Raises:
        BadOption: No daemon can be started so.
    """
    flags = MHD_FLAG(given)
    warnings: list[str] = []
    arguments = _mode(flags)
    if flags & F.MHD_USE_THREAD_PER_CONNECTION and not flags & F.MHD_USE_INTERNAL_POLLING_THREAD:
        warnings.append("MHD_USE_THREAD_PER_CONNECTION brings MHD_USE_INTERNAL_POLLING_THREAD along")
    arguments["limits"] = Limits()
    for option, values in options:
        apply = _OPTIONS.get(option)
        if apply is None:
            raise BadOption(_unknown(option))
        apply(arguments, *values)
        if option == O.MHD_OPTION_THREAD_POOL_SIZE and values[0] == 1:
            warnings.append("a pool of one thread is no pool")
    _end(arguments, flags)
    return Start(arguments, _effective(flags, arguments), warnings)


def _unknown(option: int) -> str:
    try:
        return f"{MHD_OPTION(option).name} belongs to authentication or TLS, which are not here yet"
    except ValueError:
        return f"option {option} is not known"


# -- flags ----------------------------------------------------------------------------------------


def _mode(flags: MHD_FLAG) -> dict[str, Any]:
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
        raise BadOption("TLS is not here yet")
    poller = Poller.POLL if poll else Poller.EPOLL if epoll else Poller.AUTO if auto else Poller.SELECT
    mode = Mode.THREAD_PER_CONNECTION if per_connection else Mode.THREAD if internal else Mode.EXTERNAL
    return {
        "mode": mode,
        "poller": poller,
        "allow_suspend": bool(flags & 8192 or flags & F.MHD_ALLOW_UPGRADE),
        "listen": not flags & F.MHD_USE_NO_LISTEN_SOCKET,
        "date": not flags & F.MHD_USE_SUPPRESS_DATE_NO_CLOCK,
        "discipline": 1 if flags & F.MHD_USE_PEDANTIC_CHECKS else None,
        "dual_stack": bool(flags & 2048),
        "fast_open": _FAST_OPEN if flags & F.MHD_USE_TCP_FASTOPEN else 0,
    }


def _effective(flags: MHD_FLAG, arguments: dict[str, Any]) -> MHD_FLAG:
    """With what one flag brings along."""
    per_connection = flags & F.MHD_USE_THREAD_PER_CONNECTION
    if per_connection:
        flags |= F.MHD_USE_INTERNAL_POLLING_THREAD
    if flags & F.MHD_USE_AUTO:
        flags |= F.MHD_USE_POLL if per_connection else F.MHD_USE_EPOLL
    if flags & F.MHD_ALLOW_UPGRADE:
        flags |= F.MHD_ALLOW_SUSPEND_RESUME
    notifies = "on_completed" in arguments or "on_connection" in arguments
    if flags & F.MHD_USE_INTERNAL_POLLING_THREAD and flags & F.MHD_USE_NO_LISTEN_SOCKET:
        flags |= F.MHD_USE_ITC
    if per_connection and notifies:
        flags |= F.MHD_USE_ITC
    if flags & F.MHD_USE_NO_THREAD_SAFETY:
        flags &= ~F.MHD_USE_ITC
    return flags


def _end(arguments: dict[str, Any], flags: MHD_FLAG) -> None:
    """What depends on several of them."""
    if "listener" in arguments:
        if not arguments["listen"]:
            raise BadOption("a listening socket was given, and MHD_USE_NO_LISTEN_SOCKET")
        if arguments.pop("address_length", 0):
            raise BadOption("a listening socket was given, and an address to listen on")
    arguments.pop("address_length", None)
    if not flags & F.MHD_USE_TCP_FASTOPEN:
        arguments["fast_open"] = 0


# -- options --------------------------------------------------------------------------------------


def _limit(name: str) -> Callable[..., None]:
    def apply(arguments: dict[str, Any], value: Any) -> None:
        arguments["limits"] = arguments["limits"]._replace(**{name: value})

    return apply


def _memory_limit(arguments: dict[str, Any], value: int) -> None:
    if value:
        size = max(value, 64)
        arguments["limits"] = arguments["limits"]._replace(header_bytes=size, line_bytes=size)
        arguments["upload_memory"] = size


def _listen_socket(arguments: dict[str, Any], value: int) -> None:
    if value != MHD_INVALID_SOCKET:
        arguments["listener"] = value


def _address(arguments: dict[str, Any], value: Any) -> None:
    if value is None:
        return
    if isinstance(value, (str, bytes)):
        arguments["path"] = value
    elif len(value) in _LENGTHS:
        arguments["host"], arguments["port"] = value[:2]
    else:
        raise BadOption(f"{value!r} is no address")


def _address_of_length(arguments: dict[str, Any], length: int, value: Any) -> None:
    if value is None and not length:
        return
    if value is None or not _fits(length, value):
        raise BadOption(f"{value!r} is no address of {length} bytes")
    arguments["address_length"] = length
    _address(arguments, value)


def _fits(length: int, value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return 2 + len(value) <= length <= _SOCKADDR_UN
    return length == sockaddr_length(value) > 0


def _pool_size(arguments: dict[str, Any], value: int) -> None:
    if value > 1:
        if arguments["mode"] is not Mode.THREAD:
            raise BadOption("a pool needs MHD_USE_INTERNAL_POLLING_THREAD, and no thread per connection")
        arguments.update(mode=Mode.POOL, threads=value)


def _reuse(arguments: dict[str, Any], value: int) -> None:
    arguments["address_reuse"] = bool(value)


def _app_fd_setsize(arguments: dict[str, Any], value: int) -> None:
    if arguments["mode"] is not Mode.EXTERNAL:
        raise BadOption("MHD_OPTION_APP_FD_SETSIZE is for an application that selects")
    if value != FD_SETSIZE:
        raise BadOption(f"FD_SETSIZE is {FD_SETSIZE} here, and cannot be changed")


def _strict(arguments: dict[str, Any], value: int) -> None:
    arguments["discipline"] = -3 if value < 0 else min(value, 1)


def _level(arguments: dict[str, Any], value: int) -> None:
    arguments["discipline"] = max(-3, min(value, 3))


def _set(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[..., None]:
    def apply(arguments: dict[str, Any], value: Any) -> None:
        arguments[name] = convert(value)

    return apply


def _accepted(arguments: dict[str, Any], *values: Any) -> None:
    """Taken, and without a meaning here."""


def _completed(arguments: dict[str, Any], callback: Any, cls: Any) -> None:
    def completed(connection: Connection, state: Any, why: Termination) -> None:
        callback(cls, connection, Cell(state), MHD_RequestTerminationCode(why))

    if callback is not None:
        arguments["on_completed"] = completed


def _notify(arguments: dict[str, Any], callback: Any, cls: Any) -> None:
    codes = MHD_ConnectionNotificationCode

    def notify(connection: Connection, begins: bool) -> None:
        context = Cell(connection.socket_context)
        code = codes.MHD_CONNECTION_NOTIFY_STARTED if begins else codes.MHD_CONNECTION_NOTIFY_CLOSED
        callback(cls, connection, context, code)
        connection.socket_context = context.value

    if callback is not None:
        arguments["on_connection"] = notify


def _uri_log(arguments: dict[str, Any], callback: Any, cls: Any) -> None:
    if callback is not None:
        arguments["uri_log"] = lambda connection, uri: callback(cls, uri, connection)


def _unescape(arguments: dict[str, Any], callback: Any, cls: Any) -> None:
    if callback is not None:
        arguments["unescape"] = lambda text: callback(cls, None, text)


_OPTIONS: dict[int, Callable[..., None]] = {
    O.MHD_OPTION_CONNECTION_MEMORY_LIMIT: _memory_limit,
    O.MHD_OPTION_CONNECTION_MEMORY_INCREMENT: _accepted,
    O.MHD_OPTION_CONNECTION_LIMIT: _limit("connections"),
    O.MHD_OPTION_CONNECTION_TIMEOUT: _set("timeout_s", float),
    O.MHD_OPTION_PER_IP_CONNECTION_LIMIT: _limit("connections_per_ip"),
    O.MHD_OPTION_NOTIFY_COMPLETED: _completed,
    O.MHD_OPTION_NOTIFY_CONNECTION: _notify,
    O.MHD_OPTION_URI_LOG_CALLBACK: _uri_log,
    O.MHD_OPTION_EXTERNAL_LOGGER: _accepted,  # looked at before the others
    O.MHD_OPTION_UNESCAPE_CALLBACK: _unescape,
    O.MHD_OPTION_SOCK_ADDR: _address,
    O.MHD_OPTION_SOCK_ADDR_LEN: _address_of_length,
    O.MHD_OPTION_LISTEN_SOCKET: _listen_socket,
    O.MHD_OPTION_LISTEN_BACKLOG_SIZE: _set("backlog"),
    O.MHD_OPTION_LISTENING_ADDRESS_REUSE: _reuse,
    O.MHD_OPTION_TCP_FASTOPEN_QUEUE_SIZE: _set("fast_open"),
    O.MHD_OPTION_THREAD_POOL_SIZE: _pool_size,
    O.MHD_OPTION_THREAD_STACK_SIZE: _set("stack_size"),
    O.MHD_OPTION_APP_FD_SETSIZE: _app_fd_setsize,
    O.MHD_OPTION_STRICT_FOR_CLIENT: _strict,
    O.MHD_OPTION_CLIENT_DISCIPLINE_LVL: _level,
    O.MHD_OPTION_SERVER_INSANITY: _accepted,
    O.MHD_OPTION_SIGPIPE_HANDLED_BY_APP: _accepted,
}
