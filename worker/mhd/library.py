"""What the library says of itself, and small helpers, by the manual's names."""

import socket
from typing import Any

from quiesce.worker.core.rejected import REASONS
from quiesce.worker.core.values import unescape
from quiesce.worker.mhd.c_types import Cell
from quiesce.worker.mhd.constants import MHD_FEATURE, MHD_NO, MHD_YES

F = MHD_FEATURE
_FEATURES = frozenset(
    (
        F.MHD_FEATURE_MESSAGES, F.MHD_FEATURE_IPv6_ONLY, F.MHD_FEATURE_POLL, F.MHD_FEATURE_EPOLL,
        F.MHD_FEATURE_SOCKETPAIR, F.MHD_FEATURE_TCP_FASTOPEN, F.MHD_FEATURE_LARGE_FILE,
        F.MHD_FEATURE_THREAD_NAMES, F.MHD_FEATURE_RESPONSES_SHARED_FD, F.MHD_FEATURE_AUTODETECT_BIND_PORT,
        F.MHD_FEATURE_AUTOSUPPRESS_SIGPIPE, F.MHD_FEATURE_SENDFILE, F.MHD_FEATURE_THREADS,
        F.MHD_FEATURE_HTTPS_COOKIE_PARSING,
    )
)  # fmt: skip


def MHD_is_feature_supported(feature: int) -> int:
    """Of what is here.  A listening socket is never shut down, to wake a thread least of all."""
    if feature == F.MHD_FEATURE_IPv6:
        return MHD_YES if socket.has_ipv6 else MHD_NO
    return MHD_YES if feature in _FEATURES else MHD_NO


def MHD_get_version() -> str:
    """Ours, not libmicrohttpd's."""
    from quiesce import __version__

    return __version__


def MHD_get_version_bin() -> int:
    """The same as a number: two decimal digits in each byte, 0x01020300 is 1.2.3."""
    number = 0
    for part in [*MHD_get_version().split("."), "0", "0"][:4]:
        number = number << 8 | int(part[-2:], 16)
    return number


def MHD_http_unescape(val: Any) -> Any:
    """Percent-decode; what is no escape stays.  A text comes back decoded; what is in a cell is decoded in its place,
    and the new length comes back.
    """
    if isinstance(val, Cell):
        val.value = unescape(val.value)
        return len(val.value)
    return unescape(val)


def MHD_get_reason_phrase_for(code: int) -> str:
    """The phrase of a status, or "Unknown"."""
    return REASONS.get(code, "Unknown")


def MHD_get_reason_phrase_len_for(code: int) -> int:
    """Its length, or 0."""
    return len(REASONS.get(code, ""))


def MHD_free(ptr: Any) -> None:
    """Nothing: Python frees by itself."""
