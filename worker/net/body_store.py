"""A request body that is collected before the application is called: memory, then an unlinked file."""

import os
from io import BytesIO
from typing import IO


def _unlinked_file() -> IO[bytes]:
    directory = os.environ.get("TMPDIR") or "/tmp"
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE, or no such directory
        # Imported here: it costs what a small application's start costs, and nearly nobody needs it.
        from tempfile import TemporaryFile

        return TemporaryFile()  # noqa: SIM115  (owned by the body store)
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

    def take(self) -> IO[bytes]:
        """The body at its beginning; the caller owns it."""
        if self._file is None:
            return BytesIO(b"".join(self._parts))
        file, self._file = self._file, None
        file.seek(0)
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
