"""One deadline for each connection, which costs a request nothing but an attribute."""

import socket
from collections.abc import Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from quiesce.worker.loops.base import Loop, Timer
from quiesce.worker.net.output import Output

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon

_SOON_S = 1.0  # who is due earlier than that has a timer of its own


class Timed(Output):
    """A socket's sending side with a deadline.

    ``_deadline`` may be stored by anybody, also by a thread of the pool that makes a connection idle: the sweep looks
    at it before it can be over.  Who wants it looked at earlier says so by :meth:`arm`.
    """

    __slots__ = ("_deadline", "_timer", "daemon")

    def __init__(self, sock: socket.socket, daemon: "Daemon") -> None:
        Output.__init__(self, sock)
        self.daemon = daemon
        self._timer: Timer | None = None  # while it is due soon
        self._deadline = inf

    def arm(self, seconds: float) -> None:
        """Something is due in so many seconds; 0 = nothing is.

        An attribute in the usual case: the next sweep comes earlier, so this costs no heap operation.
        """
        now = monotonic()
        self._deadline = now + seconds if seconds else inf
        self.look_at_deadline(now)

    def look_at_deadline(self, now: float) -> None:
        """See to it that it is looked at when it is over.  In the loop's thread."""
        deadline, sweep = self._deadline, self.daemon.sweep
        if sweep.at == inf or now + _SOON_S <= deadline < sweep.at:
            sweep.come_by(max(deadline, now + _SOON_S), now)
        if deadline < sweep.at:
            self.disarm()
            self._timer = self.daemon.loop.call_at(deadline, self)

    def __call__(self) -> None:
        """The timer's: the connection is its own callback, for a bound method more would be 64 bytes for each one."""
        self._timer = None
        now = monotonic()
        if self._deadline > now:
            self.look_at_deadline(now)
        else:
            self.late()

    def disarm(self) -> None:
        """It needs no timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def late(self) -> None:
        """The deadline has passed."""
        raise NotImplementedError


class Sweep:
    """One timer for all connections: with one for each, an idle connection would be 200 bytes larger.

    It looks at every deadline before the first of them is over, and gives those that are due soon timers of their own.
    That is a step for each connection, once a second at most, and once in ``recheck_s`` at least: a deadline that was
    only stored is never nearer than that.
    """

    def __init__(self, loop: Loop, recheck_s: float, members: Iterable[Timed]) -> None:
        self._loop = loop
        self._recheck_s = recheck_s
        self._members = members  # whoever is connected, at any time
        self._timer: Timer | None = None
        self.at = inf  # when it comes; inf: nobody is connected

    def come_by(self, when: float, now: float) -> None:
        """Come at this time, or earlier."""
        self.rest()
        self.at = min(when, now + self._recheck_s)
        self._timer = self._loop.call_at(self.at, self._look)

    def rest(self) -> None:
        """Nobody is connected."""
        self.at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        soon, when = now + _SOON_S, inf
        due: list[Timed] = []
        someone = False
        for member in self._members:
            someone = True
            deadline = member._deadline
            if deadline < soon:
                due.append(member)
            elif deadline < when:
                when = deadline
        if someone:
            self.come_by(when, now)
        else:
            self.rest()
        for member in due:
            member.look_at_deadline(now)
