"""Descriptors and their callbacks in one level-triggered epoll set: what both loops have in common."""

import select
from collections.abc import Callable

from quiesce.worker.loops.base import READ


class EpollSet:
    """Owns its epoll descriptor; whoever inherits waits on it, or has it waited on, and closes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
