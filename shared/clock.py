"""Where time comes from, so that tests can turn it by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on CLOCK_MONOTONIC, comparable between processes of one boot."""

    def now(self) -> float: ...


class MonotonicClock:
    """The real one."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is turned."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not run backwards"
        self._now += seconds
