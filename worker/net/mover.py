"""Gives connections away, as many at a time as the lane takes.  The loop's thread only.

While there is a target, each connection is looked at when the target is named and when it falls idle; those that can
move go together, in packets.  When the lane takes none, all stay and are served here, and a timer looks at all again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quiesce.worker.core.lane_record import MAX_CONNECTIONS, MAX_PACKET_BYTES, Record, encode, size
from quiesce.worker.loops.base import Timer
from quiesce.worker.net.ending import IDLE
from quiesce.worker.net.lane_writer import Target, is_gone
from quiesce.worker.net.moving import Moving

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon

_PACKETS_A_TURN = 2  # some 500 connections, 4 ms: who stays is served in between
_RETRY_S = (0.02, 0.5)  # twice as late each time
_ENVELOPE_BYTES = 32

Moved = Callable[[int, int], None]
"""Called with the number of connections that have moved, and of those that are still here."""


class Mover:
    """Owns the target that it is given."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self.target: Target | None = None
        self.moved = 0  # to this target
        self._on_moved: Moved | None = None
        self._waiting: deque[Moving] = deque()  # to be looked at
        self._share = 0  # most of a packet, so that each reader gets its part; 0 = a new round begins
        self._timer: Timer | None = None
        self._retry_s = _RETRY_S[0]
        self._scheduled = False

    def to(self, target: Target | None, on_moved: Moved | None = None) -> None:
        """Hand over to this one from now on, to none: keep all.

        ``on_moved`` is called once: when each connection that could move by now has moved, or when there is another
        order.
        """
        self.stop()
        self.moved = 0
        self._on_moved = on_moved
        self.target = target
        self._daemon.aimed()
        if target is None:
            self._say()
        else:
            self._look_at_all()

    def stop(self) -> None:
        """Keep all from now on."""
        target, self.target = self.target, None
        if target is None:
            return
        target.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._daemon.aimed()
        self._keep()
        self._say()

    def _say(self) -> None:
        callback, self._on_moved = self._on_moved, None
        if callback is not None:
            callback(self.moved, self._daemon.open)

    def fell_idle(self, connection: Moving) -> None:
        """This one may have become one that can move."""
        self._waiting.append(connection)
        self._soon()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._daemon.loop.call_soon_threadsafe(self._turn)

    def _look_at_all(self) -> None:
        self._timer = None
        self._daemon.moving = self
        self._share = 0
        self._waiting = deque(self._daemon.roster.all)
        self._soon()

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(_PACKETS_A_TURN):
            if self._daemon.moving is not self:
                return
            if not self._packet():
                self._round_over()
                return
        self._soon()

    def move_now(self) -> None:
        """Go on until nobody can move now, however long that takes."""
        while self._daemon.moving is self and self._packet():
            pass
        if self._daemon.moving is self:
            self._round_over()

    def _round_over(self) -> None:
        if self._daemon.moving is self:
            self._share = 0
            self._say()
        self._daemon.check_empty()

    def _packet(self) -> bool:
        """Send one; False: there is nobody to send, or no room."""
        target = self.target
        assert target is not None
        if not self._waiting:
            return False
        if not self._share:
            movable = min(max(self._daemon.idle, 1), len(self._waiting))
            self._share = min(-(-movable // target.readers), MAX_CONNECTIONS)
        most = min(target.room(), self._share)
        if not most:
            self._pause()
            return False
        batch, records = self._gather(most)
        if not batch:
            return False
        return self._send(target, batch, records)

    def _gather(self, most: int) -> tuple[list[Moving], list[Record]]:
        batch: list[Moving] = []
        records: list[Record] = []
        room = MAX_PACKET_BYTES - _ENVELOPE_BYTES
        waiting = self._waiting
        while waiting and len(batch) < most:
            connection = waiting.popleft()
            if not connection.can_move():
                continue
            record = connection.record()
            room -= size(record)
            if room >= 0:
                connection.let_go()  # before the packet leaves: at most one process ever reads a client's socket
                batch.append(connection)
                records.append(record)
            elif batch:
                waiting.appendleft(connection)
                break
            else:  # too much for any packet
                room = MAX_PACKET_BYTES - _ENVELOPE_BYTES
                connection.go_on_here()
        return batch, records

    def _send(self, target: Target, batch: list[Moving], records: list[Record]) -> bool:
        failure = _pass_on(self._daemon, target, batch, records)
        if failure is None:
            self.moved += len(batch)
            self._retry_s = _RETRY_S[0]
            return True
        self._waiting.extendleft(batch)
        if is_gone(failure):
            self.stop()
        else:
            self._pause()
        return False

    def _pause(self) -> None:
        """The lane takes none: everybody is served here until we look again."""
        when = self._daemon.loop.now() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
        self._timer = self._daemon.loop.call_at(when, self._look_at_all)
        self._keep()

    def _keep(self) -> None:
        """Nobody moves now; those who waited to are served on."""
        self._daemon.moving = None
        waiting, self._waiting = self._waiting, deque()
        for connection in waiting:
            connection.go_on_here()


def shed(daemon: "Daemon", count: int, target: Target) -> int:
    """Give so many idle connections away at once, or as many as the lane takes; returns how many.  Takes the target."""
    try:
        # Not those with input: their next request is here already.
        idle = [c for c in daemon.roster.all if c.state is IDLE and not c.has_input and c.can_move()]
        del idle[max(count, 0) :]
        share = min(-(-len(idle) // target.readers), MAX_CONNECTIONS // 2)
        moved = 0
        while batch := idle[moved : moved + min(share, target.room())]:
            records = [connection.record() for connection in batch]
            for connection in batch:
                connection.let_go()
            if _pass_on(daemon, target, batch, records) is not None:
                break
            moved += len(batch)
        return moved
    finally:
        target.close()


def _pass_on(
    daemon: "Daemon", target: Target, batch: Sequence[Moving], records: list[Record]
) -> OSError | None:
    """Put these, who were let go, into the lane; on failure they are as they were."""
    try:
        target.send(encode(records, target.version), [connection.fd for connection in batch])
    except OSError as exc:
        for connection in batch:
            connection.stay()
        return exc
    for connection in batch:
        connection.gone()
    daemon.roster.went(batch)
    return None
