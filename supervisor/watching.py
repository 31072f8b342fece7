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
