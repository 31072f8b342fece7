"""The lines that a process prints, kept as they come, to wait on and to judge."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable


class Output:
    """The read end of a pipe, emptied by a thread into a list of lines.  Owns the descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self.lines: list[str] = []
        self.name = name
        self._news = threading.Condition()
        self._ended = False
        self._wake_r, self._wake_w = os.pipe()
        self._fd = fd
        self._thread = threading.Thread(target=self._read, name=f"output {name}", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def bytes_seen(self) -> int:
        return sum(len(line) + 1 for line in list(self.lines))

    def wait_for(self, wanted: Callable[[str], bool], timeout_s: float, *, since: int = 0) -> str | None:
        """The first line from ``since`` on that is wanted; None at EOF or when the time is over."""
        deadline = time.monotonic() + timeout_s

        def found() -> str | None:
            return next((line for line in self.lines[since:] if wanted(line)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._ended, deadline - time.monotonic())
            return found()

    def _read(self) -> None:
        import select

        rest = b""
        while True:
            ready, _, _ = select.select([self._fd, self._wake_r], [], [])
            if self._fd not in ready:
                break
            data = os.read(self._fd, 65536)
            rest += data
            *lines, rest = rest.split(b"\n")
            if not data and rest:
                lines, rest = [*lines, rest], b""
            with self._news:
                self.lines += [line.decode("utf-8", "replace") for line in lines]
                self._news.notify_all()
            if not data:
                break
        with self._news:
            self._ended = True
            self._news.notify_all()

    def close(self, timeout_s: float = 5.0) -> None:
        """Read to EOF (every writer is gone by now), then let go."""
        self._thread.join(timeout_s)
        os.write(self._wake_w, b"x")  # somebody still holds the pipe: leave without EOF
        self._thread.join()
        for fd in (self._fd, self._wake_r, self._wake_w):
            os.close(fd)
