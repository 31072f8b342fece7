"""One connection's shell: what is read goes to the core, what the core wants is done.

The loop's thread only.  ``state`` changes under ``lock`` where a thread of the pool may be changing it too, that is
from WORKING on until the answer.
"""

import select
import socket
from collections.abc import Callable
from math import inf
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from quiesce.worker.core.body_framing import ChunkedDecoder, LengthDecoder, decoder
from quiesce.worker.core.connection import Event
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address, Request
from quiesce.worker.loops.base import ERROR, HANGUP, READ, WRITE
from quiesce.worker.net import counters as figures
from quiesce.worker.net.answering import Answering
from quiesce.worker.net.body_store import BodyStore
from quiesce.worker.net.ending import (
    BODY,
    FLUSHING,
    FRESH,
    HEAD,
    IDLE,
    LINGERING,
    SENDING,
    SKIPPING,
    STREAMING,
    WORKING,
)
from quiesce.worker.net.exchange import Exchange

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon

RECV = 64 * 1024  # more is slower: the bytes object is allocated and shrunk each time
DONTWAIT = int(socket.MSG_DONTWAIT)
_AHEAD = 64 * 1024  # of pipelined input that is read while an application works
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AGAIN = (BlockingIOError, InterruptedError)

_UNWATCHED = READ | 1 << 30  # it will be read, but the loop has not been told of it

_WITH_BODY = (BODY, STREAMING, SKIPPING)


