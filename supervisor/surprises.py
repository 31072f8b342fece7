"""A bug of ours in one corner must not take the service down: what callbacks of the loop raise."""

import time
import traceback
from collections import deque

from quiesce.shared.logs import Log

SURPRISES, SURPRISES_S = 50, 10.0  # so many bugs in so many seconds are no accident


class Surprises:
    """Logs what a callback of ours raised, and goes on; gives up when it goes on for ever."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._when: deque[float] = deque(maxlen=SURPRISES)

    def __call__(self, exc: Exception) -> None:
        text = "".join(traceback.format_exception(exc))
        self._log.multiline("error", "bug in quiesce; it goes on", text, error=repr(exc))
        now = time.monotonic()
        self._when.append(now)
        if len(self._when) == SURPRISES and now - self._when[0] < SURPRISES_S:
            # A level-triggered descriptor that nobody can serve would spin for ever: a supervisor
            # that ends lets its workers drain, one that spins starves them.
            raise exc
