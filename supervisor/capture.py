"""What a worker on trial writes to its standard output and error.

A memfd opened for append: a print() into it can neither block nor break, whoever lives.  The
supervisor reads it with pread(2), copies it to the log, and can show the last lines of a start
that failed.  When the trial is over the worker is given the log's own descriptor instead
(`log`); what was started during the trial may still write here, so it is read until the worker
ends.

What has been copied is given back to the kernel (fallocate(2), FALLOC_FL_PUNCH_HOLE), and a
writer that is faster than we are loses lines rather than takes the machine's memory.
"""

import ctypes
import fcntl
import os
from collections.abc import Callable

TAIL_BYTES = 16 * 1024  # kept for the last words
MAX_BEHIND_BYTES = 32 << 20  # uncopied; more is skipped
_MAX_TURN_BYTES = 8 << 20  # copied in one go: the loop has other things to do
_CHUNK = 64 * 1024
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01

_libc = ctypes.CDLL(None, use_errno=True)


class Capture:
    """Owns one memfd."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("quiesce-output", os.MFD_CLOEXEC)
        # O_APPEND: stdout and stderr, and children of the application, share the file without
        # overwriting each other.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)
        self._copied = 0
        self._freed = 0

    @property
    def written(self) -> int:
        """Bytes, since the beginning."""
        return os.fstat(self.fd).st_size

    def copy_to(self, write: Callable[[bytes], None]) -> None:
        """Write out what is new, at most some megabytes of it at a time."""
        behind = self.written - self._copied
        if behind > MAX_BEHIND_BYTES:
            skip = behind - _MAX_TURN_BYTES
            self._copied += skip
            write(f"\nquiesce: {skip} bytes of output came too fast and are left out\n".encode())
        turn_ends = self._copied + _MAX_TURN_BYTES
        while self._copied < turn_ends and (chunk := os.pread(self.fd, _CHUNK, self._copied)):
            self._copied += len(chunk)
            write(chunk)
        self._free()

    def _free(self) -> None:
        until = (self._copied - TAIL_BYTES) // 4096 * 4096
        if until - self._freed >= 1 << 20:
            length = ctypes.c_int64(until - self._freed)
            _libc.fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(self._freed), length)
            self._freed = until

    def tail(self, lines: int = 40) -> str:
        """The last lines that were written, at most 16 KiB."""
        size = self.written
        data = os.pread(self.fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
