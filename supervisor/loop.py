"""The one wait of the supervisor: descriptors, signals, the next deadline.

Ready descriptors are served before deadlines: after a pause of the whole machine a message
that is there already must win against the deadline that waited for it.
"""

import select
from collections import deque
from collections.abc import Callable

from quiesce.shared.clock import Clock, MonotonicClock
from quiesce.shared.deadlines import Deadlines, Timer

READ, WRITE = select.EPOLLIN, select.EPOLLOUT

Ready = Callable[[int], None]  # is given the epoll event mask
OnError = Callable[[Exception], None]


class Loop:
    """A small epoll loop.  Level-triggered; one thread; callbacks never block.

    ``on_error`` is given what a callback raised: a bug of ours in one corner must not take the
    service down.  Without it (in tests) the exception leaves :meth:`turn`.
    """

    def __init__(self, clock: Clock | None = None, on_error: OnError | None = None) -> None:
        self.on_error = on_error
        self._clock = clock or MonotonicClock()
        self._epoll = select.epoll()
        self._watched: dict[int, Ready] = {}
        self._deadlines = Deadlines()
        self._soon: deque[Callable[[], None]] = deque()
        self._stopped = False

    def now(self) -> float:
        """CLOCK_MONOTONIC, seconds."""
        return self._clock.now()

    def watch(self, fd: int, callback: Ready, events: int = READ) -> None:
        """Call back with the event mask whenever ``fd`` is ready.  The caller keeps ``fd``."""
        self._epoll.register(fd, events)
        self._watched[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``.  Must come before it is closed: epoll holds the description, and another
        holder of it (a worker has our listeners) would keep the events coming for ever."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return self._deadlines.at(when, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in this turn, after what is being called now."""
        self._soon.append(callback)

    def stop(self) -> None:
        """Make :meth:`run` return after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Turn until :meth:`stop`."""
        self._stopped = False
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        """Wait once, then call back what is ready, then what is due."""
        wait = 0.0 if self._soon else self._deadlines.wait_s(self.now())
        for fd, events in self._epoll.poll(wait):
            # An earlier callback of this turn may have unwatched it.
            callback = self._watched.get(fd)
            if callback is not None:
                self._call(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]
                self._run_soon()
        now = self.now()
        while (due := self._deadlines.pop_due(now)) is not None:
            self._call(due)
            self._run_soon()
        self._run_soon()

    def _run_soon(self) -> None:
        while self._soon:
            self._call(self._soon.popleft())

    def _call(self, callback: Callable[[], None]) -> None:
        if self.on_error is None:
            callback()
            return
        try:
            callback()
        except Exception as exc:
            self.on_error(exc)

    def close(self) -> None:
        self._epoll.close()
