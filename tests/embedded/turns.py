"""Counts how often a daemon's loops turn: a busy loop turns thousands of times while nothing happens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from embedded.serving import Running
from quiesce.worker.embedded import daemon as module
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.loops.own_loop import OwnLoop

TICK_S = 0.01


class Turns:
    """Of all loops that were made while :func:`counted` was in place."""

    def __init__(self) -> None:
        self.count = 0  # several threads add to it, so it may miss a few of many

    def watch(self, loop: OwnLoop) -> OwnLoop:
        for name in ("_wait", "dispatch"):
            if hasattr(loop, name):
                setattr(loop, name, self._counting(getattr(loop, name)))
        return loop

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            self.count += 1
            return call(*arguments)

        return counting

    def during(self, served: Running, ticks: int) -> int:
        """How often the loops turn while each has so many timers, one after another."""
        shell = served.daemon._shell
        assert shell is not None
        before = self.count
        for seat, over in [(seat, self._tick(served, seat, ticks)) for seat in served.do(shell.all_seats)]:
            for _ in range(400):
                if over.wait(0.05) or seat not in served.do(shell.all_seats):  # its client has gone
                    break
            else:
                raise AssertionError("a loop does not turn")
        return self.count - before

    @staticmethod
    def _tick(served: Running, seat: Seat, ticks: int) -> threading.Event:
        over = threading.Event()
        left = ticks

        def tick() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                over.set()
            else:
                seat.loop.call_at(seat.loop.now() + TICK_S, tick)

        if served.turner is None:
            seat.post(tick)
        else:
            served.do(tick)
        return over


@contextlib.contextmanager
def counted() -> Iterator[Turns]:
    """Count the turns of daemons that are made in this block."""
    turns = Turns()
    loops = dict(module._LOOPS)
    for poller, make in loops.items():
        module._LOOPS[poller] = lambda make=make: turns.watch(make())  # type: ignore[misc]
    try:
        yield turns
    finally:
        module._LOOPS.update(loops)
