"""One deadline for each connection, which costs a request nothing but an attribute."""

import socket
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from quiesce.worker.loops.base import Loop, Timer
from quiesce.worker.net.output import Output

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon


class Timed(Output):
    """A socket's sending side with a deadline.

    The loop's timer is looked at lazily: it comes when it was set for, finds that the deadline has moved, and is set
    again.  A thread of the pool that makes a connection idle only stores ``_deadline``; that is enough because
    the timer never is further away than ``recheck_s``.
    """

    __slots__ = ("_deadline", "_timer", "_timer_at", "daemon")

    def __init__(self, sock: socket.socket, daemon: "Daemon") -> None:
        Output.__init__(self, sock)
        self.daemon = daemon
        self._timer: Timer | None = None
        self._timer_at = inf
        self._deadline = inf

    def arm(self, seconds: float) -> None:
        """Something is due in so many seconds; 0 = nothing is.

        An attribute in the usual case: a timer that comes too early looks here and sets itself again, so
        requests cost no heap operation.
        """
        now = monotonic()
        deadline = self._deadline = now + seconds if seconds else inf
        if deadline < self._timer_at:
            self._look_at(deadline, now)

    def _look_at(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Never further away than this: a thread of the pool that makes us idle sets only the attribute.
        self._timer_at = min(deadline, now + self.daemon.recheck_s)
        self._timer = self.daemon.loop.call_at(self._timer_at, self)

    def __call__(self) -> None:
        """The timer's: the connection is its own callback, for a bound method more would be 64 bytes for each one."""
        self._timer = None
        self._timer_at = inf
        now = monotonic()
        deadline = self._deadline
        if deadline > now:
            self._look_at(deadline, now)
        else:
            self.late()

    def disarm(self) -> None:
        """Nothing is due any more, for good."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def late(self) -> None:
        """The deadline has passed."""
        raise NotImplementedError


class Together:
    """One timer for connections that came in one packet: ten thousand of them would be ten thousand steps of a heap.

    Whoever needs to be looked at earlier than the others gets a timer of its own, and is left to it.
    """

    def __init__(self, loop: Loop, recheck_s: float, members: Sequence[Timed]) -> None:
        self._loop = loop
        self._recheck_s = recheck_s
        self._members = members
        self._set(monotonic())

    def _set(self, now: float) -> None:
        when = now + self._recheck_s  # as in Timed: a deadline that moves is only stored
        for member in self._members:
            if member._deadline < when:
                when = member._deadline
        for member in self._members:
            member._timer_at = when
        if self._members:
            self._loop.call_at(when, self._look)

    def _look(self) -> None:
        now = monotonic()
        late: list[Timed] = []
        left: list[Timed] = []
        for member in self._members:
            if member._timer is None and not member.closed:
                (late if member._deadline <= now else left).append(member)
        self._members = left
        self._set(now)
        for member in late:
            member._timer_at = inf
            member.late()
