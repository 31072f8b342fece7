"""The engine's connection that tells how each of its requests ended.  One loop's thread."""

import socket
from typing import TYPE_CHECKING

from quiesce.worker.core.connection import Event, State
from quiesce.worker.core.discipline import Discipline, Leniency, escaped, mend
from quiesce.worker.core.http1 import request_line
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address, Request
from quiesce.worker.core.termination import Termination, cause
from quiesce.worker.embedded.connection import NOTHING, Asked, Connection
from quiesce.worker.net.alone import Alone
from quiesce.worker.net.deadline import Timed
from quiesce.worker.net.ending import FLUSHING, IDLE, LINGERING, SENDING, SKIPPING, WORKING
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.output import FLAGS

if TYPE_CHECKING:
    from quiesce.worker.embedded.seat import Engine

STAYS = (WORKING, SENDING, SKIPPING, FLUSHING)  # a FIN ends nothing here: what was asked for is answered
BEFORE_A_REQUEST = (State.FRESH, State.IDLE, State.HEAD)


class Client(Alone):
    """Adds to the engine's connection: its public side, a timeout of its own, and the reason of each end.

    A request has ended when its answer is all sent, or never will be: that is said once, to the public side, if it has
    been shown anything.  Here the loop's thread does everything, so what the engine guards against threads of a pool
    needs no guard.
    """

    __slots__ = ("_handle",)

    daemon: "Engine"
    # Somebody waits for the end of each request: an answer is told to have been sent when it has been.
    holds = False  # small answers to pipelined requests may go out together
    _last_flags = FLAGS

    def __init__(
        self, engine: "Engine", sock: socket.socket, peer: Address, local: Address, scheme: str, probe: bool
    ) -> None:
        self._handle: Connection | None = None
        Alone.__init__(self, engine, sock, peer, local, scheme, probe)

    @classmethod
    def of(cls, discipline: Discipline, *, tells: bool, holds: bool) -> "type[Client]":
        """The kind for this level: the strict one has nothing of the others.  ``tells``: of the end of each request."""
        members = {"__slots__": (), "holds": holds and not tells}
        if not tells:
            members["_last_flags"] = Alone._last_flags
        if discipline.forgives:
            return type("Lenient", (Forgiving, cls), {**members, "forgives": discipline.forgives})
        return type("Strict", (cls,) if discipline.empty_lines else (Pedantic, cls), members)

    @property
    def handle(self) -> Connection:
        """What the application holds: made when it is first asked for, so that who sees requests only pays nothing."""
        handle = self._handle
        if handle is None:
            handle = self._handle = Connection(self)
        return handle

    @property
    def asked(self) -> Asked:
        """The request that the application was shown, or NOTHING."""
        handle = self._handle
        return NOTHING if handle is None else handle.asked

    def _ended(self, asked: Asked, why: Termination) -> None:
        if asked.is_at_fault and why is Termination.COMPLETED_OK:
            why = Termination.WITH_ERROR
        assert self._handle is not None
        self._handle.ended(why)

    # -- what the engine does, listened to -----------------------------------------------------

    def event(self, event: Event, rejected: Rejected | None = None) -> None:
        if self._held is not None:
            # It was promised to the next answer, and nobody knows now what becomes of that.
            self._loud(self.release_held())
        if event is Event.PEER_DONE and self.broken:
            event = Event.LOST  # reset: a write has found out first, and taken the error from the read
        handle = self._handle
        if handle is None or handle.asked is NOTHING:
            Alone.event(self, event, rejected)
            return
        asked = handle.asked
        if (event is Event.SENT or event is Event.OVER) and asked.is_answered:
            self._ended(asked, Termination.COMPLETED_OK)
        elif asked.cause is None and not (event is Event.PEER_DONE and self.state in STAYS):
            asked.cause = cause(event, rejected)
        Alone.event(self, event, rejected)
        if self.exchange is None and not asked.is_answered and asked.is_shown:
            self._ended(asked, asked.cause or Termination.READ_ERROR)  # the engine has taken it away

    def _part(self, data: bytes) -> None:
        Alone._part(self, data)
        if self.state is State.HEAD and self._judged:
            self._saw_line()

    def refuse(self, rejected: Rejected) -> None:
        if self.state in BEFORE_A_REQUEST:
            self._saw_line()
        Alone.refuse(self, rejected)

    def _begin_body(self, request: Request) -> None:
        if self._logs:
            self.handle.saw_target(request.target)
        Alone._begin_body(self, request)

    @property
    def _logs(self) -> bool:
        return self.daemon.seat.owner.uri_log is not None

    def _saw_line(self) -> None:
        """Let the log have what was asked for, though its head is not complete, or will be refused."""
        line, eol, _ = self._input.partition(b"\r\n")
        if eol and self._logs:
            try:
                _, target, _ = request_line(line)
            except Rejected:
                return
            self.handle.saw_target(target)

    def answer(self, exchange: Exchange, keep: bool, wire: bytes, now: float) -> None:
        handle = self._handle
        if handle is None or handle.asked.exchange is not exchange:  # nobody is to be told
            Alone.answer(self, exchange, keep, wire, now)
        elif self.exchange is exchange:
            asked = handle.asked
            asked.is_answered = True
            if (
                handle.daemon.allows_suspend
            ):  # another thread may just be sending an interim answer: under the lock
                Alone.complete(self, exchange, keep, wire, b"", now)
            else:
                Alone.answer(self, exchange, keep, wire, now)
            self._was_answered(handle, asked, exchange)

    def complete(
        self, exchange: Exchange, keep: bool, data: bytes = b"", more: bytes = b"", now: float = 0.0
    ) -> None:
        handle = self._handle
        if handle is None or handle.asked.exchange is not exchange:
            Alone.complete(self, exchange, keep, data, more, now)
        elif self.exchange is exchange:
            asked = handle.asked
            asked.is_answered = True
            Alone.complete(self, exchange, keep, data, more, now)
            self._was_answered(handle, asked, exchange)

    def _was_answered(self, handle: Connection, asked: Asked, exchange: Exchange) -> None:
        """Is it all sent?  Else whoever sends the rest will say so."""
        if self.state is IDLE:
            if asked.exchange is exchange:
                self._ended(asked, Termination.COMPLETED_OK)
            if handle.own_timeout_s is not None:
                self.arm(handle.own_timeout_s)

    def _another_follows(self, exchange: Exchange) -> bool:
        if not self.holds:
            return False
        response = self.asked.queued
        # One that may be counted, or that something is freed with, is told to have been sent when it has been.
        if response is not None and response._more is not None:
            return False
        return Alone._another_follows(self, exchange)

    def _loud(self, heard: bool) -> None:
        Alone._loud(self, heard)
        if self.broken and not self.closed:
            self.later(self._settle)  # epoll and poll would tell of it by themselves, select does not

    def _sent_all(self) -> None:
        Alone._sent_all(self)
        asked = self.asked
        if asked.is_answered:
            self._ended(asked, Termination.COMPLETED_OK)

    def abort(self, exchange: Exchange) -> None:
        self._blame(Termination.WITH_ERROR)
        Alone.abort(self, exchange)

    def drop(self) -> None:
        """Close without a word: the application wants it so."""
        self._blame(Termination.WITH_ERROR)
        self.event(Event.LOST)

    def cut(self) -> None:
        self._blame(Termination.DAEMON_SHUTDOWN)
        Alone.cut(self)

    def _blame(self, why: Termination) -> None:
        asked = self.asked
        if asked is not NOTHING:
            asked.cause = why

    def arm(self, seconds: float) -> None:
        own = None if self._handle is None else self._handle.own_timeout_s
        Timed.arm(self, seconds if own is None or self.state is LINGERING else own)

    def _body_done(self, payload: bytes) -> None:
        trailers = getattr(self._decoder, "trailers", ())
        if trailers:
            self.handle.saw_trailers(trailers)
        Alone._body_done(self, payload)

    def allowed_s(self, state: State) -> float:
        own = None if self._handle is None else self._handle.own_timeout_s
        return Alone.allowed_s(self, state) if own is None else own

    def _release(self) -> None:
        Alone._release(self)
        self.daemon.seat.owner.reception.moved(self)

    def _close(self) -> None:
        Alone._close(self)
        # A request that is cut ends before its connection does.
        if self._handle is not None:
            asked = self._handle.asked
            if asked.is_shown:
                self._ended(asked, asked.cause or Termination.READ_ERROR)
        self.daemon.seat.owner.reception.left(self)


class Forgiving(Alone):
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
            rejected = self._elsewhere() or rejected
        super().refuse(rejected)

    def _elsewhere(self) -> Rejected | None:
        """Is this one to ask again, with what a URI may hold?"""
        line, eol, _ = self._input.partition(b"\r\n")
        line = (escaped(line, self.forgives) or b"") if eol else b""
        try:
            _, target, _ = request_line(line)
        except Rejected:
            return None
        return Rejected(301, "white space in a target is percent-encoded", location=target)


class Pedantic(Alone):
    """An empty line is no request."""

    __slots__ = ()

    def _skip_empty_lines(self, data: bytes) -> bytes:
        return data
