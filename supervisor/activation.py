"""Descriptors that were passed to us by number: sd_listen_fds(3), and our own way over an exec."""

import os
from collections.abc import Iterable, MutableMapping

from quiesce.shared.errors import ConfigError, QuiesceError

FIRST = 3  # SD_LISTEN_FDS_START
UNNAMED = "unknown"  # the name that systemd gives to what has none
KEPT = "QUIESCE_KEPT"  # "PID;NAME=FD;NAME=FD"; '%' and ';' of a name are escaped


class KeptError(QuiesceError):
    """What `reexec` left to us is not there: a bug of ours, and no word about the configuration.

    The manager's store still holds everything: whoever exits now is started again with it.
    """


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
    environ.pop("LISTEN_PIDFDID", None)  # systemd 258
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


def kept_environment(pairs: Iterable[tuple[str, int]], pid: int) -> str:
    """The value of QUIESCE_KEPT for an exec in place; the caller clears close-on-exec of each descriptor.

    LISTEN_FDS cannot say it: its descriptors lie side by side from 3 on, ours where they lie.
    """
    return ";".join((str(pid), *(f"{_escape(name)}={fd}" for name, fd in pairs)))


def take_kept_fds(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return (name, descriptor) of what the code that ran before in this process left to us.

    Args:
        environ: QUIESCE_KEPT is removed from it in any case.
        pid: Ours; what is meant for another process (our parent's) is not touched.

    Returns:
        Descriptors, close-on-exec now; the caller owns them.

    Raises:
        KeptError: It makes no sense, or one of them is not open.
    """
    text = environ.pop(KEPT, "")
    owner, *entries = text.split(";")
    if owner != str(pid):
        return []
    found = [_kept(entry) for entry in entries]
    for name, fd in found:
        try:
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise KeptError(
                f"descriptor {fd} ({name}) was lost when the supervisor replaced its code"
            ) from exc
    return found


def _kept(entry: str) -> tuple[str, int]:
    name, equals, fd = entry.rpartition("=")
    if not equals or not (fd.isascii() and fd.isdigit() and len(fd) <= 9):
        raise KeptError(f"{KEPT} holds {entry!r}, which is not NAME=DESCRIPTOR")
    return _unescape(name), int(fd)


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace(";", "%3B")


def _unescape(name: str) -> str:
    return name.replace("%3B", ";").replace("%25", "%")


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
