"""The part of a connection that goes to another process, or came from one.  The loop's thread only.

A connection can go between two requests: then all there is to it is its socket, and what was read of the next head.
"""

from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from quiesce.worker.core.connection import State
from quiesce.worker.core.lane_record import MAX_INPUT_BYTES, Record
from quiesce.worker.loops.base import READ
from quiesce.worker.net.ending import CLOSED, FRESH, HEAD, IDLE, Ending

if TYPE_CHECKING:
    from quiesce.worker.core.request import Address

BETWEEN = (IDLE, FRESH, HEAD)
_STATES = {state.value: state for state in BETWEEN}
_NAMES = {state: state.value for state in BETWEEN}
# A deadline may have passed in the lane, with a request waiting in the socket: that gets its look first.
_GRACE_S = 1.0


class Moving(Ending):
    """See above."""

    __slots__ = ("_eof", "_events", "_input", "_leaves", "_parsing", "listener", "served")

    peer: "Address"
    local: "Address"
    scheme: str
    _eof: bool
    _events: int
    _input: bytes
    _parsing: bool

    def ready(self, events: int) -> None:
        """The loop's callback."""
        raise NotImplementedError

    def attend(self) -> None:
        """Serve it, from its first byte on."""
        self._events = READ
        self.daemon.loop.watch(self.fd, self.ready, READ)
        self.arm(self.daemon.limits.header_timeout)

    # -- to another process -------------------------------------------------------------------

    def can_move(self) -> bool:
        """May it go now?

        Under the lock: no thread of the pool is between its answer's last byte and the step to idle.
        """
        with self.lock:
            return self.is_between() and not self._parsing

    def is_between(self) -> bool:
        """Is there nothing to it but its socket and a few bytes?  Under the lock."""
        return (
            self.state in BETWEEN
            and self.exchange is None
            and not self._queue  # by the table it never has; what it cost if it had would be an answer
            and self._held is None
            and len(self._input) <= MAX_INPUT_BYTES
            and not (self.broken or self._eof or self.probe or self._leaves)
        )

    @property
    def has_input(self) -> bool:
        """Something was read that is not parsed."""
        return bool(self._input)

    def record(self) -> Record:
        """What must travel along."""
        state = self.state
        allowed = self.allowed_s(state)
        since = self._deadline - allowed if self._deadline < inf else monotonic()
        return Record(
            _NAMES[state], since, self.peer, self.local, self.scheme, self.listener, self._input, self.served
        )

    def allowed_s(self, state: State) -> float:
        """So long it may stay in this state; 0 = for ever."""
        limits = self.daemon.limits
        return limits.idle_timeout if state is IDLE else limits.header_timeout

    def let_go(self) -> None:
        """Cease to watch: from here on another process may read it.  :meth:`gone` or :meth:`stay` must follow."""
        self._leaves = True  # it may be in the mover's queue twice, and must not be sent twice
        self.daemon.loop.unwatch(self.fd)

    def gone(self) -> None:
        """It lies in the lane.  Our copy is closed without a word to the client, and whoever counted it forgets it."""
        self.state = (
            CLOSED  # the table's HANDED_OVER, and its RELEASE: ten thousand take this step in a breath
        )
        self._release()

    def stay(self) -> None:
        """It could not go: served here, for now."""
        self._leaves = False
        self.daemon.loop.watch(self.fd, self.ready, self._events)

    def _release(self) -> None:
        self.disarm()
        if self._received or self.sent != self._reported:
            self._report_traffic()
        self._set_busy(False)
        self._input = b""
        self.release()

    # -- from another process -----------------------------------------------------------------

    def arrive(self, record: Record, now: float) -> None:
        """Begin where it was there.  :meth:`go_on` must follow, once it is counted."""
        state = _STATES[record.state]
        if state is HEAD:
            self.state = HEAD  # the table's BYTES
        elif state is IDLE:
            self.state = IDLE  # the table's CAME_IDLE
        self.listener = record.listener
        self.served = record.requests
        self._input = record.input
        allowed = self.allowed_s(state)
        # Times go on, they do not begin again: a client cannot live for ever by being handed around.
        self._deadline = max(min(record.since, now) + allowed, now + _GRACE_S) if allowed else inf
        if state is HEAD:
            allowed = self.allowed_s(IDLE)
            self._since = now + allowed if allowed else inf
        self._events = READ
        self.daemon.loop.watch(self.fd, self.ready, READ)

    def go_on(self) -> None:
        """Look at what was read, as if it had been read just now; or, where everybody goes, go on from here."""
        if self.state is HEAD:
            self._set_busy(True)
        moving = self.daemon.moving
        if moving is not None and self.can_move():
            moving.fell_idle(self)
        else:
            self.go_on_here()

    def go_on_here(self) -> None:
        """Look at what was read and is not parsed.  Harmless when there is nothing."""
        with self.lock:
            if not self._input or self._parsing or self.state not in BETWEEN:
                return
            data, self._input = self._input, b""
        self._process(data)
        if not self.closed:
            self.update_interest()

    def _process(self, data: bytes) -> None:
        raise NotImplementedError
