"""One event, one line: verb first, ``key=value`` after it.

    2026-11-23T12:00:00.123Z INFO worker ready release=r42 worker=r42/1 pid=811 after_s=0.41

Not the standard library's logging: a worker would pay 5 ms and 1.3 MiB for it, and the
application configures that one.  Nothing here raises, and nothing here waits longer than
:data:`WAIT_MS` for whoever reads (a terminal stopped by Ctrl-S must not stop a rollout): a
line that cannot be written is counted, and the next one that can says how many were lost.
"""

import os
import select
import stat
import time
from collections.abc import Callable, Mapping

LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # syslog(3) priorities
WAIT_MS = 100  # for a reader that is behind; paid once, until it reads again
_CHUNK = 4096  # PIPE_BUF: a pipe that polls writable takes as much without blocking


def journal_reads(fd: int = 2, environ: Mapping[str, str] = os.environ) -> bool:
    """Does this descriptor lead to the journal?  sd-daemon(3), ``$JOURNAL_STREAM``.

    The variable alone proves nothing: it is inherited by whoever redirects its output.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Log:
    """Writes events to a descriptor, which stays its caller's.

    Args:
        fd: Where to.  A file should be open for append.
        level: The least that is written: debug, info, warning or error.
        clock_wall: Seconds since 1970, for the timestamp.
        journal: The journal reads (:func:`journal_reads`): a priority prefix in place of
            the timestamp, since the journal has its own.
    """

    def __init__(
        self,
        fd: int = 2,
        level: str = "info",
        clock_wall: Callable[[], float] = time.time,
        journal: bool = False,
    ) -> None:
        self.dropped = 0  # writes that failed or came through in part, since the beginning
        self._unsaid = 0  # of these, what no line has told yet
        self._torn = False  # the last line lacks its end
        self._clock_wall = clock_wall
        self._journal = journal
        self.set_level(level)
        self.set_fd(fd)

    def set_fd(self, fd: int) -> None:
        """Write to another descriptor from now on (log rotation).  Neither is closed."""
        self._fd = fd
        self._torn = False
        try:
            self._blocks = not stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError:
            self._blocks = True

    def set_level(self, level: str) -> None:
        """Raises ValueError if there is no such level."""
        if level not in LEVELS:
            raise ValueError(f"there is no log level {level!r}; there are {', '.join(LEVELS)}")
        self._most = LEVELS[level]

    def debug(self, event: str, /, **fields: object) -> None:
        self._event("debug", event, "", fields)

    def info(self, event: str, /, **fields: object) -> None:
        """What an operator would tell a colleague."""
        self._event("info", event, "", fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Needs a look."""
        self._event("warning", event, "", fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Needs a person."""
        self._event("error", event, "", fields)

    def multiline(self, level: str, event: str, body: str, /, **fields: object) -> None:
        """An event with a text of several lines below it: a traceback, last words.

        In one write, so that it stays together in a file.
        """
        self._event(level, event, body, fields)

    def raw(self, text: str | bytes) -> None:
        """Copy somebody else's output as it is; a missing end of line is added."""
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        if data:
            self._write(data if data.endswith(b"\n") else data + b"\n")

    def _event(self, level: str, event: str, body: str, fields: Mapping[str, object]) -> None:
        if LEVELS[level] <= self._most:
            lines = [self._head(level) + line(event, fields)]
            prefix = f"<{LEVELS[level]}>" if self._journal else ""
            lines += [f"{prefix}  | {_visible(part.expandtabs())}" for part in body.splitlines()]
            self.raw("\n".join(lines))

    def _head(self, level: str) -> str:
        if self._journal:
            return f"<{LEVELS[level]}>{level.upper()} "
        return f"{timestamp(self._clock_wall())} {level.upper()} "

    def _write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        if self._unsaid:
            notice = self._head("warning") + line("log lines lost", {"count": self._unsaid})
            data = (b"\n" if self._torn else b"") + notice.encode() + b"\n" + data.removeprefix(b"\n")
        if self._put(data):
            self._unsaid, self._torn = 0, False
        else:
            self.dropped += 1
            self._unsaid += 1

    def _put(self, data: bytes) -> bool:
        """Write it all; False if that could not be done, with ``_torn`` telling where it stopped."""
        size = _CHUNK if self._blocks else len(data)
        done = 0
        try:
            while done < len(data):
                if self._blocks and not self._writable():
                    break
                done += os.write(self._fd, data[done : done + size])
        except (OSError, ValueError):
            pass  # EAGAIN, EPIPE, ENOSPC, EBADF, descriptor -1: there is nobody to tell
        if 0 < done < len(data):
            self._torn = data[done - 1 : done] != b"\n"
        return done == len(data)

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0 if self._unsaid else WAIT_MS))


def timestamp(seconds: float) -> str:
    """UTC with milliseconds, RFC 3339."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03}Z"


def line(event: str, fields: Mapping[str, object]) -> str:
    """The event and its fields in their order, without an end of line; None is left out."""
    parts = [_visible(event)]
    parts += [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join(parts)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(round(value, 3))
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__} that cannot be shown>"
    if text and text.isprintable() and not any(char in text for char in ' "='):
        return text
    return '"' + _visible(text.replace("\\", "\\\\")).replace('"', '\\"') + '"'


def _visible(text: str) -> str:
    """The text with everything escaped that would break the line or command a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char) or char.encode("unicode_escape").decode()
