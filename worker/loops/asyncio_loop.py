"""The daemon's loop inside asyncio's, or uvloop's where that is installed.

The daemon's descriptors stay in an epoll set of our own, and asyncio watches that one descriptor: an epoll
set is readable while anything in it is ready.  So every descriptor behaves exactly as in ``epoll_loop.py``, also where
``add_reader`` has no word for it (a hang-up while nothing is read, a shared listener's ghost), and a turn
costs asyncio one handle however many connections are ready.
"""

import asyncio
import sys
import time
from _thread import get_ident
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from typing import Any

from quiesce.shared.deadlines import Deadlines
from quiesce.shared.scoreboard import Field
from quiesce.worker.complaints import Complain, to_stderr
from quiesce.worker.loops.base import Timer, nothing
from quiesce.worker.loops.epoll_set import EpollSet

TURN_NS = int(Field.TURN_NS)
_BATCH = 256  # events a turn, so that the application's tasks get theirs
_LONG_NS = 10_000_000  # a turn that takes so long begins no task more in itself, for the same reason


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class AsyncioLoop(EpollSet):
    """``Loop`` (base.py) on an event loop of its own; ``aio`` is that event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: memoryview | None = None
        self.until_ns = 0  # what is begun later (CLOCK_MONOTONIC) is begun in another turn
        self.turned: Callable[[], None] = nothing  # for tasks of an application too, which go on between them
        self.complain: Complain = to_stderr
        self.aio = _new_event_loop()
        asyncio.set_event_loop(self.aio)
        # Ours, for all that we do: a timer that was set while the application runs would hold its variables, and a
        # request that is begun then would see those of another.
        self._context = copy_context()
        self._thread: int | None = None
        self.aio.add_reader(self._epoll.fileno(), self._turn)
        self._deadlines = Deadlines()
        self._look: asyncio.TimerHandle | None = None  # asyncio's own timer, for the first of them
        self._looks_at = inf
        self.now = time.monotonic  # not aio.time(): uvloop's stands still within a turn

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        # A heap of our own: a timer of uvloop's takes 450 bytes more, and each connection has one.
        timer = self._deadlines.at(when, callback)
        self._look_at(when)
        return timer

    def _look_at(self, when: float) -> None:
        if when < self._looks_at:
            if self._look is not None:
                self._look.cancel()
            self._looks_at = when
            wait_s = max(0.0, when - self.now())
            self._look = self.aio.call_later(wait_s, self._on_look, context=self._context)

    def _on_look(self) -> None:
        self._look = None
        self._looks_at = inf
        self.until_ns = time.monotonic_ns() + _LONG_NS
        now = self.now()
        while (due := self._deadlines.pop_due(now)) is not None:
            try:
                due()
            except Exception:
                sys.excepthook(*sys.exc_info())  # as in _turn
        wait_s = self._deadlines.wait_s(now)
        if wait_s is not None:
            self._look_at(now + wait_s)
        self.turned()

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        if self._thread == get_ident():  # nobody has to be woken
            self.aio.call_soon(self._do, callback, context=self._context)
            return
        try:
            self.aio.call_soon_threadsafe(self._do, callback, context=self._context)
        except RuntimeError:
            pass  # closed: nobody is left to do it, as in a loop that has stopped

    def _do(self, callback: Callable[[], None]) -> None:
        """What is no turn of ours begins and ends as one."""
        self.until_ns = time.monotonic_ns() + _LONG_NS
        callback()
        self.turned()

    def run(self) -> None:
        self._thread = get_ident()
        try:
            self.aio.run_forever()
        finally:
            self._thread = None

    def stop(self) -> None:
        self.aio.stop()

    def close(self) -> None:
        """End what is left of the application's tasks, as ``asyncio.run`` does, and release the descriptors."""
        aio = self.aio
        tasks = asyncio.all_tasks(aio)
        for task in tasks:
            task.cancel()
        if tasks:
            aio.run_until_complete(asyncio.wait(tasks))
        aio.run_until_complete(aio.shutdown_asyncgens())
        aio.run_until_complete(aio.shutdown_default_executor())
        asyncio.set_event_loop(None)
        aio.remove_reader(self._epoll.fileno())
        self._epoll.close()
        aio.close()

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call in the loop's thread, in a turn, when the signal comes."""
        self.aio.add_signal_handler(number, self._do, callback)

    def descriptors(self) -> list[int]:
        """Ours, and those of asyncio's: a forked child that closed its loop would take the parent's
        descriptors out of the epoll set that both share."""
        inner: list[Any] = [getattr(self.aio, name, None) for name in ("_selector", "_ssock", "_csock")]
        fds = [owner.fileno() for owner in inner if hasattr(owner, "fileno")]
        return fds if self._epoll.closed else [self._epoll.fileno(), *fds]

    def _turn(self) -> None:
        self.until_ns = time.monotonic_ns() + _LONG_NS
        callbacks = self._callbacks
        for fd, mask in self._epoll.poll(0, _BATCH):
            callback = callbacks.get(fd)
            if callback is None:
                continue  # unwatched by a callback before it in this turn
            try:
                callback(mask)
            except Exception:
                sys.excepthook(*sys.exc_info())  # a bug of ours must not end the other connections
        if self.slot is not None:
            self.slot[TURN_NS] = time.monotonic_ns()
        self.turned()
