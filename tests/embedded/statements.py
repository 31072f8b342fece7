"""Which statements of docs/libmicrohttpd.md a test holds us to."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def says(*numbers: str) -> Callable[[F], F]:
    """The decorated test fails if one of these is not so."""

    def mark(test: F) -> F:
        test.statements = numbers  # type: ignore[attr-defined]
        return test

    return mark
