"""What those who wait for an instance are told."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from quiesce.shared.errors import QuiesceError

Progress = Callable[[str], None]


class Busy(QuiesceError):
    """Another change is being decided."""


class Stopping(Enum):
    NO = 0
    GRACEFUL = 1
    FAST = 2


class Ended(NamedTuple):
    """What a command that started a rollout is told at its end."""

    code: int
    text: str
    detail: str = ""


class Watch(NamedTuple):
    """Somebody who waits for a rollout."""

    progress: Progress
    decided: Callable[[Ended], None]
    finished: Callable[[], None]  # the old generation is gone, too
    request: str = ""  # the id under which the command asks again, if its supervisor dies


#: Nobody waits.
SILENT = Watch(lambda text: None, lambda ended: None, lambda: None)


Fact = Callable[[], bool]


class Waiters:
    """Callbacks that wait for a fact about workers."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Fact, Callable[[], None]]] = []

    def when(self, fact: Fact, then: Callable[[], None]) -> None:
        """Call ``then`` once, as soon as ``fact`` holds."""
        if fact():
            then()
        else:
            self._waiting.append((fact, then))

    def look(self) -> None:
        """Something has changed: ask every fact again."""
        ready = [waiter for waiter in self._waiting if waiter[0]()]
        self._waiting = [waiter for waiter in self._waiting if waiter not in ready]
        for _, then in ready:
            then()
