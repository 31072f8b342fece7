"""Descriptors that the service manager passed (sd_listen_fds(3))."""

import os
from collections.abc import MutableMapping

from quiesce.shared.errors import ConfigError

FIRST = 3


def take_listen_fds(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return (name, descriptor) of what was passed to us, close-on-exec."""
    owner, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if not owner or owner != str(pid):
        return []
    if not count.isdigit():
        raise ConfigError(f"LISTEN_FDS={count!r} is not a number; who passes these descriptors?")
    listed = names.split(":") if names else []
    found = []
    for index in range(int(count)):
        os.set_inheritable(FIRST + index, False)
        found.append((listed[index] if index < len(listed) else "unknown", FIRST + index))
    return found
