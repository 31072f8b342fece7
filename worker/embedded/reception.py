"""Clients come and go: the policy and the limits, a place in some thread, and who is told."""

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.rejected import Rejected, reply
from quiesce.worker.core.request import Address
from quiesce.worker.core.termination import Termination
from quiesce.worker.daemon import Daemon as Engine
from quiesce.worker.embedded.admission import Admission, Verdict
from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import Connection
from quiesce.worker.embedded.guard import guarded
from quiesce.worker.embedded.hand_over import HandOver
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.embedded.modes.thread_per_connection import ThreadPerConnection
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.embedded.sockets import address, as_socket
from quiesce.worker.net.acceptor import Listener
from quiesce.worker.net.lane_reader import Arrival

if TYPE_CHECKING:
    from quiesce.worker.embedded.daemon import Daemon

OnConnection = Callable[[Connection, bool], None]
OnCompleted = Callable[[Connection, Any, Termination], None]


class Reception:
    """Owns each socket that comes here, until a connection does."""

    shell: ModeShell  # set before anybody comes

    def __init__(
        self,
        daemon: "Daemon",
        admission: Admission,
        hand_over: HandOver,
        on_connection: OnConnection | None,
        on_completed: OnCompleted | None,
    ) -> None:
        self._daemon = daemon
        self._admission = admission
        self._hand_over = hand_over
        self._client = Client.of(daemon.discipline)
        self._on_connection = on_connection
        self._on_completed = on_completed

    def add(self, sock: socket.socket | int, peer: Address) -> None:
        """See :meth:`quiesce.worker.embedded.daemon.Daemon.add_connection`."""
        owned = as_socket(sock)
        try:
            if self._daemon.is_stopping:
                raise QuiesceError("the daemon does not run")
            owned.setblocking(False)
            peer = peer or address(owned, owned.getpeername)
            local = address(owned, owned.getsockname)
            verdict = self._admission.judge(peer)
        except BaseException:
            owned.close()
            raise
        if verdict is not Verdict.ADMITTED:
            owned.close()
            if verdict is Verdict.DENIED:
                raise PermissionError(errno.EACCES, "the accept policy turns this client away")
            self._admission.leave(peer)
            raise OSError(errno.ENFILE, "a limit on the number of connections is reached")
        try:
            self.shell.add(owned, peer, local)
        except ValueError as exc:
            raise OSError(errno.ENFILE, str(exc)) from exc

    def accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, listener: Listener
    ) -> None:
        """The acceptor's: a client has come.  In the seat's thread."""
        verdict = self._judge(sock, peer)
        if verdict is Verdict.DENIED:
            return
        if not seat.loop.can_watch(sock.fileno()):
            self._turn_away_unwatched(seat, sock, peer)
        elif verdict is Verdict.ADMITTED:
            self.shell.accepted(seat, sock, peer, local)
        else:
            self.refuse(seat, sock, peer, local, "too many connections")

    def _judge(self, sock: socket.socket, peer: Address) -> Verdict:
        """May it come?  Whom the policy denies, or fails over, is closed without a word."""
        verdict = Verdict.DENIED
        try:
            verdict = self._admission.judge(peer)
        finally:
            if verdict is Verdict.DENIED:
                sock.close()
        return verdict

    def _turn_away_unwatched(self, seat: Seat, sock: socket.socket, peer: Address) -> None:
        """The loop cannot watch this one, so it is told so without waiting for anything."""
        rejected = Rejected(503, "select can watch no more", retry_after_s=1)
        try:
            sock.send(reply(rejected, seat.engine.dates.date()), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has gone
        sock.close()
        self._admission.leave(peer)

    def turn_away(self, seat: Seat, sock: socket.socket, peer: Address, local: Address) -> None:
        """The acceptor's: there are no descriptors left.  Whom the policy denies is told nothing now either."""
        if self._judge(sock, peer) is not Verdict.DENIED:
            self.refuse(seat, sock, peer, local)

    def refuse(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, why: str = "no descriptors left"
    ) -> None:
        """Tell one who was counted that there is no room.  In the thread that accepted, in every mode: this costs no
        other."""
        self.place(seat, sock, peer, local).refuse(Rejected(503, why, retry_after_s=1))

    def taken(self, seat: Seat, arrivals: list[Arrival]) -> None:
        """By a lane: no policy and no limit turns them away, for they were let in.  In the seat's thread."""
        for record, sock, peer in arrivals:
            self._admission.enter(peer)
            try:
                self.shell.accepted(seat, sock, peer, record.local, record)
            except Exception as exc:  # the others are not to blame; the socket is closed
                self._daemon.complain(f"cannot serve a client: {exc}", None)

    def place(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> Client:
        """In the seat's thread.  Who was admitted leaves again, whatever happens."""
        handle = Connection(self._daemon, seat, peer, local)

        def connect(
            engine: Engine, sock: socket.socket, peer: Address, local: Address, scheme: str, probe: bool
        ) -> Client:
            handle.client = self._client(engine, sock, peer, local, scheme, handle)
            return handle.client

        seat.engine.connect = connect
        try:
            if record is None:
                seat.engine.add_connection(sock, peer=peer, local=local)
            elif not seat.engine.adopt([Arrival(record, sock, peer)]):
                raise OSError(errno.EINVAL, "it came by a lane, and cannot be watched")
        except BaseException:
            self._admission.leave(peer)
            raise
        if self._on_connection is not None:
            guarded(self._daemon.complain, self._on_connection, handle, True)
        if record is not None:
            handle.client.go_on()
        lane = self._hand_over.lane
        if lane is not None and seat not in self.shell.seats:  # one that was made for this client
            seat.hand_over(lane)
        return handle.client

    def left(self, connection: Connection) -> None:
        """A connection's last word, in its thread."""
        if self._on_connection is not None:
            guarded(self._daemon.complain, self._on_connection, connection, False)
        # After it: who waits until nobody is connected has been told of everybody.
        self._admission.leave(connection.peer)
        if isinstance(self.shell, ThreadPerConnection):
            self.shell.left(connection.seat)

    def moved(self, connection: Connection) -> None:
        """The same, but the client lives on elsewhere."""
        self._hand_over.count_one()
        self.left(connection)

    def request_ended(self, connection: Connection, state: Any, why: Termination) -> None:
        """A request's last word, in its connection's thread."""
        if self._on_completed is not None:
            guarded(self._daemon.complain, self._on_completed, connection, state, why)
