"""Somebody's callback, whose failure is said and goes no further."""

import sys
from collections.abc import Callable
from typing import Any


def guarded(callback: Callable[..., object], *arguments: Any) -> None:
    """Call it; what it raises must not end the service of the connection that it is about, or of others."""
    try:
        callback(*arguments)
    except Exception as exc:
        print(f"quiesce: {callback!r} failed", file=sys.stderr)
        sys.__excepthook__(type(exc), exc, exc.__traceback__)