class Connection(Answering):
    """One client.  Owns its socket from construction to its close."""

    # fmt: off
    __slots__ = (
        "_continue", "_decoder", "_judged", "_read", "_rested", "_store", "_unread", "local", "peer", "scheme",
    )
    # fmt: on

    def __init__(
        self,
        daemon: "Daemon",
        sock: socket.socket,
        peer: Address,
        local: Address,
        scheme: str,
        probe: bool,
    ) -> None:
        Answering.__init__(self, daemon, sock, probe)
        self.peer = peer
        self.local = local
        self.scheme = scheme
        self.listener = ""  # by which it came
        self.served = 0  # requests, in whichever process
        self._input = b""  # read and not yet parsed
        self._decoder: LengthDecoder | ChunkedDecoder | None = None
        self._store: BodyStore | None = None
        self._continue = False  # the client waits for 100 before it sends its body
        self._eof = False
        self._leaves = False  # it is on its way into a lane
        self._parsing = False  # _process is at work: it goes on by itself after an answer
        self._read = 0  # bytes of the body
        self._judged = 0  # bytes of a head that is not complete
        self._rested = 0.0  # when we last ceased to read
        self._unread = 0  # bytes that were thrown away
        self._events = _UNWATCHED

    # -- readiness ------------------------------------------------------------------------

    def look(self) -> None:
        """Serve it from its first byte on, which may be there already.

        Who is answered now and leaves needs no place in the loop's set, and no timer.
        """
        if self.state is FRESH:
            allowed = self.daemon.limits.header_timeout
            self._deadline = monotonic() + allowed if allowed else inf
            self.ready(READ)
        if not self.closed:
            self.update_interest()
            self.look_at_deadline(monotonic())

    def ready(self, events: int) -> None:
        """The loop's callback.  May come once more than is true."""
        if events != READ:
            if self.closed:
                return
            if events & WRITE:
                self._writable()
            if events & (ERROR | HANGUP) and not self.closed:
                self._hung_up()
                return
            if not events & READ or self.closed:
                return
        moving = self.daemon.moving
        if moving is not None and moving.takes(self):
            return
        state = self.state
        ahead = state is WORKING or state is SENDING  # then no more than _AHEAD is kept
        try:
            data = self.sock.recv(max(_AHEAD - len(self._input), 1) if ahead else RECV, DONTWAIT)
        except _AGAIN:
            return
        except OSError:  # reset, or closed in this very turn
            self.event(Event.LOST)
            return
        if data:
            self._take(data)
        else:
            self._peer_done()

    def _take(self, data: bytes) -> None:
        """It has been read."""
        self._received += len(data)
        state = self.state
        if state is IDLE or state is FRESH or state is HEAD:
            # Idle with input: a thread of the pool has answered, and its word to us is on the way.
            self._process(self._input + data if self._input else data)
        elif state in _WITH_BODY:
            self._body_data(data)
        else:
            self._early(data)

    def _hung_up(self) -> None:
        """Both directions are gone.  Bytes that came before may still be read, and a socket pair's other end
        that was closed after its last request says this too."""
        # Asked again: who had our descriptor may have left it in this very turn (to a lane), and it was meant.
        poll = select.poll()
        poll.register(self.fd, 0)
        events = sum(mask for _, mask in poll.poll(0))
        if not events & (ERROR | HANGUP):
            return
        if events & ERROR or self._eof or self.state not in (FRESH, IDLE, HEAD, BODY, STREAMING, LINGERING):
            self.event(Event.LOST)
            return
        self.ready(READ)

    def _peer_done(self) -> None:
        self._eof = True
        self.update_interest()
        with self.lock:
            waiting = self.state is IDLE and bool(self._input)
        if waiting:
            self._settle()  # requests that came before it are answered
        else:
            self.event(Event.PEER_DONE)

    def _early(self, data: bytes) -> None:
        """Bytes behind a request that is not answered yet, or in front of our close."""
        with self.lock:
            state = self.state
            if state is WORKING or state is SENDING:
                self._input += data
                if len(self._input) < _AHEAD:
                    return
            elif state is IDLE:  # answered by another thread just now
                data, self._input = self._input + data, b""
        if state is IDLE:
            self._process(data)
        elif state is LINGERING or state is FLUSHING:
            self._discard(len(data))
        else:
            self.update_interest()

    def _discard(self, count: int) -> None:
        limits = self.daemon.limits
        self._unread += count
        if self._unread > limits.linger_bytes:
            self.event(Event.LOST)
        elif self.state is LINGERING:
            left = self._since + limits.linger_time - monotonic()
            self.arm(max(min(limits.linger_timeout, left), 0.001))

    def update_interest(self) -> None:
        """Watch for what somebody wants to happen."""
        if self.closed:
            return
        state = self.state
        wanted = 0
        if not self._eof:
            if state is STREAMING:
                exchange = self.exchange
                wanted = READ if exchange is not None and exchange.wants_body else 0
            elif (state is not WORKING and state is not SENDING) or len(self._input) < _AHEAD:
                wanted = READ
        if self._queue:
            wanted |= WRITE
        if wanted != self._events:
            if (wanted ^ self._events) & READ:
                self._rest(not wanted & READ)
            if self._events == _UNWATCHED:
                self.daemon.loop.watch(self.fd, self.ready, wanted)
            else:
                self.daemon.loop.rewatch(self.fd, wanted)
            self._events = wanted

    def _rest(self, begins: bool) -> None:
        """We do not read, or read again: a client has no part in that, and its rate does not fall by it."""
        now = monotonic()
        if begins:
            self._rested = now
        elif self._decoder is not None:
            self._since += now - self._rested

    # -- requests ---------------------------------------------------------------------------

    def _process(self, data: bytes) -> None:
        """Parse and answer requests, one after the other, while answers are given at once."""
        daemon = self.daemon
        self._parsing = True
        while True:
            if data[:1] <= b"\r":  # CR, LF; what else is so low is refused by the parser
                data = self._skip_empty_lines(data)
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._parsing = False
                self._part(data)
                return
            try:
                request = daemon.parser.parse(data if end == len(data) else data[:end])
            except Rejected as rejected:
                self._parsing = False
                self._input = data  # so that we see what it was to be
                self.refuse(rejected)
                return
            self._input = data[end:]
            self._take_up(request)
            if request.length == 0:
                self.state = WORKING  # the table's REQUEST
                self._deadline = inf
                exchange = self.exchange = Exchange(self, request)
                daemon.call(exchange, exchange.since_ns)
            else:
                self._begin_body(request)
            if self._held is not None and self.state is not IDLE:
                self._loud(self.release_held())
            if self.state is IDLE and not self._input:  # the usual case; what is idle is nobody's but ours
                self._parsing = False
                break
            data = self._next()
            if not data:
                break
        if self.state is IDLE:
            if daemon.moving is not None:
                self._resume()
            elif self._eof:
                self.event(Event.PEER_DONE)

    def _take_up(self, request: Request) -> None:
        """It is this connection's next one."""
        request.scheme = self.scheme
        request.peer = self.peer
        request.local = self.local
        self.served += 1
        if not self.probe:
            self._count_request()

    def _count_request(self) -> None:
        self.daemon.counters.request(self._received, not self.busy)
        self._received = 0
        self.busy = True

    def _next(self) -> bytes:
        """Input behind an answer that was given at once; b"": that is for later, or for nobody here."""
        with self.lock:
            moving = self.daemon.moving is not None and self._held is None
            if self.state is not IDLE or (moving and self.is_between()):
                self._parsing = False
                return b""
            data, self._input = self._input, b""
            self._parsing = bool(data)
            return data

    def _skip_empty_lines(self, data: bytes) -> bytes:
        """RFC 9112 §2.2: empty lines in front of a request line are ignored."""
        lead = len(data) - len(data.lstrip(b"\r\n"))
        lines = lead // 2  # all at once: one by one, 64 KiB of them would be copied 32,768 times
        if data[: 2 * lines] == b"\r\n" * lines and data[2 * lines : lead] != b"\n":
            return data[2 * lines :]
        return data  # a bare CR or LF is among them: refused

    def _part(self, data: bytes) -> None:
        """A head that is not complete."""
        self._input = data
        if not data:  # empty lines are no request
            if self.state is HEAD:
                self.event(Event.BLANK)
                self._set_busy(False)
                # It goes on where it was: by empty lines nobody lives longer.
                self.arm(max(self._since - monotonic(), 0.001))
            return
        try:
            self._judged = self.daemon.parser.check_part(data, self._judged if self.state is HEAD else 0)
        except Rejected as rejected:
            self.refuse(rejected)
            return
        if self.state is not HEAD:
            self.event(Event.BYTES)
            self._set_busy(True)
            self._since = self._deadline
            self.arm(self.daemon.limits.header_timeout)
        self.update_interest()

    def _begin_body(self, request: Request) -> None:
        daemon = self.daemon
        limits = daemon.limits
        data, length = self._input, request.length
        streams = daemon.app.streams_body
        if 0 < length <= len(data) and (streams or length <= limits.body_memory):
            self._body_at_once(request, data, length)
            return
        self._decoder = decoder(length, limits.body_bytes, limits.header_bytes)
        self._continue = request.expects_continue and not data
        self._since = self._rested = monotonic()
        self._read = 0
        self._input = b""
        exchange = Exchange(self, request)
        self.exchange = exchange
        if not streams:
            self.state = BODY  # the table's REQUEST_BODY
            if data:
                self._body_data(data)
            else:
                self.arm(limits.body_timeout)
                self._say_continue()
            return
        self.state = STREAMING  # the table's REQUEST_STREAM; what is there already goes along with the call
        exchange.body_complete = False
        self.arm(limits.body_timeout)
        if data:
            self._body_data(data)
        if self.exchange is exchange:
            daemon.call(exchange, exchange.since_ns)
        self.update_interest()

    def _body_at_once(self, request: Request, data: bytes, length: int) -> None:
        """The usual case: all of the body came along with the head.  It needs no decoder, no store and no deadline."""
        if len(data) == length:
            self._input = b""
        else:
            self._input = data[length:]
            data = data[:length]
        exchange = self.exchange = Exchange(self, request)
        self._deadline = inf
        self.state = WORKING  # the table's REQUEST_BODY or REQUEST_STREAM, then BODY_DONE
        if self.daemon.app.streams_body:
            exchange.take_body(data, True)
        else:
            request.content = data
        self.daemon.call(exchange, exchange.since_ns)

    def _say_continue(self) -> None:
        if self._continue:
            self._continue = False
            self._since = self._rested = monotonic()  # only now is it to send
            self._loud(self.push(self.exchange, _CONTINUE))
            if not self.probe:
                self.daemon.counters.count(figures.RESPONSES + 1)

    def want_body(self, exchange: Exchange) -> None:
        """A streaming application reads."""
        if self.exchange is exchange:
            self._say_continue()
            self.update_interest()

    def later(self, callback: Callable[[], None]) -> None:
        """Call in another turn of the loop, after the others had theirs."""
        self.daemon.loop.call_soon_threadsafe(callback)

    def can_skip(self, most: int) -> bool:
        """Is so little left of the body that it is worth reading away?"""
        decoder = self._decoder
        return decoder is not None and not self._continue and 0 <= decoder.left <= most

    def _body_data(self, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            payload = decoder.feed(data)
            self._read += len(data)
            if not decoder.done:
                self._check_rate()
            if payload and self.state is BODY:
                self._keep(payload, decoder.done)
        except Rejected as rejected:
            self.refuse(rejected)
            return
        except OSError as exc:
            self._cannot_keep(exc)
            return
        if decoder.done:
            self._body_done(payload)
            return
        self.arm(self.daemon.limits.body_timeout)
        if self.state is STREAMING and self.exchange is not None:
            self.exchange.take_body(payload, False)
            self.update_interest()

    def _keep(self, payload: bytes, is_last: bool) -> None:
        """Put a part of the body to the others.  One that is all of it needs no store."""
        memory = self.daemon.limits.body_memory
        if self._store is None:
            if is_last and len(payload) <= memory:
                return
            self._store = BodyStore(memory)
        self._store.add(payload)

    def _cannot_keep(self, exc: OSError) -> None:
        """No room for the body (ENOSPC, EMFILE).  The client first: the log may be on the same disk."""
        self.refuse(Rejected(500, "the body cannot be kept"))
        self.daemon.loop.complain(f"a request body cannot be kept: {exc}", None)

    def _check_rate(self) -> None:
        limits = self.daemon.limits
        elapsed = monotonic() - self._since
        if (
            limits.body_min_rate
            and elapsed > limits.body_grace
            and self._read < elapsed * limits.body_min_rate
        ):
            self.daemon.counters.count(figures.TIMEOUTS)
            raise Rejected(408, f"the body comes at less than {limits.body_min_rate} bytes a second")

    def _body_done(self, payload: bytes) -> None:
        decoder, self._decoder = self._decoder, None
        assert decoder is not None
        self._input = decoder.rest
        self._deadline = inf
        self._report_traffic()
        exchange = self.exchange
        if self.state is SKIPPING:
            self.state = SENDING  # the table's BODY_DONE
            self._settle()
        elif self.state is STREAMING:
            assert exchange is not None
            self.state = WORKING
            exchange.take_body(payload, True)
            self.update_interest()
        else:
            assert exchange is not None
            try:
                body = payload if self._store is None else self._store.take()
            except OSError as exc:
                self._cannot_keep(exc)
                return
            if isinstance(body, bytes):
                exchange.request.content = body
            else:
                exchange.request.opened = body
            self._store = None
            self.state = WORKING
            parsing, self._parsing = self._parsing, True
            self.daemon.call(exchange, monotonic_ns())
            self._parsing = parsing
            if not parsing:
                self._resume()

    def _resume(self) -> None:
        """Go on after an answer that was given while input waited, or may have been."""
        moving = self.daemon.moving
        if moving is not None and self.can_move():
            self.update_interest()
            moving.fell_idle(self)  # with what it has read
            return
        with self.lock:
            if self.state is not IDLE or not self._input:
                done = self.state is IDLE and self._eof
                data = b""
            else:
                data, self._input = self._input, b""
        if data:
            self._process(data)
            # Their FIN was read before this: what is not whole will never be, and nobody says so again.
            done = self._eof and (self.state is IDLE or self.state is HEAD or self.state in _WITH_BODY)
        if done:
            self.event(Event.PEER_DONE)
        if not self.closed:
            self.update_interest()

    # -- the end -----------------------------------------------------------------------------------

    def late(self) -> None:
        state = self.state
        exchange = self.exchange
        reading = exchange is not None and exchange.wants_body and not self._continue
        if state is STREAMING and not self._queue and not reading:
            self.arm(self.daemon.limits.body_timeout)  # we are the ones who do not read
            return
        if not self.probe and state not in (IDLE, LINGERING):
            self.daemon.counters.count(figures.TIMEOUTS)
        if self._queue:
            self._reset_on_close()  # what the client has is not the whole
        self.event(Event.DEADLINE)

    def _drop_body(self) -> None:
        self._input = b""
        self._decoder = None
        if self._store is not None:
            self._store.close()
            self._store = None
