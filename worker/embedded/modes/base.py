"""What the daemon needs of a mode: seats, and a place for each client."""

import socket
from collections.abc import Callable
from typing import Protocol

from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.net.stream import Connection

Place = Callable[[Seat, socket.socket, Address, Address, Record | None, bool], Connection]
"""The daemon's: makes a connection of a socket that it owns from then on.  In the seat's thread.  The record is that of
a connection which another daemon has served.  True: the seat's own acceptor has just accepted it."""


class Mode(Protocol):
    """Made before anything runs."""

    seats: list[Seat]
    """Those that accept, if there is a listener."""

    is_external: bool
    """The application turns the loop."""

    def start(self) -> None:
        """Have the loops turn."""

    def accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> None:
        """Serve a client that this seat accepted, or that came to it by a lane.  In its thread."""

    def add(self, sock: socket.socket, peer: Address, local: Address) -> None:
        """Serve a client that comes from elsewhere.  From any thread; owns the socket in any case.

        Raises:
            OSError, ValueError: It cannot be watched.
        """

    def all_seats(self) -> list[Seat]:
        """Those that accept, and those that serve one client each."""

    def stop(self) -> None:
        """Cut all clients, end all threads, release all loops."""
