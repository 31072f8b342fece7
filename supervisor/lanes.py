"""The lanes: socket pairs on which live connections go to the workers of one generation.

The supervisor keeps both ends of each and reads and writes neither: what was sent to a worker that died is
read by another.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from quiesce.shared.channel import make_pair
from quiesce.shared.logs import Log
from quiesce.supervisor import fdnames
from quiesce.supervisor.core.lanes import Terms
from quiesce.supervisor.fdstore import Keeping

BUFFER_BYTES = 1 << 20  # the kernel gives what it allows; by default three full packets would fit


class Lane:
    """One pair.  Owns both ends.

    Attributes:
        key: 16 hex digits, never used again: its name in the descriptor store.
        name: What workers call it.
        ended: Nothing can be sent any more; what lies in it can still be read.
    """

    def __init__(self, key: str, release: str, reading: socket.socket, writing: socket.socket) -> None:
        self.key = key
        self.name = f"{release}-{key[:6]}"  # two generations may be of one release
        self.reading = reading
        self.writing = writing
        self.ended = False

    def depth(self) -> int:
        """How many connections lie in it now; 0 where the kernel does not tell.

        Source: proc_pid_fdinfo(5) ``scm_fds``, Linux 5.6.
        """
        try:
            text = Path(f"/proc/self/fdinfo/{self.reading.fileno()}").read_text()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("scm_fds:")), 0)

    def end(self) -> None:
        """Let nobody send any more: who reads sees the end behind what lies in it.  (No listener: this is ours.)"""
        self.ended = True
        try:
            self.writing.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was

    def close(self) -> None:
        self.reading.close()
        self.writing.close()


class Named(NamedTuple):
    """A lane as a writer is told of it."""

    lane: Lane
    terms: Terms


class Lanes:
    """All of them.  Owns them."""

    def __init__(self, store: Keeping, log: Log) -> None:
        self._store = store
        self._log = log
        self._lanes: dict[str, Lane] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def get(self, key: str) -> Lane | None:
        return self._lanes.get(key)

    def make(self, release: str) -> Lane | None:
        """A new one, stored before anybody hears of it.  None: no descriptors; connections stay where they are."""
        try:
            reading, writing = make_pair()
        except OSError as exc:
            self._log.warning("no lane: connections stay where they are", release=release, error=exc.strerror)
            return None
        lane = self._add(os.urandom(8).hex(), release, reading, writing)
        self._store.put(fdnames.lane_read(lane.key), reading.fileno())
        self._store.put(fdnames.lane_write(lane.key), writing.fileno())
        return lane

    def recall(self, key: str, release: str, kept: dict[str, int]) -> Lane | None:
        """The one that another supervisor has left.  None: it is lost; what ``kept`` has of it stays there.

        Args:
            key: From the state.
            release: Of its generation.
            kept: Descriptors by name, from the store; both ends are taken out.
        """
        names = fdnames.lane_read(key), fdnames.lane_write(key)
        if not all(name in kept for name in names):
            return None
        reading, writing = (socket.socket(fileno=kept.pop(name)) for name in names)
        return self._add(key, release, reading, writing)

    def _add(self, key: str, release: str, reading: socket.socket, writing: socket.socket) -> Lane:
        writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        lane = self._lanes[key] = Lane(key, release, reading, writing)
        return lane

    def drop(self, lane: Lane) -> None:
        """Nobody needs it any more: out of the store, then closed."""
        if self._lanes.pop(lane.key, None) is not None:
            self._store.drop(fdnames.lane_read(lane.key))
            self._store.drop(fdnames.lane_write(lane.key))
            lane.close()

    def close(self) -> None:
        """Let go of all, and leave them in the store: they are the next supervisor's."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
