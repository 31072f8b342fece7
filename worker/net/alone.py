"""A connection that the loop's thread has for itself: its application answers there.

What :mod:`.stream` and :mod:`.answering` do for every case is done here for the usual one, in one go and without the
lock: one request came, whole and like one before, and its answer is whole, is sent whole, and is not the last one.
Whatever is not usual is theirs, at every step: tests/wire/test_alone.py holds the two against each other.
"""

from math import inf

from quiesce.worker.core.request import Request
from quiesce.worker.loops.base import READ
from quiesce.worker.net.ending import IDLE, WORKING
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.output import FLAGS
from quiesce.worker.net.stream import DONTWAIT, RECV, Connection


class Alone(Connection):
    """See above.  Only for a daemon whose application runs inline."""

    __slots__ = ()

    def ready(self, events: int) -> None:
        daemon = self.daemon
        if events != READ or self.state is not IDLE or self._input or daemon.moving is not None:
            Connection.ready(self, events)
            return
        try:
            data = self.sock.recv(RECV, DONTWAIT)
        except OSError:  # and it is tried once more, by who knows what then is to be done
            Connection.ready(self, events)
            return
        memo = daemon.parser.memo
        request = memo.recall(data)
        if request is None and data.find(b"\r\n\r\n") + 4 == len(data):
            request = memo.by_lines(data)
        if request is None or request.length:
            self._go_long(data, request)
            return
        request.scheme = self.scheme
        request.peer = self.peer
        request.local = self.local
        if not self.probe:
            daemon.counters.request(self._received + len(data), not self.busy)
            self._received = 0
            self.busy = True
        self.served += 1
        self.state = WORKING  # the table's REQUEST
        self._deadline = inf
        self._parsing = True
        exchange = self.exchange = Exchange(self, request)
        daemon.call(exchange, exchange.since_ns)
        self._parsing = False
        if self.state is IDLE and daemon.moving is not None:
            self._resume()

    def _go_long(self, data: bytes, request: Request | None) -> None:
        """What came is not usual, or is a head whose body is still to come."""
        if not data:
            self._peer_done()
        elif request is None:
            self._take(data)
        else:
            self._received += len(data)
            self._take_up(request)
            self._parsing = True
            self._begin_body(request)
            self._parsing = False
            if self.state is IDLE and self.daemon.moving is not None:
                self._resume()

    def _next(self) -> bytes:
        if self.state is not IDLE or self.daemon.moving is not None:
            return Connection._next(self)
        data, self._input = self._input, b""
        if not data:
            self._parsing = False
        return data

    def answer(self, exchange: Exchange, keep: bool, wire: bytes, now: float) -> None:
        daemon = self.daemon
        if (
            not keep
            or not self._parsing  # then the loop has more to do after an answer
            or self._queue
            or daemon.moving is not None
            or self.exchange is not exchange
            or not exchange.body_complete
        ):
            self.complete(exchange, keep, wire, b"", now)
            return
        if not self._input or not (self._another_follows(exchange) and self._hold(wire)):
            if self._held is not None:
                wire, self._held = b"".join((*self._held, wire)), None
            try:
                count = self.sock.send(wire, FLAGS)
            except OSError:  # or there is no room: tried once more, by who knows what then is to be done
                self.complete(exchange, keep, wire, b"", now)
                return
            self.sent += count
            if count != len(wire):
                self._put(memoryview(wire)[count:])
                self.complete(exchange, keep, b"", b"", now)
                return
        self.exchange = None
        if not self.probe:
            sent = self.sent
            daemon.counters.response(exchange.status, sent - self._reported, -1)
            self._reported = sent
            self.busy = False
        self._deadline = now + daemon.idle_timeout
        self.state = IDLE
        if daemon.access_log is not None and not self.probe:
            daemon.access_log(exchange, exchange.status, exchange.body_sent, exchange.seconds())
