"""How a connection ends: by the table, with our own answer where the application gives none.

The loop's thread only.
"""

import socket
from time import monotonic
from typing import TYPE_CHECKING

from quiesce.shared.errors import IllegalTransition
from quiesce.worker.core.connection import Action, Event, State, step
from quiesce.worker.core.rejected import Rejected, reply
from quiesce.worker.net.deadline import Timed
from quiesce.worker.net.exchange import Exchange

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon

FRESH, IDLE, HEAD, BODY, WORKING = State.FRESH, State.IDLE, State.HEAD, State.BODY, State.WORKING
STREAMING, SKIPPING, SENDING, FLUSHING = State.STREAMING, State.SKIPPING, State.SENDING, State.FLUSHING
LINGERING, CLOSED = State.LINGERING, State.CLOSED

_OURS = (Event.REFUSED, Event.DEADLINE, Event.END)  # our answer, unless the application's has begun
_LAST = (FLUSHING, LINGERING, CLOSED)  # no application answers any more


class Ending(Timed):
    """The part of a connection that knows its state, and how to leave."""

    # fmt: off
    __slots__ = (
        "_received", "_reported", "_since", "busy", "fd", "ip", "probe", "state",
    )
    # fmt: on

    exchange: Exchange | None
    _eof: bool
    _input: bytes

    def __init__(self, daemon: "Daemon", sock: socket.socket, probe: bool) -> None:
        Timed.__init__(self, sock, daemon)
        self.fd = sock.fileno()
        self.probe = probe
        self.ip = ""  # as counted by connections_per_ip
        self.state = FRESH
        self.exchange = None
        self.busy = False  # counted as such
        # When the body began, later by the time in which we did not read it; or when we sent our FIN; or, while there
        # is a part of a head, the deadline that is in force again if it was only an empty line.
        self._since = 0.0
        self._received = 0  # bytes that are not in the counters yet
        self._reported = 0  # of `sent`, in the counters

    # -- the table --------------------------------------------------------------------------------

    def event(self, event: Event, rejected: Rejected | None = None) -> None:
        """Take a step by the table, and do what it says.  The loop's thread.

        ``rejected``: our own answer, with REFUSED.

        What the application has sent, the step, and taking the exchange away are one critical section: a
        thread of the pool has answered before it, or does not answer at all.
        """
        taken: Exchange | None = None
        with self.lock:
            if self.state is CLOSED:
                return
            if event is Event.PEER_DONE and self.state is IDLE and self._input:
                return  # answered by another thread just now, whose _settle comes to what waits
            exchange = self.exchange
            if exchange is not None and exchange.started and event in _OURS:
                # A response that began and cannot go on must not be taken for whole.
                self._reset_on_close()
                event = Event.LOST
            try:
                self.state, actions = step(self.state, event)
            except IllegalTransition as exc:  # a bug of ours: this client pays, nobody else
                self.daemon.loop.complain(str(exc), None)
                self.state, actions = CLOSED, (Action.TELL, Action.CLOSE)
            if exchange is not None and self.state in _LAST:
                taken, self.exchange = exchange, None
                taken.disconnected = True
        self._perform(actions, taken, rejected)

    def _perform(
        self, actions: tuple[Action, ...], taken: Exchange | None, rejected: Rejected | None
    ) -> None:
        for action in actions:
            if action is Action.FIN:
                self._fin()
            elif action is Action.CLOSE:
                self._close()
            elif action is Action.SAY:
                assert rejected is not None
                self._say(rejected, taken)
            elif action is Action.TELL:
                exchange = taken or self.exchange
                if exchange is not None:
                    exchange.tell()
            elif action is Action.SAY_408:
                self._say(Rejected(408, "the request did not come in time"), taken)
            elif action is Action.SAY_503:
                self._say(Rejected(503, "this server is about to leave", retry_after_s=1), taken)
        if self.state is FLUSHING:
            self._drop_body()
            self._settle()

    def _reset_on_close(self) -> None:
        # A body that ends with the connection would look complete if we sent a FIN.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def _fin(self) -> None:
        """Half-close and read on: a close with unread input is a reset, which can eat our last answer."""
        self._report_traffic()
        self._set_busy(True)
        if self._eof:
            self.event(Event.PEER_DONE)
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.event(Event.LOST)
            return
        self._since = monotonic()
        self.update_interest()
        self.arm(self.daemon.limits.linger_timeout)

    def _close(self) -> None:
        self.disarm()
        if self._received or self.sent != self._reported:
            self._report_traffic()
        # Always before the close: epoll holds the description, which somebody else may share.
        self.daemon.loop.unwatch(self.fd)
        with self.lock:
            self._drop_body()
        self.release()
        self.daemon.forget(self)

    def cut(self) -> None:
        """At once, whatever it was doing."""
        self.event(Event.LOST)

    @property
    def is_leaving(self) -> bool:
        """It has its last answer, or a part of it."""
        return self.state in (SENDING, FLUSHING, LINGERING)

    def end(self) -> None:
        """The drain's time is over."""
        self.event(Event.END)

    # -- our own answers -----------------------------------------------------------------------

    def refuse(self, rejected: Rejected) -> None:
        """Answer in the application's place, then close."""
        self.event(Event.REFUSED, rejected)

    def _say(self, rejected: Rejected, taken: Exchange | None) -> None:
        """Queue an answer of ours, in the place of the exchange that was taken away."""
        self._set_busy(True)
        if taken is not None:
            head_only = taken.request.method == "HEAD"
        else:
            head_only = self._input[:5] == b"HEAD "  # of a head that is no request, or not yet
        with self.lock:
            self._drop_body()
        self.push(None, reply(rejected, self.daemon.dates.date(), head_only=head_only))
        if not self.probe:
            self.daemon.counters.response(rejected.status, 0, 0)

    def _set_busy(self, busy: bool) -> None:
        if self.busy is not busy:
            self.busy = busy
            if not self.probe:
                self.daemon.counters.connection(0, 1 if busy else -1)

    def _report_traffic(self) -> None:
        """Everything but a request's first bytes and an answer's last ones, which are counted along with them."""
        with self.lock:
            sent = self.sent - self._reported
            self._reported += sent
        received, self._received = self._received, 0
        if not self.probe and (sent or received):
            self.daemon.counters.traffic(received, sent)

    # -- what the rest of the connection does --------------------------------------------------

    def update_interest(self) -> None:
        """Watch for what somebody wants to happen."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Do what an answer leaves to do.  Harmless when there is nothing."""
        raise NotImplementedError

    def _drop_body(self) -> None:
        """Forget what was read."""
        raise NotImplementedError
