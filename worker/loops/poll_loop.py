"""A loop over poll(2): no descriptor of its own, so cheap to make for one connection."""

import select
from collections.abc import Callable
from math import ceil

from quiesce.worker.loops.base import READ
from quiesce.worker.loops.own_loop import OwnLoop


class PollLoop(OwnLoop):
    """See :class:`quiesce.worker.loops.base.Loop`.  The masks of poll are those of epoll."""

    def __init__(self, slot: memoryview | None = None) -> None:
        super().__init__(slot)
        self._poll = select.poll()
        self._wait = self._wait_poll
        self._watch_wake_fd()

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _wait_poll(self, timeout_s: float | None, most: int) -> list[tuple[int, int]]:
        # Rounded up: a deadline that is half a millisecond away must not be asked for again and again.
        return self._poll.poll(None if timeout_s is None else ceil(timeout_s * 1000))
