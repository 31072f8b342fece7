"""Threads that turn a loop each and share the listener: one, or a pool of them."""

import socket
from itertools import cycle

from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.modes.base import Place
from quiesce.worker.embedded.seat import Seat


class PollingThreads:
    """See :class:`quiesce.worker.embedded.modes.base.Mode`.  Whoever accepts a client serves it."""

    is_external = False

    def __init__(self, seats: list[Seat], place: Place) -> None:
        self.seats = seats
        self._place = place
        self._next = cycle(seats)

    def start(self) -> None:
        for number, seat in enumerate(self.seats):
            seat.start(f"quiesce-poll-{number}")

    def accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> None:
        self._place(seat, sock, peer, local, record, record is None)

    def add(self, sock: socket.socket, peer: Address, local: Address) -> None:
        seat = next(self._next)
        seat.do(lambda: self._place(seat, sock, peer, local, None, False))

    def all_seats(self) -> list[Seat]:
        return self.seats

    def stop(self) -> None:
        for seat in self.seats:
            seat.do(seat.stop)
        for seat in self.seats:
            seat.close()
