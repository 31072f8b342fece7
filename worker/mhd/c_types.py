"""C's types where Python has none: cells for out parameters, descriptor sets, errno."""

import threading
from collections.abc import Iterator
from typing import Any

FD_SETSIZE = 1024


class Cell:
    """One field, for what C passes as a pointer to be written: ``cell.value``."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Cell({self.value!r})"


class fd_set:
    """A set of descriptors below FD_SETSIZE."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def __contains__(self, fd: object) -> bool:
        return fd in self._fds

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def __len__(self) -> int:
        return len(self._fds)


def FD_ZERO(fds: fd_set) -> None:
    """Empty the set."""
    fds._fds.clear()


def FD_SET(fd: int, fds: fd_set) -> None:
    """Raises:
    ValueError: No fd_set holds this descriptor (C writes into somebody else's memory).
    """
    if not 0 <= fd < FD_SETSIZE:
        raise ValueError(f"descriptor {fd} does not fit an fd_set")
    fds._fds.add(fd)


def FD_CLR(fd: int, fds: fd_set) -> None:
    """Take it out."""
    fds._fds.discard(fd)


def FD_ISSET(fd: int, fds: fd_set) -> bool:
    """Is it in?"""
    return fd in fds._fds


class _Errno(threading.local):
    value = 0


_errno = _Errno()


def get_errno() -> int:
    """This thread's errno, as the last function that promises one left it."""
    return _errno.value


def set_errno(value: int) -> None:
    """Set this thread's errno."""
    _errno.value = value
