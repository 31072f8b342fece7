"""A thread that accepts, and one for each client: a handler may block, and keeps nobody else waiting."""

import errno
import socket
import threading
from collections.abc import Callable

from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.modes.base import Place
from quiesce.worker.embedded.seat import Seat


class ThreadPerConnection:
    """See :class:`quiesce.worker.embedded.modes.base.Mode`."""

    is_external = False

    def __init__(
        self,
        seat: Seat,
        place: Place,
        make_seat: Callable[[], Seat],
        lost: Callable[[Address], None],
        refuse: Callable[[Seat, socket.socket, Address, Address], None],
    ) -> None:
        self.seats = [seat]
        self._place = place
        self._refuse = refuse  # a client for whom there is no room; by the seat that accepted it
        self._make_seat = make_seat
        self._lost = lost  # told of a client that never got a place
        self._lock = threading.Lock()
        self._serving: set[Seat] = set()
        self._ended: list[Seat] = []  # hold nothing any more but a thread that returns
        self._stopping = False

    def start(self) -> None:
        self.seats[0].start("quiesce-accept")

    def accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> None:
        self._clear_up()
        try:
            own = self._make_seat()
        except OSError:  # there was a descriptor for the client, and none for its loop
            self._refuse(seat, sock, peer, local)
            return
        if not self._begin(own, sock, peer, local, record):
            self._refuse(seat, sock, peer, local)

    def add(self, sock: socket.socket, peer: Address, local: Address, record: Record | None = None) -> None:
        self._clear_up()
        try:
            seat = self._make_seat()
        except BaseException:
            sock.close()
            self._lost(peer)
            raise
        if not self._begin(seat, sock, peer, local, record):
            sock.close()
            self._lost(peer)
            raise OSError(errno.EAGAIN, "no thread can be started for this client")

    def _begin(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None
    ) -> bool:
        """Have it served by a thread of this seat's own.  False: there is none; the socket is the caller's."""
        with self._lock:
            if self._stopping:
                sock.close()
                self._lost(peer)
                seat.close()
                return True
            self._serving.add(seat)
            # Under the lock, so that whoever stops us finds a thread in every seat.
            try:
                seat.start(
                    "quiesce-client",
                    lambda: self._serve(seat, sock, peer, local, record),
                    lambda: self._over(seat),
                )
            except (
                RuntimeError
            ):  # "can't start new thread": of the machine, the user, or the memory for its stack
                self._serving.discard(seat)
                seat.engine.close()
                seat.close()
                return False
        return True

    def _serve(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None
    ) -> None:
        try:
            self._place(seat, sock, peer, local, record, False)
        except OSError as exc:  # the socket is closed: this client is lost, nobody else
            seat.loop.complain(f"cannot serve a client: {exc}", None)
            self.left(seat)

    def left(self, seat: Seat) -> None:
        """This seat's client has gone.  In its thread."""
        if seat not in self.seats:
            seat.loop.call_soon_threadsafe(
                seat.stop
            )  # in a turn of its own, when the engine is through with it

    def _over(self, seat: Seat) -> None:
        with self._lock:
            self._serving.discard(seat)
            self._ended.append(seat)

    def _clear_up(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for seat in ended:
            seat.close()

    def all_seats(self) -> list[Seat]:
        with self._lock:
            return [*self.seats, *self._serving]

    def stop(self) -> None:
        accepting = self.seats[0]
        accepting.do(accepting.stop)
        accepting.close()
        with self._lock:
            self._stopping = True
            serving = list(self._serving)
        for seat in serving:
            seat.do(seat.stop)
            seat.close()
        self._clear_up()
