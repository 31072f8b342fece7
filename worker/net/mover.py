"""Gives connections away, as many at a time as the lane takes.  The loop's thread only.

While there is a target, each connection is looked at when the target is named and when it falls idle; those that can
move go together, in packets.  When the lane takes none, all stay and are served here, and a timer looks at all again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quiesce.worker.core.lane_record import ENVELOPE_BYTES, MAX_CONNECTIONS, MAX_PACKET_BYTES, packet, write
from quiesce.worker.loops.base import Timer
from quiesce.worker.net.ending import IDLE
from quiesce.worker.net.lane_writer import Target, is_gone
from quiesce.worker.net.moving import BETWEEN, Moving

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon

_PACKETS_A_TURN = 2  # some 500 connections, 4 ms: who stays is served in between
_RETRY_S = (0.02, 0.5)  # twice as late each time

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
        self._stopped: list[Moving] = []  # of them: with a request that was not parsed because they wait
        self._share = 0  # most of a packet, so that each reader gets its part; 0 = a new round begins
        self._timer: Timer | None = None
        self._retry_s = _RETRY_S[0]
        self._scheduled = False
        self._missed = False  # somebody fell idle while nobody could move
        self._is_through = False  # all that could move when there came a target have moved, and that was said

    def to(self, target: Target | None, on_moved: Moved | None = None) -> None:
        """Hand over to this one from now on, to none: keep all.

        ``on_moved`` is called once: when each connection that could move by now has moved, or when there is another
        order.
        """
        self._aim(target)
        self._say()
        self.moved = 0
        self._is_through = False
        self._on_moved = on_moved
        if target is None:
            self._keep()
            self._waiting.clear()
            self._say()
        else:
            self._look_at_all()

    def stop(self) -> None:
        """Keep all from now on."""
        if self.target is not None:
            self._aim(None)
            self._keep()
            self._waiting.clear()
            self._say()

    def _aim(self, target: Target | None) -> None:
        # Without a moment in between that has no target: in a drain, answers would be last ones in it.
        before, self.target = self.target, target
        if before is not None:
            before.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if before is not None or target is not None:
            self._daemon.aimed()

    def _say(self) -> None:
        callback, self._on_moved = self._on_moved, None
        if callback is not None:
            callback(self.moved, self._daemon.open)

    def fell_idle(self, connection: Moving) -> None:
        """This one may have become one that can move."""
        self._waiting.append(connection)
        if connection.has_input:
            self._stopped.append(connection)
        self._soon()

    def takes(self, connection: Moving) -> bool:
        """Something came on it: shall that wait, unread, until it has moved?

        Whoever was told that all have moved counts on it that nobody here answers what comes now.  Before that there
        may be many to move, and they are served in between.
        """
        if not self._is_through or connection.has_input or not connection.can_move():
            return False
        self.fell_idle(connection)
        return True

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._daemon.loop.call_soon_threadsafe(self._turn)

    def _look_at_all(self) -> None:
        self._timer = None
        self._daemon.moving = self
        self._share = 0
        self._waiting = deque(self._daemon.roster.all)
        self._missed = False
        self._soon()

    def _again(self) -> None:
        """After a pause: first those who waited, then all; who fell idle meanwhile did not say so."""
        self._timer = None
        self._daemon.moving = self
        self._missed = True
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
        while self._daemon.moving is self:
            if not self._packet():
                self._round_over()
                if not self._waiting:
                    return

    def _round_over(self) -> None:
        if self._daemon.moving is self:
            self._share = 0
            self._stopped.clear()
            if self._missed:
                self._look_at_all()
                return
            self._is_through = True
            self._say()
        self._daemon.check_empty()

    def _packet(self) -> bool:
        """Send one; False: there is nobody to send, or no room."""
        target = self.target
        assert target is not None
        if not self._waiting:
            return False
        if not self._share:
            movable = sum(connection.state in BETWEEN for connection in self._waiting)
            self._share = min(max(-(-movable // target.readers), 1), MAX_CONNECTIONS)
        most = min(target.room(), self._share)
        if not most:
            self._pause()
            return False
        batch, records = self._gather(most, target.version)
        if not batch:
            return False
        return self._send(target, batch, records)

    def _gather(self, most: int, version: int) -> tuple[list[Moving], list[bytes]]:
        batch: list[Moving] = []
        records: list[bytes] = []
        room = MAX_PACKET_BYTES - ENVELOPE_BYTES
        waiting = self._waiting
        while waiting and len(batch) < most:
            connection = waiting.popleft()
            if not connection.can_move():
                continue
            record = write(connection.record(), version)
            room -= len(record) + 1
            if room >= 0:
                connection.let_go()  # before the packet leaves: at most one process ever reads a client's socket
                batch.append(connection)
                records.append(record)
            elif batch:
                waiting.appendleft(connection)
                break
            else:  # too much for any packet
                room = MAX_PACKET_BYTES - ENVELOPE_BYTES
                connection.go_on_here()
        return batch, records

    def _send(self, target: Target, batch: list[Moving], records: list[bytes]) -> bool:
        failure = _pass_on(self._daemon, target, batch, records)
        if failure is None:
            self.moved += len(batch)
            self._retry_s = _RETRY_S[0]
            return True
        self._waiting.extendleft(batch)
        if not is_gone(failure):
            self._pause()
            return False
        self._daemon.hear()  # who ends a lane says into which other one before that
        if self.target is not target:
            return self._daemon.moving is self
        self.stop()
        return False

    def _pause(self) -> None:
        """The lane takes none: everybody is served here until we look again."""
        when = self._daemon.loop.now() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
        self._timer = self._daemon.loop.call_at(when, self._again)
        self._keep()

    def _keep(self) -> None:
        """Nobody moves now; those who waited to are served on."""
        self._daemon.moving = None
        stopped, self._stopped = self._stopped, []
        for connection in stopped:
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
            records = [write(connection.record(), target.version) for connection in batch]
            for connection in batch:
                connection.let_go()
            if _pass_on(daemon, target, batch, records) is not None:
                break
            moved += len(batch)
        return moved
    finally:
        target.close()


def _pass_on(
    daemon: "Daemon", target: Target, batch: Sequence[Moving], records: list[bytes]
) -> OSError | None:
    """Put these, who were let go, into the lane; on failure they are as they were."""
    try:
        target.send(packet(records, target.version), [connection.fd for connection in batch])
    except OSError as exc:
        for connection in batch:
            connection.stay()
        return exc
    for connection in batch:
        connection.gone()
    daemon.roster.went(batch)
    return None
