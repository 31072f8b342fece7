"""Somebody's callback, whose failure is said and goes no further."""

from collections.abc import Callable
from typing import Any

from quiesce.worker.complaints import Complain


def guarded(complain: Complain, callback: Callable[..., object], *arguments: Any) -> None:
    """Call it; what it raises must not end the service of the connection that it is about, or of others."""
    try:
        callback(*arguments)
    except Exception as exc:
        complain(f"{callback!r} failed", exc)
