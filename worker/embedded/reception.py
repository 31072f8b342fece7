"""Clients come and go: the policy and the limits, a place in some thread, and who is told."""

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address
from quiesce.worker.core.termination import Termination
from quiesce.worker.daemon import Daemon as Engine
from quiesce.worker.embedded.admission import Admission, Verdict
from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import Connection
from quiesce.worker.embedded.guard import guarded
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.embedded.modes.thread_per_connection import ThreadPerConnection
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.embedded.sockets import address, as_socket
from quiesce.worker.net.acceptor import Listener

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
        on_connection: OnConnection | None,
        on_completed: OnCompleted | None,
    ) -> None:
        self._daemon = daemon
        self._admission = admission
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
        try:
            verdict = self._admission.judge(peer)
        except BaseException:
            sock.close()
            raise
        if verdict is Verdict.DENIED:
            sock.close()
            return
        if verdict is Verdict.ADMITTED:
            self.shell.accepted(seat, sock, peer, local)
        else:
            self.refuse(seat, sock, peer, local, "too many connections")

    def turn_away(self, seat: Seat, sock: socket.socket, peer: Address, local: Address) -> None:
        """The acceptor's: there are no descriptors left.  Whom the policy denies is told nothing now either."""
        try:
            verdict = self._admission.judge(peer)
        except BaseException:
            sock.close()
            raise
        if verdict is Verdict.DENIED:
            sock.close()
        else:
            self.refuse(seat, sock, peer, local)

    def refuse(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, why: str = "no descriptors left"
    ) -> None:
        """Tell one who was counted that there is no room.  In the thread that accepted, in every mode: this costs no
        other."""
        self.place(seat, sock, peer, local).refuse(Rejected(503, why, retry_after_s=1))

    def place(self, seat: Seat, sock: socket.socket, peer: Address, local: Address) -> Client:
        """In the seat's thread.  Who was admitted leaves again, whatever happens."""
        handle = Connection(self._daemon, seat, peer, local)

        def connect(
            engine: Engine, sock: socket.socket, peer: Address, local: Address, scheme: str, probe: bool
        ) -> Client:
            handle.client = Client(engine, sock, peer, local, scheme, handle)
            return handle.client

        seat.engine.connect = connect
        try:
            seat.engine.add_connection(sock, peer=peer, local=local)
        except BaseException:
            self._admission.leave(peer)
            raise
        if self._on_connection is not None:
            guarded(self._on_connection, handle, True)
        return handle.client

    def left(self, connection: Connection) -> None:
        """A connection's last word, in its thread."""
        if self._on_connection is not None:
            guarded(self._on_connection, connection, False)
        # After it: who waits until nobody is connected has been told of everybody.
        self._admission.leave(connection.peer)
        if isinstance(self.shell, ThreadPerConnection):
            self.shell.left(connection.seat)

    def request_ended(self, connection: Connection, state: Any, why: Termination) -> None:
        """A request's last word, in its connection's thread."""
        if self._on_completed is not None:
            guarded(self._on_completed, connection, state, why)
