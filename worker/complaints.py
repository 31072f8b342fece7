"""Where complaints go: to standard error, or to somebody's logger, a line at a time."""

import sys
from collections.abc import Callable

Logger = Callable[[str], object]
"""Takes one line of text, without its end.  Called from any thread."""

Complain = Callable[[str, BaseException | None], None]
"""What is wrong, and the exception that says so, with its traceback."""


def to_stderr(message: str, exc: BaseException | None = None) -> None:
    """The default."""
    print(f"quiesce: {message}", file=sys.stderr, flush=True)
    if exc is not None:
        # Not the traceback module: it is dear, and a late import could find the application's own.
        sys.__excepthook__(type(exc), exc, exc.__traceback__)


def to_logger(logger: Logger) -> Complain:
    """To a logger; what it raises goes to standard error, with what it would not take."""
    from traceback import format_exception  # now, and not when something is wrong already

    def complain(message: str, exc: BaseException | None = None) -> None:
        lines = [message]
        if exc is not None:
            lines += "".join(format_exception(exc)).splitlines()
        try:
            for line in lines:
                logger(line)
        except Exception as failure:
            to_stderr(message, exc)
            to_stderr(f"and the logger {logger!r} failed", failure)

    return complain
