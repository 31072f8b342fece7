"""The engine's connection that tells how each of its requests ended.  One loop's thread."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quiesce.worker.core.connection import Event, State
from quiesce.worker.core.discipline import Discipline, Leniency, mend
from quiesce.worker.core.http1 import request_line
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address, Request
from quiesce.worker.core.termination import Termination, cause
from quiesce.worker.net.deadline import Timed
from quiesce.worker.net.ending import FLUSHING, IDLE, LINGERING, SENDING, SKIPPING, WORKING
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.output import FLAGS
from quiesce.worker.net.stream import Connection as EngineConnection

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon as Engine
    from quiesce.worker.embedded.connection import Connection


STAYS = (WORKING, SENDING, SKIPPING, FLUSHING)  # a FIN ends nothing here: what was asked for is answered
BEFORE_A_REQUEST = (State.FRESH, State.IDLE, State.HEAD)


class Client(EngineConnection):
    """Adds to the engine's connection: its public side, a timeout of its own, and the reason of each end.

    A request has ended when its answer is all sent, or never will be: that is said once, to ``handle``.  Here the
    loop's thread does everything, so what the engine guards against threads of a pool needs no guard.
    """

    __slots__ = ("_answered", "_at_fault", "_cause", "handle", "timeout_s", "trailers")
    _last_flags = FLAGS  # an answer is told to have been sent when it has been

    def __init__(
        self,
        engine: "Engine",
        sock: socket.socket,
        peer: Address,
        local: Address,
        scheme: str,
        handle: "Connection",
    ) -> None:
        self.handle = handle
        self.timeout_s: float | None = None
        self.trailers: Sequence[tuple[bytes, bytes]] = ()
        self._answered: Exchange | None = None
        self._cause: Termination | None = None
        self._at_fault = False  # the application
        EngineConnection.__init__(self, engine, sock, peer, local, scheme, False)

    @classmethod
    def of(cls, discipline: Discipline) -> "type[Client]":
        """The kind for this level: the strict one has nothing of the others."""
        if discipline.forgives:
            return type("Lenient", (Forgiving, cls), {"__slots__": (), "forgives": discipline.forgives})
        return cls if discipline.empty_lines else type("Pedantic", (Pedantic, cls), {"__slots__": ()})

    def begin(self) -> None:
        """A request is shown to the application."""
        self._cause = None
        self._answered = None

    def _ended(self, why: Termination) -> None:
        self._answered = None
        if self._at_fault and why is Termination.COMPLETED_OK:
            why = Termination.WITH_ERROR
        self._at_fault = False
        self.handle.ended(why)
        if self.trailers:
            self.trailers = ()  # the next request may have no body, and then nobody would say so

    # -- what the engine does, listened to -----------------------------------------------------

    def event(self, event: Event, rejected: Rejected | None = None) -> None:
        if event is Event.PEER_DONE and self.broken:
            event = Event.LOST  # reset: a write has found out first, and taken the error from the read
        if (event is Event.SENT or event is Event.OVER) and self._answered is not None:
            self._ended(Termination.COMPLETED_OK)
        elif self._cause is None and not (event is Event.PEER_DONE and self.state in STAYS):
            self._cause = cause(event, rejected)
        EngineConnection.event(self, event, rejected)
        if self.exchange is None and self._answered is None and self.handle.has_request:
            self._ended(self._cause or Termination.READ_ERROR)  # the engine has taken it away

    def _part(self, data: bytes) -> None:
        EngineConnection._part(self, data)
        if self.state is State.HEAD and self._judged:
            self._saw_line()

    def refuse(self, rejected: Rejected) -> None:
        if self.state in BEFORE_A_REQUEST:
            self._saw_line()
        EngineConnection.refuse(self, rejected)

    def _begin_body(self, request: Request) -> None:
        self.handle.saw_target(request.target)
        EngineConnection._begin_body(self, request)

    def _saw_line(self) -> None:
        """Let the log have what was asked for, though its head is not complete, or will be refused."""
        line, eol, _ = self._input.partition(b"\r\n")
        if eol and self.handle.daemon.uri_log is not None:
            try:
                _, target, _ = request_line(line)
            except Rejected:
                return
            self.handle.saw_target(target)

    def complete(
        self, exchange: Exchange, keep: bool, data: bytes = b"", more: bytes = b"", now: float = 0.0
    ) -> None:
        if self.exchange is not exchange:
            return
        self._answered = exchange
        EngineConnection.complete(self, exchange, keep, data, more, now)
        if self._answered is exchange and self.state is IDLE:
            self._ended(Termination.COMPLETED_OK)
        if self.state is IDLE and self.timeout_s is not None:
            self.arm(self.timeout_s)

    def _another_follows(self, exchange: Exchange) -> bool:
        return False  # an answer is told to have been sent when it has been

    def _loud(self, heard: bool) -> None:
        EngineConnection._loud(self, heard)
        if self.broken and not self.closed:
            self.later(self._settle)  # epoll and poll would tell of it by themselves, select does not

    def _sent_all(self) -> None:
        EngineConnection._sent_all(self)
        self._ended(Termination.COMPLETED_OK)

    def abort(self, exchange: Exchange) -> None:
        self._cause = Termination.WITH_ERROR
        EngineConnection.abort(self, exchange)

    def at_fault(self) -> None:
        """Whatever is said now, it is not what was asked for."""
        self._at_fault = True

    def drop(self) -> None:
        """Close without a word: the application wants it so."""
        self._cause = Termination.WITH_ERROR
        self.event(Event.LOST)

    def cut(self) -> None:
        self._cause = Termination.DAEMON_SHUTDOWN
        EngineConnection.cut(self)

    def arm(self, seconds: float) -> None:
        own = self.timeout_s
        Timed.arm(self, seconds if own is None or self.state is LINGERING else own)

    def _body_done(self, payload: bytes) -> None:
        self.trailers = getattr(self._decoder, "trailers", ())
        EngineConnection._body_done(self, payload)

    def allowed_s(self, state: State) -> float:
        own = self.timeout_s
        return EngineConnection.allowed_s(self, state) if own is None else own

    def _release(self) -> None:
        EngineConnection._release(self)
        self.handle.moved()

    def _close(self) -> None:
        EngineConnection._close(self)
        # A request that is cut ends before its connection does.
        if self.handle.has_request:
            self._ended(self._cause or Termination.READ_ERROR)
        self.handle.closed()


class Forgiving(EngineConnection):
    """What the parser has refused is mended if the level forgives it, and read again."""

    __slots__ = ()
    forgives: frozenset[Leniency]

    def refuse(self, rejected: Rejected) -> None:
        if rejected.status == 400 and self.state in BEFORE_A_REQUEST:
            judged = self._judged if self.state is State.HEAD else 0
            mended, self._judged = mend(self._input, self.forgives, judged)
            if mended != self._input:
                self._process(mended)
                return
        super().refuse(rejected)


class Pedantic(EngineConnection):
    """An empty line is no request."""

    __slots__ = ()

    def _skip_empty_lines(self, data: bytes) -> bytes:
        return data
