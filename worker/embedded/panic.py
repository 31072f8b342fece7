"""What happens when the daemon cannot go on: a handler of yours, or abort."""

import os
import sys
from collections.abc import Callable

PanicHandler = Callable[[str, int, str | None], object]
"""``handler(file, line, reason)``; it should not return."""

_handler: PanicHandler | None = None


def set_panic_handler(handler: PanicHandler | None) -> None:
    """For the whole process; None brings back the default: a line on standard error, and SIGABRT."""
    global _handler
    _handler = handler


def panic(reason: str | None) -> None:
    """A fatal error.  Returns only if the handler does, and then the caller must give up what it was doing."""
    frame = sys._getframe(1)
    if _handler is not None:
        _handler(frame.f_code.co_filename, frame.f_lineno, reason)
        return
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    os.write(2, f"quiesce: fatal error at {where}: {reason or 'no reason given'}\n".encode())
    os.abort()
