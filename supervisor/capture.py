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
    """One memfd, seen through two descriptions of it.  Owns both.

    ``fd`` is for the worker; :meth:`close_writing` once it has it.  ``cursor`` is for reading, and how far it was
    copied is its file offset, which the kernel keeps: a supervisor that takes it over
    from the descriptor store goes on exactly there.

    Source: memfd_create(2); proc(5) /proc/self/fd: opening it makes a description of its own.
    """

    def __init__(self) -> None:
        # O_APPEND: stdout and stderr, and children of the application, share the file without
        # overwriting each other.
        self.fd = os.memfd_create("quiesce-output", os.MFD_CLOEXEC)
        try:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_APPEND)
            # For writing as well, or no hole could be punched.
            self.cursor = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise
        self._copied = 0
        self._freed = 0

    @classmethod
    def adopt(cls, fd: int) -> "Capture":
        """Go on with one that another supervisor has left.  Takes ``fd``, its cursor."""
        capture = cls.__new__(cls)
        capture.fd, capture.cursor = -1, fd
        capture._copied = os.lseek(fd, 0, os.SEEK_CUR)
        capture._freed = 0
        return capture

    def close_writing(self) -> None:
        """The worker has its own copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def written(self) -> int:
        """Bytes, since the beginning."""
        return os.fstat(self.cursor).st_size

    def copy_to(self, write: Callable[[bytes], None]) -> None:
        """Write out what is new, at most some megabytes of it at a time."""
        behind = self.written - self._copied
        if behind > MAX_BEHIND_BYTES:
            skip = behind - _MAX_TURN_BYTES
            self._advance(skip)
            write(f"\nquiesce: {skip} bytes of output came too fast and are left out\n".encode())
        turn_ends = self._copied + _MAX_TURN_BYTES
        while self._copied < turn_ends and (chunk := os.pread(self.cursor, _CHUNK, self._copied)):
            # First written, then ticked off: a supervisor that is killed in between says it twice, never not at all.
            write(chunk)
            self._advance(len(chunk))
        self._free()

    def _advance(self, count: int) -> None:
        self._copied = os.lseek(self.cursor, self._copied + count, os.SEEK_SET)

    def _free(self) -> None:
        until = (self._copied - TAIL_BYTES) // 4096 * 4096
        if until - self._freed >= 1 << 20:
            length = ctypes.c_int64(until - self._freed)
            _libc.fallocate(self.cursor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(self._freed), length)
            self._freed = until

    def tail(self, lines: int = 40) -> str:
        """The last lines that were written, at most 16 KiB."""
        size = self.written
        data = os.pread(self.cursor, TAIL_BYTES, max(0, size - TAIL_BYTES))
        return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])

    def close(self) -> None:
        self.close_writing()
        if self.cursor >= 0:
            os.close(self.cursor)
            self.cursor = -1
