"""What an access handler does with its connection, by the manual's names."""

from collections.abc import Callable
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.response_head import BadResponse
from quiesce.worker.embedded.connection import Connection, Kind, Stage
from quiesce.worker.embedded.panic import panic
from quiesce.worker.mhd.c_types import Cell
from quiesce.worker.mhd.constants import (
    MHD_CONNECTION_OPTION,
    MHD_ICY_FLAG,
    MHD_NO,
    MHD_YES,
    MHD_ConnectionInfoType,
    MHD_ValueKind,
)
from quiesce.worker.response import Freed, Response

KeyValueIterator = Callable[[Any, MHD_ValueKind, str, "str | None"], int]
KeyValueIteratorN = Callable[[Any, MHD_ValueKind, str, int, "str | None", int], int]


def MHD_queue_response(connection: Connection | None, status_code: int, response: Response | None) -> int:
    """Answer with this response, after the handler has returned.  MHD_NO: that is not legal now; nothing happened.

    102 and 103 are no answers: such a response's headers go out at once, and its body does not.
    """
    if connection is None or response is None:
        return MHD_NO
    try:
        if status_code in (102, 103):
            return MHD_YES if connection.send_interim(status_code, response.headers) else MHD_NO
        if connection.stage is Stage.DATA and not connection.is_suspended:
            return MHD_NO
        if status_code & ~MHD_ICY_FLAG < 200:
            return MHD_NO
        connection.queue(response, status_code)
    except (QuiesceError, BadResponse, Freed):
        return MHD_NO
    return MHD_YES


def MHD_get_connection_values(
    connection: Connection | None, kind: int, iterator: KeyValueIterator | None, iterator_cls: Any
) -> int:
    """Visit the values of these kinds until the iterator returns MHD_NO; how many were visited."""
    if connection is None:
        return -1
    visited = 0
    for of_kind, (name, value) in connection.values(Kind(kind)):
        visited += 1
        if iterator is None:
            continue
        if iterator(iterator_cls, MHD_ValueKind(of_kind.value), name, value) == MHD_NO:
            break
    return visited


def MHD_get_connection_values_n(
    connection: Connection | None, kind: int, iterator: KeyValueIteratorN | None, iterator_cls: Any
) -> int:
    """The same, and the iterator is given lengths: ``iterator(cls, kind, key, key_size, value, value_size)``."""
    if iterator is None:
        return MHD_get_connection_values(connection, kind, None, None)
    visit = iterator

    def sized(cls: Any, of_kind: MHD_ValueKind, name: str, value: str | None) -> int:
        return visit(cls, of_kind, name, len(name), value, len(value or ""))

    return MHD_get_connection_values(connection, kind, sized, iterator_cls)


def MHD_lookup_connection_value_n(
    connection: Connection | None,
    kind: int,
    key: str | None,
    key_size: int,
    value_ptr: Cell | None,
    value_size_ptr: Cell | None,
) -> int:
    """The first value of that name, into the cells; MHD_NO: there is none."""
    if connection is None:
        return MHD_NO
    wanted = None if key is None else key[:key_size].lower()
    for _, (name, value) in connection.values(Kind(kind)):
        if name.lower() == wanted:
            if value_ptr is not None:
                value_ptr.value = value
            if value_size_ptr is not None:
                value_size_ptr.value = len(value or "")
            return MHD_YES
    return MHD_NO


def MHD_lookup_connection_value(connection: Connection | None, kind: int, key: str | None) -> str | None:
    """The first value of that name, or None."""
    return None if connection is None else connection.lookup(Kind(kind), key)


def MHD_set_connection_value(connection: Connection | None, kind: int, key: str, value: str | None) -> int:
    """Let the request have a value more."""
    if connection is None:
        return MHD_NO
    connection.add_value(Kind(kind), key, value)
    return MHD_YES


def MHD_set_connection_value_n(
    connection: Connection | None, kind: int, key: str, key_size: int, value: str | None, value_size: int
) -> int:
    """The same with lengths.  MHD_NO for a NUL in it, which only an argument may hold."""
    name, text = key[:key_size], None if value is None else value[:value_size]
    if Kind(kind) is not Kind.ARGUMENT and "\0" in name + (text or ""):
        return MHD_NO
    return MHD_set_connection_value(connection, kind, name, text)


def MHD_get_connection_info(connection: Connection | None, info_type: int) -> Any:
    """What is known; None for what is not."""
    if connection is None:
        return None
    info, T = connection.info, MHD_ConnectionInfoType
    return {
        T.MHD_CONNECTION_INFO_CLIENT_ADDRESS: info.peer,
        T.MHD_CONNECTION_INFO_DAEMON: info.daemon,
        T.MHD_CONNECTION_INFO_CONNECTION_FD: info.fd,
        T.MHD_CONNECTION_INFO_SOCKET_CONTEXT: info.socket_context,
        T.MHD_CONNECTION_INFO_CONNECTION_SUSPENDED: MHD_YES if info.suspended else MHD_NO,
        T.MHD_CONNECTION_INFO_CONNECTION_TIMEOUT: int(info.timeout_s),
        T.MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE: info.header_size,
        T.MHD_CONNECTION_INFO_HTTP_STATUS: info.status,
    }.get(info_type)  # type: ignore[call-overload]


def MHD_set_connection_option(connection: Connection | None, option: int, *values: Any) -> int:
    """MHD_CONNECTION_OPTION_TIMEOUT, seconds (0: none), in every mode."""
    if (
        connection is None
        or option != MHD_CONNECTION_OPTION.MHD_CONNECTION_OPTION_TIMEOUT
        or len(values) != 1
    ):
        return MHD_NO
    connection.timeout_s = float(values[0])
    return MHD_YES


def MHD_suspend_connection(connection: Connection) -> None:
    """Leave it alone until it is resumed.  Without MHD_ALLOW_SUSPEND_RESUME: panic."""
    if not connection.daemon.allows_suspend:
        panic("connections cannot be suspended without MHD_ALLOW_SUSPEND_RESUME")
        return
    connection.suspend()


def MHD_resume_connection(connection: Connection) -> None:
    """Go on with it.  From any thread.  Without MHD_ALLOW_SUSPEND_RESUME: panic."""
    if not connection.daemon.allows_suspend:
        panic("connections cannot be resumed without MHD_ALLOW_SUSPEND_RESUME")
        return
    connection.resume()
