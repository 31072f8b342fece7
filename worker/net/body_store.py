"""A request body that is collected before the application is called: memory, then an unlinked file."""

import os
from typing import IO


def _unlinked_file() -> IO[bytes]:
    # Not tempfile: it is dear to import, and here it would be imported in the middle of serving, when the
    # application's own tempfile.py, if it has one, comes first on sys.path.
    directory = os.environ.get("TMPDIR") or "/tmp"
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        fd = os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError:  # a file system without O_TMPFILE, or no such directory
        path = f"/tmp/quiesce-body-{os.urandom(16).hex()}"
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        os.unlink(path)
    return open(fd, "w+b")


class BodyStore:
    """Takes a body piece by piece.  Owns its file until :meth:`take`."""

    __slots__ = ("_file", "_memory", "_parts", "_size")

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._parts: list[bytes] = []
        self._size = 0
        self._file: IO[bytes] | None = None

    def add(self, data: bytes) -> None:
        """Raises:
        OSError: The temporary file cannot be made or written.
        """
        self._size += len(data)
        if self._file is None:
            self._parts.append(data)
            if self._size <= self._memory:
                # A client that sends byte by byte must not make us hold an object per byte.
                if len(self._parts) > 256:
                    self._parts = [b"".join(self._parts)]
                return
            self._file = _unlinked_file()
            data, self._parts = b"".join(self._parts), []
        self._file.write(data)

    def take(self) -> bytes | IO[bytes]:
        """The body, or its file at its beginning, which the caller owns.

        Raises:
            OSError: The last of it cannot be written; the file is still ours.
        """
        if self._file is None:
            return b"".join(self._parts)
        self._file.seek(0)  # writes what is buffered
        file, self._file = self._file, None
        return file

    def close(self) -> None:
        """Throw it away."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass  # closed all the same; what it could not write on the way is not wanted
