"""A heap of deadlines that answers "how long may I wait?".  Pure: it is told the time."""

import heapq
from collections.abc import Callable

Callback = Callable[[], None]

_NEVER = float("inf")


class Timer:
    """One deadline.  ``cancel()`` is cheap: the heap forgets it when it comes up."""

    __slots__ = ("_callback", "_heap", "when")

    def __init__(self, when: float, callback: Callback, heap: "Deadlines") -> None:
        self.when = when
        self._callback: Callback | None = callback
        self._heap = heap

    @property
    def pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        if self._callback is not None:
            self._callback = None
            self._heap._cancelled += 1

    def _take(self) -> Callback | None:
        callback, self._callback = self._callback, None
        return callback


class Deadlines:
    """Deadlines in order.  Two with the same time come up in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._cancelled = 0  # how many entries of the heap are dead

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def at(self, when: float, callback: Callback) -> Timer:
        """Set a deadline, in seconds of the caller's clock; infinity never comes up."""
        if when != when:
            # It is neither before nor after anything: the heap's order would be gone, silently.
            raise ValueError("a deadline must be a time, and NaN is none")
        timer = Timer(when, callback, self)
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, timer))
        # Timers that are set and cancelled for ever (a connection a millisecond) must not pile up.
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._sweep()
        return timer

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].pending]
        heapq.heapify(self._heap)
        self._cancelled = 0

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next deadline, 0 if it has passed, None if none will come."""
        while self._heap and not self._heap[0][2].pending:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        if not self._heap or self._heap[0][0] == _NEVER:
            return None  # no system call takes an infinite timeout
        return max(0.0, self._heap[0][0] - now)

    def take_due(self, now: float) -> list[Callback]:
        """Remove and return what is due, earliest first.

        A callback that cancels another one of the same batch comes too late for it:
        callers that care use :meth:`pop_due`, one at a time.
        """
        due: list[Callback] = []
        while (callback := self.pop_due(now)) is not None:
            due.append(callback)
        return due

    def pop_due(self, now: float) -> Callback | None:
        """Remove and return the earliest callback that is due, or None.

        One that is set while a batch runs, for ``now`` or earlier, belongs to that batch:
        a callback that re-arms itself sets a time after ``now``, or the batch never ends.
        """
        while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].pending):
            timer = heapq.heappop(self._heap)[2]
            callback = timer._take()
            if callback is not None:
                return callback
            self._cancelled -= 1
        return None
