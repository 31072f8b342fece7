"""Are enough descriptors free for one more packet of a lane?"""

import os
import resource
from time import monotonic

from quiesce.shared.fdpass import MAX_FDS, WANTED_FILES

_SPARE_FDS = 64  # beyond a packet's: the application opens files too
_RECOUNT_S = 1.0


class Room:
    """Asked before each packet: one that finds no room is cut by the kernel, and the clients in it are lost."""

    def __init__(self) -> None:
        self._counted = 0  # when somebody looked, more or less
        self._counted_at = float("-inf")

    def has_room(self) -> bool:
        """May a packet come now?"""
        soft = soft_limit()
        wanted = _wanted(soft)
        open_now = _said_by_kernel()
        if not open_now:
            # To count ten thousand takes 5 ms, so far from the limit it is done once a second.
            self._counted += wanted
            now = monotonic()
            if self._counted > soft // 2 or now - self._counted_at > _RECOUNT_S:
                self._counted, self._counted_at = _count(), now
            open_now = self._counted
        return open_now + wanted <= soft


def _wanted(soft: int) -> int:
    # Everybody has inherited the supervisor's limit, unless the application has lowered it: then others may not
    # have, and their packets are as large as packets can be.
    inherited = soft >= min(hard_limit(), WANTED_FILES)
    packet = most_of_packet(soft) if inherited else min(MAX_FDS, soft // 2)
    return packet + min(_SPARE_FDS, soft // 16)


def most_of_packet(soft: int) -> int:
    """How many connections go into one packet.

    Where descriptors are few, packets are small: a reader needs room for a whole one, and what does not fit into it
    any more would lie in the lane with nobody to serve it.
    """
    return max(min(MAX_FDS, soft // 64), 1)


def first_kept() -> int:
    """The lowest descriptor that nobody accepts with: the rest is for the application's files, and for what comes along
    with the supervisor's orders, or those could not be read.  It is as much as a reader of a lane wants free: what a
    worker has accepted, its successor has room for.
    """
    soft = soft_limit()
    return soft - _wanted(soft)


def soft_limit() -> int:
    """How many descriptors a process may have, as things are."""
    return _number(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def hard_limit() -> int:
    """How many it could have."""
    return _number(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _number(limit: int) -> int:
    return limit if limit != resource.RLIM_INFINITY else 1 << 30


def _said_by_kernel() -> int:
    """How many this process has; 0: this kernel does not say (before Linux 6.2)."""
    try:
        return os.stat("/proc/self/fd").st_size
    except OSError:
        return 0


def _count() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # EMFILE: no room even to look.  Or there is no /proc: then nobody can say
        return soft_limit() if os.path.isdir("/proc/self/fd") else 0
