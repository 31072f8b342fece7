"""The part of a connection that takes an application's answer, and then goes on.

``send``, ``send_file``, ``complete``, ``abort`` and ``wait_below`` are called by an exchange, from wherever its
application runs; the rest is for the loop's thread.
"""

from fcntl import ioctl
from math import inf
from termios import FIONREAD
from time import monotonic, monotonic_ns

from quiesce.worker.core.body_framing import ChunkedDecoder, LengthDecoder
from quiesce.worker.core.connection import Event
from quiesce.worker.net import counters as figures
from quiesce.worker.net.ending import FLUSHING, IDLE, SENDING, SKIPPING
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.moving import Moving
from quiesce.worker.net.output import FLAGS, WITH_FIN

SAFE = (b"GET ", b"HEAD")
AT_ONCE_NS = 1_000_000
_NOTHING = bytes(4)
_ONE_FLIGHT = 14 * 1024  # what TCP sends before it has heard of the first of it


class Answering(Moving):
    """See above."""

    __slots__ = ()
    _last_flags = WITH_FIN

    _decoder: LengthDecoder | ChunkedDecoder | None
    _parsing: bool
    _unread: int

    # -- any thread that has the exchange ---------------------------------------------------------

    def send(self, exchange: Exchange, data: bytes, more: bytes = b"") -> None:
        self._loud(self.push(exchange, data, more))

    def send_file(self, exchange: Exchange, fd: int, offset: int, count: int) -> None:
        self._loud(self.push_file(exchange, fd, offset, count))

    def _loud(self, heard: bool) -> None:
        """Let the loop hear of what is queued."""
        if not heard:
            if self.daemon.in_loop():
                self._queued()
            else:
                self.daemon.loop.call_soon_threadsafe(self._queued)

    def _queued(self) -> None:
        if self._queue and not self.closed:
            self.update_interest()
            self.arm(self.daemon.limits.send_timeout)

    def answer(self, exchange: Exchange, keep: bool, wire: bytes, now: float) -> None:
        """The response is complete: this is the whole of it."""
        self.complete(exchange, keep, wire, b"", now)

    def complete(
        self, exchange: Exchange, keep: bool, data: bytes = b"", more: bytes = b"", now: float = 0.0
    ) -> None:
        """The response is complete: these are its last bytes.  ``now``: if somebody knows it already.

        Sent and taken note of under one lock: a client that is quick with its next request must find the
        connection idle, or the loop would have to be woken for it.
        """
        daemon = self.daemon
        quiet = False
        with self.lock:
            if self.exchange is not exchange:
                return
            over = not keep and self._was_all(exchange)
            at_once = over and daemon.in_loop()
            goes_on = (
                keep and self._parsing and self._input and exchange.body_complete and daemon.moving is None
            )
            if data and (more or not (goes_on and self._another_follows(exchange) and self._hold(data))):
                self._push(data, more, self._last_flags if at_once else FLAGS)
            sent = self.sent
            sent, self._reported = sent - self._reported, sent
            self.exchange = None
            # Counted before the state says so: the loop sees IDLE without the lock, and counts the next request.
            if keep and exchange.body_complete and not self._queue and not self.broken:
                if not self.probe:
                    daemon.counters.response(exchange.status, sent, -self.busy)
                self._deadline = (now or monotonic()) + daemon.idle_timeout
                self.busy = False
                # While _process is at work it looks by itself at what is left to do.
                quiet = self._parsing or not (self._input or self._eof or daemon.moving is not None)
                self.state = IDLE
            else:
                if not self.probe:
                    daemon.counters.response(exchange.status, sent, 0)
                self.state = FLUSHING if not keep else SENDING if exchange.body_complete else SKIPPING
        # From here on the loop may have begun with the next request.
        if at_once:
            self._settle_all()  # before the log takes its time: what was sent waits for the FIN
        if daemon.access_log is not None and not self.probe:
            daemon.access_log(exchange, exchange.status, exchange.body_sent, exchange.seconds())
        if quiet or at_once:
            return
        if not daemon.in_loop():
            daemon.loop.call_soon_threadsafe(self._settle_all if over else self._settle)
        elif self.state is not IDLE:
            self._settle()
        elif not self._parsing:
            daemon.loop.call_soon_threadsafe(self._settle)

    def _was_all(self, exchange: Exchange) -> bool:
        """Has the client said that nothing follows its request (RFC 9112 §9.6), and sent nothing?

        Not where it may still send a line end behind a body or a POST, as old ones did, and not in a drain: who has
        drained may leave, and then nobody would see to it that its clients get the last of what we have said.
        Nor where much of the answer may still be with our kernel: a line end too many would cut it.
        """
        request = exchange.request
        if request.keep_alive or request.length or request.method == "POST":
            return False
        if exchange.body_sent > _ONE_FLIGHT:
            return False
        return not (self._input or self.daemon.closing)

    def _another_follows(self, exchange: Exchange) -> bool:
        """Is the next request there, so that its answer can take this one along?  16 small answers in one send cost
        a fifth.

        Only where the application answers in this thread (another one may take its time), where this answer took no
        time (the next one probably takes none either), and where neither request has changed anything: should
        the process die in the next one, the client can ask for both again.
        """
        following = self._input
        return (
            self.daemon.is_inline
            and following[:4] in SAFE
            and following.find(b"\r\n\r\n") > 0
            and exchange.request.method in ("GET", "HEAD")
            and monotonic_ns() - exchange.since_ns < AT_ONCE_NS
        )

    def abort(self, exchange: Exchange) -> None:
        """Cut, so that the client sees that the response is not whole."""

        def cut() -> None:
            if self.exchange is exchange and not self.closed:
                self.release_held()  # answers to others
                if not self.probe:
                    self.daemon.counters.count(figures.ERRORS)
                self._reset_on_close()
                self.event(Event.LOST)

        if self.daemon.in_loop():
            cut()
        else:
            self.daemon.loop.call_soon_threadsafe(cut)

    # -- after the answer -----------------------------------------------------------------------

    def _writable(self) -> None:
        progress = self.flush()
        exchange = self.exchange
        limits = self.daemon.limits
        if self._queue:
            if not self.takes_at_least(limits.body_min_rate, limits.body_grace):
                self.late()
                return
            if progress:
                self.arm(limits.send_timeout)
        else:
            self._deadline = inf if self._decoder is None else self._deadline
        self._report_traffic()
        if exchange is not None and self.queued <= limits.low_water:
            callback = exchange.on_writable
            if callback is not None:
                callback()
        if not self.closed:
            self._settle()

    def _settle(self) -> None:
        """Do what an answer leaves to do.  Harmless when there is nothing."""
        if self.closed:
            return
        if self.broken:
            self.event(Event.LOST)
            return
        state = self.state
        if self._queue:
            self.update_interest()
            self.arm(self.daemon.limits.send_timeout)
            return
        if state is FLUSHING:
            self.event(Event.SENT)
            return
        if state is SENDING:
            self._sent_all()
        if self.state is SKIPPING:
            self.arm(self.daemon.limits.body_timeout)
        if self.state is IDLE and not self._parsing:
            self._resume()
        else:
            self.update_interest()

    def _settle_all(self) -> None:
        """The same after an answer that is the last because the client wanted it so.

        The kernel is asked what has come meanwhile: a close with that unread would throw the answer away here already,
        and those before it that the client has not taken yet.
        """
        if (
            self.state is FLUSHING
            and not (self._queue or self._unread or self.broken)
            and ioctl(self.fd, FIONREAD, _NOTHING) == _NOTHING
        ):
            self.event(Event.OVER)
        else:
            self._settle()

    def _sent_all(self) -> None:
        self.state = IDLE  # the table's SENT
        self.arm(self.daemon.limits.idle_timeout)
        self._set_busy(False)

    def _resume(self) -> None:
        """Go on with what was read behind the request that is answered."""
        raise NotImplementedError
