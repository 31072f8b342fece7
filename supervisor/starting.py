"""What a starting supervisor and the command that started it tell each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Mode(Enum):
    """Who is above the supervisor."""

    FOREGROUND = "foreground"  # a terminal, or a container
    BACKGROUND = "background"  # `quiesce start`
    SYSTEMD = "systemd"


@dataclass(frozen=True)
class StartReport:
    """How a start (or a check) ended: said exactly once.

    ``data`` of a good start: ``urls`` (list), ``name``, ``release``, ``path``, ``python``,
    ``workers``, ``threads``, ``interface``, ``health`` (the rule in force, a sentence) and
    ``config_file`` (path or None).
    """

    code: int  # an Exit
    text: str  # one sentence
    detail: str = ""  # further lines, such as a traceback
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


ReportTo = Callable[[StartReport], None]


class Once:
    """Tells the outcome of the start once; later words are the log's."""

    def __init__(self, report: ReportTo) -> None:
        self._report: ReportTo | None = report

    def __call__(self, report: StartReport) -> None:
        tell, self._report = self._report, None
        if tell is not None:
            tell(report)

    def spare(self) -> None:
        """Nobody waits."""
        self._report = None

    def failed(self, code: int, exc: Exception) -> int:
        """It did not come up; returns the code."""
        self(StartReport(int(code), str(exc)))
        return int(code)
