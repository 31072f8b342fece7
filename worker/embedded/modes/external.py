"""The application turns the loop: ``run``, ``run_wait``, ``run_from_select``."""

import socket

from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.modes.base import Place
from quiesce.worker.embedded.seat import Seat


class External:
    """See :class:`quiesce.worker.embedded.modes.base.Mode`.  One seat, no thread."""

    is_external = True

    def __init__(self, seat: Seat, place: Place) -> None:
        self.seats = [seat]
        self._place = place

    def start(self) -> None:
        pass

    def accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> None:
        self._place(seat, sock, peer, local, record, record is None)

    def add(self, sock: socket.socket, peer: Address, local: Address) -> None:
        self._place(self.seats[0], sock, peer, local, None, False)

    def all_seats(self) -> list[Seat]:
        return self.seats

    def stop(self) -> None:
        self.seats[0].stop()
        self.seats[0].close()
