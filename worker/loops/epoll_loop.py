"""The worker's own loop: level-triggered epoll, one heap of deadlines, an eventfd for other threads."""

import os
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic, monotonic_ns

from quiesce.shared.deadlines import Deadlines, Timer
from quiesce.worker.loops.epoll_set import EpollSet
from quiesce.worker.net.counters import TURN_NS

_MOST_EVENTS = 256  # of one turn, so that timers and other threads are not kept waiting


class EpollLoop(EpollSet):
    """See :class:`quiesce.worker.loops.base.Loop`.  Owns its epoll and eventfd descriptors."""

    def __init__(self, slot: memoryview | None = None) -> None:
        super().__init__()
        self.slot = slot
        self._deadlines = Deadlines()
        self._soon: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._stopping = False
        self.watch(self._wake_fd, self._on_wake)

    def now(self) -> float:
        return monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return self._deadlines.at(when, callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)
        self._woken = False  # before the queue is looked at: what comes later wakes us again
        for _ in range(len(self._soon)):
            self._guarded(self._soon.popleft())

    def run(self) -> None:
        self._stopping = False
        callbacks, poll, deadlines = self._callbacks, self._epoll.poll, self._deadlines
        while not self._stopping:
            wait_s = deadlines.wait_s(monotonic())
            ready = poll(-1 if wait_s is None else wait_s, _MOST_EVENTS)
            if self.slot is not None:
                self.slot[TURN_NS] = monotonic_ns()
            try:
                for fd, mask in ready:
                    callback = callbacks.get(fd)
                    if callback is not None:
                        callback(mask)
            except Exception as exc:  # whoever was not reached is ready again in the next turn
                _report(exc)
            now = monotonic()
            while (due := deadlines.pop_due(now)) is not None:
                self._guarded(due)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as exc:
            _report(exc)

    def stop(self) -> None:
        self._stopping = True

    def descriptors(self) -> list[int]:
        return [self._epoll.fileno(), self._wake_fd]

    def close(self) -> None:
        """Release the descriptors; those that are watched stay their owners'."""
        self._epoll.close()
        os.close(self._wake_fd)


def _report(exc: BaseException) -> None:
    """One callback's bug must not end the service of everybody else."""
    print("quiesce: unexpected error in the serving loop", file=sys.stderr)
    sys.__excepthook__(type(exc), exc, exc.__traceback__)
