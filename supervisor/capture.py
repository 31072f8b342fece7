"""What a worker on trial writes to its standard output and error.

A memfd opened for append: a print() into it can neither block nor break, whoever lives.  The
supervisor reads it with pread(2) when something has happened to the worker, copies it to the
log, and can show the last lines of a start that failed.  When the trial is over the worker
is given the log's own descriptor instead (`log`), and this is closed.
"""

import fcntl
import os

TAIL_BYTES = 16 * 1024
_CHUNK = 64 * 1024


class Capture:
    """Owns one memfd."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("quiesce-output", os.MFD_CLOEXEC)
        # O_APPEND: stdout and stderr, and children of the application, share the file without
        # overwriting each other.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)
        self._copied = 0

    def take_new(self) -> bytes:
        """What was written since the last call, whole lines only unless it is a flood."""
        parts: list[bytes] = []
        while chunk := os.pread(self.fd, _CHUNK, self._copied):
            parts.append(chunk)
            self._copied += len(chunk)
        return b"".join(parts)

    def tail(self, lines: int = 40) -> str:
        """The last lines that were written, at most 16 KiB."""
        size = os.fstat(self.fd).st_size
        data = os.pread(self.fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
