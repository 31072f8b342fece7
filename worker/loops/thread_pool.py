"""Threads that run blocking applications.  As many as asked for, from the first request to the end."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, monotonic_ns
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadPool(Generic[T]):
    """Calls ``work(item)`` in one of ``count`` threads, then ``over()``.  Neither must raise."""

    def __init__(self, count: int, work: Callable[[T], None], over: Callable[[], None]) -> None:
        self._over = over
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._since = [0] * count
        # Each written by one thread only, so without a lock.
        self._submitted = 0
        self._ended = [0] * count
        # Daemon threads: one that hangs in the application must not hang the interpreter's exit.
        self._threads = [
            Thread(target=self._run, args=(work, number), name=f"quiesce-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: T) -> None:
        """Have it done by the next thread that is free.  From one thread only."""
        self._submitted += 1
        self._queue.put(item)

    def _run(self, work: Callable[[T], None], number: int) -> None:
        get, since = self._queue.get, self._since
        while True:
            item = get()
            if item is None:
                return
            since[number] = monotonic_ns()
            work(item)
            since[number] = 0
            self._ended[number] += 1
            self._over()
            del item  # or the last request would be kept until the next one comes

    @property
    def oldest_ns(self) -> int:
        """Since when (CLOCK_MONOTONIC) the oldest request that runs now has run; 0 = none runs."""
        running = [since for since in self._since if since]
        return min(running) if running else 0

    @property
    def busy(self) -> bool:
        """Does a request run or wait?  Also one that a thread has taken just now and not begun."""
        return self._submitted != sum(self._ended)

    def forked(self) -> None:
        """In a child that a request forked: its thread, the only one there, ends when that request returns."""
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            self._queue.put(None)

    def close(self, timeout_s: float) -> bool:
        """Let the threads end after what they have; False if some did not in time."""
        for _ in self._threads:
            self._queue.put(None)
        until = monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
