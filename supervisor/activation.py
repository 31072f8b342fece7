"""Descriptors that the service manager passed: sd_listen_fds(3)."""

import os
from collections.abc import MutableMapping

from quiesce.shared.errors import ConfigError

FIRST = 3  # SD_LISTEN_FDS_START
UNNAMED = "unknown"  # the name that systemd gives to what has none


def take_listen_fds(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return (name, descriptor) of what was passed to us, in the order of passing.

    Names may come more than once: all sockets of one .socket unit share its FileDescriptorName=.

    Args:
        environ: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed from it in any case: they are
            meant for one process.
        pid: Ours; what is meant for another process is not touched.

    Returns:
        Descriptors, close-on-exec now; the caller owns them.

    Raises:
        ConfigError: The variables contradict themselves or the descriptors that are open.
    """
    owner, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if not owner:
        return []
    if _number("LISTEN_PID", owner) != pid:
        return []
    fds = range(FIRST, FIRST + _number("LISTEN_FDS", count))
    listed = names.split(":") if names else [UNNAMED] * len(fds)
    if len(listed) != len(fds):
        raise ConfigError(
            f"LISTEN_FDNAMES names {len(listed)} descriptors and LISTEN_FDS passes {len(fds)}; "
            "whoever passes them must name all or none"
        )
    for fd in fds:
        _close_on_exec(fd, len(fds))
    return [(name or UNNAMED, fd) for name, fd in zip(listed, fds, strict=True)]


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise ConfigError(f"{name}={value!r} is not a number; unset it, or see who passes descriptors to us")
    return int(value)


def _close_on_exec(fd: int, count: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError as exc:
        raise ConfigError(
            f"LISTEN_FDS={count} announces descriptor {fd}, which is not open; unset LISTEN_FDS, or see who "
            "passes descriptors to us"
        ) from exc
