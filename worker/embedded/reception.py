"""Clients come and go: the policy and the limits, a place in some thread, and who is told."""

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.rejected import Rejected, reply
from quiesce.worker.core.request import Address
from quiesce.worker.embedded.admission import Admission, Verdict
from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import Connection
from quiesce.worker.embedded.guard import guarded
from quiesce.worker.embedded.hand_over import HandOver
from quiesce.worker.embedded.kinds import Mode
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.embedded.modes.thread_per_connection import ThreadPerConnection
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.embedded.sockets import address, as_socket
from quiesce.worker.net.acceptor import Listener
from quiesce.worker.net.lane_reader import Arrival

if TYPE_CHECKING:
    from quiesce.worker.embedded.daemon import Daemon

OnConnection = Callable[[Connection, bool], None]


class Reception:
    """Owns each socket that comes here, until a connection does."""

    shell: ModeShell  # set before anybody comes

    def __init__(
        self,
        daemon: "Daemon",
        admission: Admission,
        hand_over: HandOver,
        on_connection: OnConnection | None,
    ) -> None:
        self._daemon = daemon
        self._admission = admission
        self._hand_over = hand_over
        # What the engines make a connection by.
        self.client = Client.of(
            daemon.discipline,
            tells=daemon.on_completed is not None,
            holds=daemon.mode is not Mode.THREAD_PER_CONNECTION,  # there a handler may block
        )
        self._on_connection = on_connection

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
        if self._admission.has_policy:
            verdict = self._judge(sock, peer)
            if verdict is Verdict.DENIED:
                return
        else:
            verdict = self._admission.enter(peer)
        if not seat.watches_any and not seat.loop.can_watch(sock.fileno()):
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
        self,
        seat: Seat,
        sock: socket.socket,
        peer: Address,
        local: Address,
        record: Record | None = None,
        is_accepted: bool = False,
    ) -> Client:
        """In the seat's thread.  Who was admitted leaves again, whatever happens."""
        engine = seat.engine
        try:
            if is_accepted:
                client = engine.welcome(sock, peer, local)
            elif record is None:
                client = engine.add_connection(sock, peer=peer, local=local)
            else:
                clients = engine.adopt([Arrival(record, sock, peer)])
                if not clients:
                    raise OSError(errno.EINVAL, "it came by a lane, and cannot be watched")
                client = clients[0]
        except BaseException:
            sock.close()
            self._admission.leave(peer)
            raise
        assert isinstance(client, Client)
        if self._on_connection is not None:
            guarded(self._daemon.complain, self._on_connection, client.handle, True)
        if record is not None:
            client.go_on()
        lane = self._hand_over.lane
        if lane is not None and seat not in self.shell.seats:  # one that was made for this client
            seat.hand_over(lane)
        return client

    def left(self, client: Client) -> None:
        """A client's last word, in its thread."""
        if self._on_connection is not None:
            guarded(self._daemon.complain, self._on_connection, client.handle, False)
        # After it: who waits until nobody is connected has been told of everybody.
        self._admission.leave(client.peer)
        if isinstance(self.shell, ThreadPerConnection):
            self.shell.left(client.daemon.seat)

    def moved(self, client: Client) -> None:
        """The same, but the client lives on elsewhere."""
        self._hand_over.count_one()
        self.left(client)
