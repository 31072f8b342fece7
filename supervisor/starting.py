"""What a starting supervisor and the command that started it tell each other."""

from __future__ import annotations

from collections.abc import Mapping
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
