"""What our own loops have in common: one heap of deadlines, an eventfd for other threads, a turn."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, monotonic_ns

from quiesce.shared.deadlines import Deadlines, Timer
from quiesce.worker.complaints import Complain, to_stderr
from quiesce.worker.loops.base import READ, nothing
from quiesce.worker.net.counters import TURN_NS

_MOST_EVENTS = 256  # of one turn, so that timers and other threads are not kept waiting

Ready = Iterable[tuple[int, int]]


class OwnLoop:
    """See :class:`quiesce.worker.loops.base.Loop`.  Owns its eventfd.

    A loop is this and a way to wait: ``_wait(timeout_s, most)`` returns (descriptor, mask) pairs, ``None`` waits for
    ever.  It turns by itself (:meth:`run`) or when somebody says so (:meth:`turn`, :meth:`dispatch`).
    """

    _wait: Callable[[float | None, int], Ready]

    def __init__(self, slot: memoryview | None = None) -> None:
        self.slot = slot
        self.turned: Callable[[], None] = nothing
        self.complain: Complain = to_stderr
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._deadlines = Deadlines()
        self._soon: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._stopping = False

    def _watch_wake_fd(self) -> None:
        """To be called once, when descriptors can be watched."""
        self.watch(self._wake_fd, self._on_wake)

    def can_watch(self, fd: int) -> bool:
        """Is this a descriptor that :meth:`watch` takes?"""
        return True

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        raise NotImplementedError

    def rewatch(self, fd: int, events: int) -> None:
        raise NotImplementedError

    def unwatch(self, fd: int) -> None:
        raise NotImplementedError

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
        self._serve(None)

    def turn(self, timeout_s: float | None = 0.0) -> None:
        """Wait so long at most (None: for ever; a deadline ends it too), then serve what is ready."""
        wait_s = self.timeout_s()
        if timeout_s is not None and (wait_s is None or wait_s > timeout_s):
            wait_s = timeout_s
        self._serve(self._wait(wait_s, _MOST_EVENTS))

    def _serve(self, ready: Ready | None) -> None:
        """Serve what is ready, once; None: wait and serve until :meth:`stop`.

        One body for both, and no call in between: a worker comes here with each request.
        """
        once = ready is not None
        callbacks, wait, deadlines = self._callbacks, self._wait, self._deadlines
        while once or not self._stopping:
            if ready is None:
                ready = wait(deadlines.wait_s(monotonic()), _MOST_EVENTS)
            if self.slot is not None:
                self.slot[TURN_NS] = monotonic_ns()
            try:
                for fd, mask in ready:
                    callback = callbacks.get(fd)
                    if callback is not None:
                        callback(mask)
            except Exception as exc:  # whoever was not reached is ready again in the next turn
                self._report(exc)
            now = monotonic()
            while (due := deadlines.pop_due(now)) is not None:
                self._guarded(due)
            self.turned()
            if once:
                return
            ready = None

    def timeout_s(self) -> float | None:
        """Seconds until a turn is needed though nothing is ready; None: never."""
        return 0.0 if self._soon else self._deadlines.wait_s(monotonic())

    def finish(self) -> None:
        """Do what other threads asked for and no turn came to.  When nobody turns the loop any more."""
        while self._soon:
            self._guarded(self._soon.popleft())

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as exc:
            self._report(exc)

    def _report(self, exc: BaseException) -> None:
        """One callback's bug must not end the service of everybody else."""
        self.complain("unexpected error in the serving loop", exc)

    def stop(self) -> None:
        self._stopping = True

    def descriptors(self) -> list[int]:
        return [self._wake_fd]

    def close(self) -> None:
        """Release the descriptors; those that are watched stay their owners'."""
        os.close(self._wake_fd)
