"""What the daemon needs of a loop: readiness, deadlines, one way in from another thread.

Level-triggered: a callback is called again as long as its descriptor stays ready, so whoever
cannot go on takes the interest out (``rewatch``) instead of remembering that it had it.
"""

from collections.abc import Callable
from typing import Protocol

from quiesce.worker.complaints import Complain

# The values of select.EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP; loops over something else translate.
READ = 0x001
WRITE = 0x004
ERROR = 0x008
HANGUP = 0x010  # both directions are gone; ERROR and HANGUP are reported whatever is watched


class Timer(Protocol):
    """A deadline that was set."""

    def cancel(self) -> None:
        """Forget it.  Harmless when it has fired."""


def nothing() -> None:
    """What happens at the end of a turn that nobody wants to hear of."""


class Loop(Protocol):
    """One thread's wait.  Every method but ``call_soon_threadsafe`` is for that thread."""

    slot: memoryview | None
    """Our place on the scoreboard; a loop that has a turn of its own stores the heartbeat (``TURN_NS``) there."""

    turned: Callable[[], None]
    """Called when a turn is over, before it waits; what is done between two turns ends with it too."""

    complain: Complain
    """Where this loop, and all that it serves, says what is wrong."""

    def now(self) -> float:
        """Seconds on CLOCK_MONOTONIC."""

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call ``callback(mask)`` while ``fd`` is ready.  The descriptor stays the caller's."""

    def rewatch(self, fd: int, events: int) -> None:
        """Change what a watched descriptor is watched for; 0 leaves ERROR and HANGUP."""

    def unwatch(self, fd: int) -> None:
        """Stop watching; no callback of it runs after this returns.  Always before ``close(fd)``:
        epoll holds the open file description, which for a shared listener outlives our descriptor.
        """

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call once at ``when`` (of :meth:`now`) or soon after."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call in the loop's thread, in its next turn.  From any thread."""

    def run(self) -> None:
        """Turn until :meth:`stop`."""

    def stop(self) -> None:
        """Leave :meth:`run` at the end of this turn.  From the loop's thread."""

    def descriptors(self) -> list[int]:
        """The loop's own descriptors, which a forked child must close."""
