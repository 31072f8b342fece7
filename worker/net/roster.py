"""Who is connected, and how many of each address.  The loop's thread only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quiesce.worker.core.request import Address
from quiesce.worker.net import counters as figures
from quiesce.worker.net.counters import Counters
from quiesce.worker.net.ending import Ending
from quiesce.worker.net.moving import Moving

if TYPE_CHECKING:
    from quiesce.worker.net.stream import Connection


class Roster:
    """Counts them in the daemon's figures as well; probes are in ``all`` only.

    Args:
        counts_ip: Addresses are counted.
    """

    def __init__(self, counters: Counters, *, counts_ip: bool) -> None:
        # In the order in which they came; of ten thousand, a set would take three times as much room.
        self.all: dict[Connection, None] = {}
        self._counters = counters
        self._counts_ip = counts_ip
        self._by_ip: dict[str, int] = {}

    def add(self, connection: "Connection") -> None:
        """One came."""
        self.all[connection] = None
        if not connection.probe:
            self._counters.connection(1, 0)

    def remove(self, connection: Ending) -> None:
        """One has gone."""
        self.all.pop(connection, None)  # type: ignore[call-overload]
        self._uncount_ip(connection)
        busy, connection.busy = connection.busy, False
        if not connection.probe:
            self._counters.connection(-1, -busy)

    def came(self, connections: Sequence["Connection"]) -> None:
        """These came by a lane."""
        self.all.update(dict.fromkeys(connections))
        if self._counts_ip:
            for connection in connections:
                self.count_ip(connection, connection.peer)
        self._counters.connection(len(connections), 0)
        self._counters.count(figures.HANDED_IN, len(connections))

    def went(self, connections: Sequence[Moving]) -> None:
        """These went into a lane."""
        for connection in connections:
            self.all.pop(connection, None)  # type: ignore[call-overload]
            self._uncount_ip(connection)
        self._counters.connection(-len(connections), 0)
        self._counters.count(figures.HANDED_OUT, len(connections))

    def count_ip(self, connection: Ending, peer: Address) -> int:
        """How many its address has, with this one; 0: it is not counted."""
        if not self._counts_ip or not peer:
            return 0
        ip = connection.ip = peer[0]
        count = self._by_ip[ip] = self._by_ip.get(ip, 0) + 1
        return count

    def _uncount_ip(self, connection: Ending) -> None:
        if connection.ip:
            left = self._by_ip[connection.ip] - 1
            if left:
                self._by_ip[connection.ip] = left
            else:
                del self._by_ip[connection.ip]
