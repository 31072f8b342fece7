"""An inline connection of a native application: nothing stands between its input and the handler.

One more short way, for the cheapest of all requests: what :mod:`.alone` does with an exchange is done here without one,
as long as the handler returns a response that is plain, and the connection is kept.  Everything else gets its exchange,
and goes on there.  tests/wire/test_alone.py holds this way against the others too.
"""

from math import inf
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, cast

from quiesce.worker.core.request import Request
from quiesce.worker.core.response import Response
from quiesce.worker.loops.base import READ
from quiesce.worker.net import answering
from quiesce.worker.net.alone import Alone
from quiesce.worker.net.counters import IN_REQUEST_SINCE_NS
from quiesce.worker.net.ending import IDLE, WORKING
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.output import FLAGS, JOIN_BELOW, MOST_HELD, Buffer
from quiesce.worker.net.stream import DONTWAIT, RECV

if TYPE_CHECKING:
    from quiesce.worker.apps.native import NativeApp


class Direct(Alone):
    """See above.  Only where nobody else wants to hear of a request: no ``ready_path``, no access log."""

    __slots__ = ()

    def ready(self, events: int) -> None:
        daemon = self.daemon
        if events != READ or self.state is not IDLE or self._input or daemon.moving is not None or self.probe:
            Alone.ready(self, events)
            return
        try:
            data = self.sock.recv(RECV, DONTWAIT)
        except OSError:  # and it is tried once more, by who knows what then is to be done
            Alone.ready(self, events)
            return
        memo = daemon.parser.memo
        request = memo.recall(data)
        if request is None:
            end = data.find(b"\r\n\r\n") + 4
            if end == len(data):
                request = memo.by_lines(data)
            elif end > 4:
                self._burst(data, end)
                return
        if request is None or request.length:
            self._go_long(data, request)
            return
        request.scheme = self.scheme
        request.peer = self.peer
        request.local = self.local
        self.served += 1
        self._received += len(data)
        self.state = WORKING  # the table's REQUEST
        self._deadline = inf
        since_ns = monotonic_ns()
        counters = daemon.counters
        counters.slot[IN_REQUEST_SINCE_NS] = since_ns
        daemon.in_call = True
        handler = cast("NativeApp", daemon.app).handler  # a call by way of an attribute costs twice
        try:
            response = handler(request)
        except BaseException as exc:  # SystemExit too: one request does not end the process
            self._answer_by_exchange(request, since_ns, exc)
            return
        if (
            not isinstance(response, Response)
            or type(response.body) is not bytes
            or response.path is not None
            or not response.head.is_plain
            or not request.keep_alive
            or request.method == "HEAD"
            or daemon.closing
        ):
            self._answer_by_exchange(request, since_ns, response)
            return
        now, dates = monotonic(), daemon.dates
        date = dates.current if now < dates.until else dates.line(now)
        cached = response._cached
        wire = cached[2] if cached[0] is date and not cached[1] else response.wire(date, b"")
        try:
            count = self.sock.send(wire, FLAGS)
        except OSError:  # or there is no room: it is tried once more, by who knows what then is to be done
            self._answer_by_exchange(request, since_ns, response)
            return
        if count != len(wire):
            self._queue_rest(self._exchange(request, since_ns), response, wire, count, now)
            return
        daemon.in_call = False
        sent = self.sent + count
        counters.exchange(self._received, response.status, sent - self._reported)
        self.sent = self._reported = sent
        self._received = 0
        self._deadline = now + daemon.idle_timeout
        self.state = IDLE
        if daemon.draining:
            daemon.check_empty()

    def _burst(self, data: bytes, end: int) -> None:
        """Several requests at once, of which the first one ends there.

        Those that are like ones before and have a safe one behind them are answered here, and their answers wait for
        its, by the rules of ``Answering._another_follows``.
        """
        daemon = self.daemon
        counters, recall = daemon.counters, daemon.parser.memo.recall
        handler = cast("NativeApp", daemon.app).handler
        held: list[Buffer] = []
        self._received += len(data)
        at = 0
        while len(held) < MOST_HELD:
            following = data.find(b"\r\n\r\n", end) + 4
            if following < 4 or not data.startswith(answering.SAFE, end):
                break
            request = recall(data[at:end])
            if request is None or request.length or request.method != "GET" or not request.keep_alive:
                break
            request.scheme = self.scheme
            request.peer = self.peer
            request.local = self.local
            self.served += 1
            self.state = WORKING  # the table's REQUEST
            self._deadline = inf
            counters.slot[IN_REQUEST_SINCE_NS] = since_ns = monotonic_ns()
            daemon.in_call = True
            response: object = None
            try:
                response = handler(request)
                wire = self._wire(response)
            except BaseException as exc:
                response, wire = exc, b""
            if not wire or len(wire) > JOIN_BELOW or monotonic_ns() - since_ns >= answering.AT_ONCE_NS:
                self._input = data[end:]
                self._held = held or None
                self._answer_by_exchange(request, since_ns, response)
                return
            held.append(wire)
            counters.exchange(self._received, cast(Response, response).status, 0)
            self._received = 0
            at, end = end, following
        daemon.in_call = False
        self._held = held or None
        self.state = IDLE
        self._process(data[at:])

    def _wire(self, response: object) -> bytes:
        """All of an answer that is nothing but bytes, on a connection that is kept; b"": it is more than that."""
        daemon = self.daemon
        if (
            not isinstance(response, Response)
            or type(response.body) is not bytes
            or response.path is not None
            or not response.head.is_plain
            or daemon.closing
            or daemon.moving is not None
        ):
            return b""
        return response.wire(daemon.dates.line(monotonic()), b"")

    def _exchange(self, request: Request, since_ns: int) -> Exchange:
        """It is needed after all."""
        self._count_request()
        self._parsing = True
        exchange = self.exchange = Exchange(self, request)
        exchange.since_ns = since_ns
        return exchange

    def _answer_by_exchange(self, request: Request, since_ns: int, returned: object) -> None:
        exchange = self._exchange(request, since_ns)
        try:
            if isinstance(returned, BaseException):
                raise returned
            cast("NativeApp", self.daemon.app).answer(exchange, returned)
        except BaseException as exc:
            exchange.fail(exc)
        self._over()

    def _queue_rest(
        self, exchange: Exchange, response: Response, wire: bytes, count: int, now: float
    ) -> None:
        """The socket has taken so much of it."""
        exchange.status = response.status
        exchange.started = exchange.finished = True
        exchange.body_sent = len(cast(bytes, response.body))
        self.sent += count
        self._put(memoryview(wire)[count:])
        self.complete(exchange, True, b"", b"", now)
        self._over()

    def _over(self) -> None:
        """The call has ended, and had an exchange."""
        self._parsing = False
        daemon = self.daemon
        daemon.in_call = False
        if self.state is IDLE and (daemon.moving is not None or self._input):
            self._resume()
        if daemon.draining:
            daemon.check_empty()
