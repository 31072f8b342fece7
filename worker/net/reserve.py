"""A descriptor that is kept for the moment when there are no others left."""

import os


class Reserve:
    """Owns one descriptor of /dev/null, or none."""

    def __init__(self) -> None:
        self._fd = -1

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

    def descriptors(self) -> list[int]:
        return [self._fd] if self._fd >= 0 else []
