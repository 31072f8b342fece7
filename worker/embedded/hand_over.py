"""The lanes of a library's daemon: the one that it hands over to, and those that it takes connections from."""

import socket
import threading
from collections.abc import Sequence

from quiesce.worker.embedded.seat import Seat


class HandOver:
    """Owns the socket that it hands over to.  From any thread, but for one call of a kind at a time."""

    def __init__(self) -> None:
        self.lane: socket.socket | None = None
        self._lock = threading.Lock()
        self._moved = 0
        self._received = 0

    def to(self, seats: Sequence[Seat], sock: socket.socket | None) -> int:
        """Have these seats hand over to it, or keep what they have; returns how many have moved to the last one."""
        if sock is not None:
            _check(sock)
        with self._lock:
            old, self.lane = self.lane, sock  # first: a seat that is made meanwhile looks here
            if sock is not None:
                self._moved = 0
        if sock is not old:
            for seat in seats:
                seat.do(lambda seat=seat: seat.hand_over(sock))  # type: ignore[misc]
            if old is not None:
                old.close()
        return self._moved

    def receive(self, seats: Sequence[Seat], sock: socket.socket) -> None:
        """Have these seats take what comes.  Takes the socket."""
        _check(sock)
        self._received += 1
        name = f"lane {self._received}"
        with sock:
            for seat in seats:
                seat.do(lambda seat=seat: seat.receive(name, sock))  # type: ignore[misc]

    def count_one(self) -> None:
        """One has moved.  In its seat's thread."""
        with self._lock:
            self._moved += 1

    def close(self) -> None:
        lane, self.lane = self.lane, None
        if lane is not None:
            lane.close()


def _check(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        raise ValueError("connections are handed over on a unix socket of type SOCK_SEQPACKET")
