"""One worker's process: signals go to its pidfd, which tells its end, once."""

import os
import signal
from collections.abc import Callable

from quiesce.supervisor import fdnames
from quiesce.supervisor.core.exits import Ended
from quiesce.supervisor.fdstore import Keeping
from quiesce.supervisor.loop import Loop


class Process:
    """Owns the pidfd.

    Attributes:
        pidfd: -1: the process is gone; or it was, before another supervisor could leave it to us.
    """

    def __init__(
        self, loop: Loop, store: Keeping, key: str, pidfd: int, on_end: Callable[[Ended], None]
    ) -> None:
        """Takes ``pidfd``.  ``on_end`` is called once, before it is closed: :meth:`close` does that."""
        self.pidfd = pidfd
        self._loop = loop
        self._store = store
        self._name = fdnames.pidfd(key)
        self._on_end = on_end
        if pidfd >= 0:
            loop.watch(pidfd, self._on_exit)

    def keep(self) -> None:
        """Put it into the descriptor store, for the next supervisor."""
        if self.pidfd >= 0:
            self._store.put(self._name, self.pidfd)

    def signal(self, number: int) -> None:
        """Send it one, if it is there."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass  # it is a zombie already; the reaper comes

    def close(self) -> None:
        """It is gone, and everybody knows.  Closing twice is allowed."""
        if self.pidfd >= 0:
            self._store.drop(self._name)
            os.close(self.pidfd)
            self.pidfd = -1

    def _on_exit(self, _events: int) -> None:
        """Reap it, exactly once."""
        self._loop.unwatch(self.pidfd)
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            info = None  # not our child (adopted): nobody can know how
        self._on_end(_ended(info))


def _ended(info: os.waitid_result | None) -> Ended:
    if info is None:
        return Ended()
    if info.si_code == os.CLD_EXITED:
        return Ended(status=info.si_status)
    return Ended(signal=info.si_status)
