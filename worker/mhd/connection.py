"""What an access handler does with its connection, by the manual's names."""

from collections.abc import Callable
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.rejected import REASONS
from quiesce.worker.core.response_head import BadResponse
from quiesce.worker.core.values import unescape
from quiesce.worker.embedded.connection import Connection, Kind, Stage
from quiesce.worker.embedded.panic import panic
from quiesce.worker.mhd.constants import (
    MHD_CONNECTION_OPTION,
    MHD_NO,
    MHD_YES,
    MHD_ConnectionInfoType,
    MHD_ValueKind,
)
from quiesce.worker.response import Freed, Response

KeyValueIterator = Callable[[Any, MHD_ValueKind, str, "str | None"], int]


def MHD_queue_response(connection: Connection | None, status_code: int, response: Response | None) -> int:
    """Answer with this response, after the handler has returned.  MHD_NO: that is not legal now; nothing happened."""
    if connection is None or response is None or status_code < 200:
        return MHD_NO
    if connection.stage is Stage.DATA and not connection.is_suspended:
        return MHD_NO
    try:
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


def MHD_lookup_connection_value(connection: Connection | None, kind: int, key: str | None) -> str | None:
    """The first value of that name, or None."""
    return None if connection is None else connection.lookup(Kind(kind), key)


def MHD_set_connection_value(connection: Connection | None, kind: int, key: str, value: str | None) -> int:
    """Let the request have a value more."""
    if connection is None:
        return MHD_NO
    connection.add_value(Kind(kind), key, value)
    return MHD_YES


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
    }[MHD_ConnectionInfoType(info_type)]


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


def MHD_http_unescape(val: str) -> str:
    """Percent-decode; what is no escape stays."""
    return unescape(val)


def MHD_get_reason_phrase_for(code: int) -> str:
    """The phrase of a status, or "Unknown"."""
    return REASONS.get(code, "Unknown")


def MHD_get_reason_phrase_len_for(code: int) -> int:
    """Its length, or 0."""
    return len(REASONS.get(code, ""))
