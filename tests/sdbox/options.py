"""What ``sdbox up`` was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of README.md, under their names there.  ``timeout`` in seconds."""

    name: str
    image: str = "host"
    bind: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    setenv: tuple[str, ...] = ()
    net: str = "private"
    target: str = "basic.target"
    size: str = "4g"
    stop_timeout: str = "90s"
    log_level: str = "info"
    log_target: str = "journal"
    timeout: float = 30.0
    replace: bool = False
    quiet: bool = False
