"""A place in an application where requests wait until the test lets them go on."""

from __future__ import annotations

import threading

PATIENCE_S = 20.0  # bounds a failing test


class Gate:
    """Closed at first, and opened once, for all who are there and all who come."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._opened = threading.Event()

    # -- in the application --------------------------------------------------------------

    def wait(self) -> None:
        """Say that somebody is here, and wait."""
        self._entered.release()
        assert self._opened.wait(PATIENCE_S), "nobody opened the gate"

    # -- in the test ---------------------------------------------------------------------

    def wait_entered(self) -> None:
        """Return when one more has come to it."""
        assert self._entered.acquire(timeout=PATIENCE_S), "nobody came to the gate"

    def open(self) -> None:
        """Opening twice is allowed."""
        self._opened.set()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()
