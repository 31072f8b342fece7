"""Standard output and error of a worker: no line is lost, and no ``print()`` fails or waits for a reader."""

import io
import os
import sys
from typing import TextIO

from quiesce.shared.fdpass import close_all


class _Sink(io.FileIO):
    """Descriptor 1 or 2.  What it has no room for is dropped: a full disk must not turn into 500s."""

    def write(self, data: object, /) -> int:
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            written = None
        # FileIO says None where the descriptor is O_NONBLOCK and full; to whoever prints, it is written.
        return memoryview(data).nbytes if written is None else written  # type: ignore[arg-type]


def set_up() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` write each line at once.

    Into a file they would wait for 8 KiB, and a worker that is killed would take its last words along.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = _stream(fd, getattr(sys, name))
        vars(sys)[name] = vars(sys)[f"__{name}__"] = stream


def _stream(fd: int, old: TextIO | None) -> TextIO:
    encoding = getattr(old, "encoding", None) or "utf-8"
    errors = getattr(old, "errors", None) or "backslashreplace"
    if old is not None:
        _flush(old)
    # closefd=False: the descriptor is the process's, not this object's.
    raw = _Sink(fd, "w", closefd=False)
    raw.name = old.name if old is not None else ("<stdout>" if fd == 1 else "<stderr>")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)


def use(fd: int) -> None:
    """Make ``fd``, opened for append, descriptors 1 and 2 of this process.  Takes it, also on failure."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            _flush(stream)
    try:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    finally:
        if fd > 2:
            close_all((fd,))


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        pass  # closed by the application, or a sink without room: neither is ours to fail for
