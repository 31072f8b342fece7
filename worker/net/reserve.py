"""A descriptor that is kept for the moment when there are no others left."""

import os
import threading
from types import TracebackType


class Reserve:
    """Owns one descriptor of /dev/null while somebody accepts, if there is one to be had.

    For all threads that accept for one daemon.  Whoever was out of descriptors accepts with the lock held (``with
    reserve:``), and nobody accepts who does not find it there: or one would take what another has let go of.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._fd = -1

    def __enter__(self) -> None:
        self._lock.acquire()
        self.fill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def is_there(self) -> bool:
        """Is it?  If not, and there is one to be had again, it is now."""
        if self._fd < 0:
            with self:
                pass
        return self._fd >= 0

    def hold(self) -> None:
        """One more accepts."""
        with self._lock:
            self._users += 1
            self.fill()

    def leave(self) -> None:
        """One accepts no more."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self.spend()

    def fill(self) -> None:
        """Take one, if there is one and we have none."""
        if self._fd < 0:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # another time

    def spend(self) -> bool:
        """Let it go.  False: it was not there."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        return fd >= 0
