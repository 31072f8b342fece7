"""One request with its response: what an application holds.

The application side may be any thread, one at a time.  When the client has gone, or the daemon has answered
in the application's place (408, 503), everything here goes on working and does nothing.
"""

import os
from collections.abc import Callable, Iterable
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from quiesce.worker.core.request import Header, Request
from quiesce.worker.core.response import Response
from quiesce.worker.core.response_head import BadResponse, Head, encode, has_no_body
from quiesce.worker.net.output import JOIN_BELOW

if TYPE_CHECKING:
    from quiesce.worker.net.stream import Connection

_KEEP_OPEN_BELOW = 64 * 1024  # so much of an unread body is read away to keep the connection


class Exchange:
    """Attributes for applications:

    request: The request.
    disconnected: Nothing that is written reaches anybody.
    on_writable: Called in the loop's thread when the queue has fallen to ``limits.low_water``.
    on_disconnect: Called in the loop's thread when the client has gone, or has said that it sends no more.
    """

    # What each request asks for lies in slots, which cost next to nothing to fill and to read.  What few ask for has
    # its default on the class, and comes into a dictionary when it is set: fifteen slots more would be felt.
    __slots__ = (
        "__dict__", "_connection", "_head", "_last", "_whole", "body_complete", "body_sent", "disconnected",
        "finished", "request", "says_keep_alive", "since_ns", "started", "status",
    )  # fmt: skip
    on_writable: Callable[[], None] | None = None
    on_disconnect: Callable[[], None] | None = None
    trailers = b""  # whole lines, behind the last chunk
    chunks = True  # False: what would go out in chunks is ended by the connection's end
    _left = -1  # bytes that Content-Length still promises; -1 = none promised
    _chunked = False
    _no_body = False
    _on_body: Callable[[bytes, bool], None] | None = None
    _paused = False
    _pending: list[bytes] | None = None

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self.request = request
        self.since_ns = monotonic_ns()  # when the head was complete
        self.body_complete = True  # the request's; what comes behind it is the next request's
        self.body_sent = 0
        self.status = 0  # 0 = start() was not called
        self.started = False  # bytes of the head are out
        self.finished = False
        self.disconnected = False
        self.says_keep_alive = False  # also where it goes without saying
        self._head: Head | None = None
        self._whole = -1  # the body's length, if the application let us know it early
        self._last = False  # our answer said, or will say, Connection: close

    # -- the response -------------------------------------------------------------------

    def start(self, status: int, headers: Iterable[Header] = (), reason: bytes = b"") -> None:
        """Say status and headers.  They go out with the first bytes of the body, or at :meth:`finish`; until
        then a second ``start`` replaces the first.  Date, framing and Connection are added; hop-by-hop
        fields are dropped, ``Connection: close`` is obeyed.

        Raises:
            BadResponse: It cannot be sent as HTTP.  Nothing was changed.
        """
        if self.started:
            raise BadResponse("the response has begun; its head cannot be said again")
        self.start_head(encode(status, headers, reason))

    def start_head(self, head: Head) -> None:
        """The same with a head that was encoded before."""
        self._head = head
        self.status = head.status

    def expect(self, length: int) -> None:
        """The body will have so many bytes: they go out under a Content-Length instead of in chunks."""
        self._whole = length

    def write(self, data: bytes) -> int:
        """Send a part of the body, now.  Returns how many bytes are still queued.

        What goes beyond Content-Length is dropped, and the connection closed.
        """
        connection = self._connection
        if connection.broken:
            self.disconnected = True
        if self.disconnected:
            return 0
        if not data:
            return connection.queued
        if type(data) is not bytes:
            data = _as_bytes(data)
        head = b"" if self.started else self._frame(self._whole)
        if self._no_body:
            if head:
                connection.send(self, head)
            return connection.queued
        size = len(data)
        if self._left >= 0:
            if size > self._left:
                self._complain("sends more than its Content-Length")
                data = data[: self._left]
                self._last = True
                size = len(data)
            self._left -= size
        self.body_sent += size
        if self._chunked:
            if size <= 16 * 1024:
                connection.send(self, b"%s%x\r\n%s\r\n" % (head, size, data))
            else:
                connection.send(self, b"%s%x\r\n" % (head, size), data)
                connection.send(self, b"\r\n")
        elif head:
            connection.send(self, head, data)
        elif size:
            connection.send(self, data)
        return connection.queued

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a regular file, by the kernel.  Takes ``fd``, whatever happens.

        The file must have these bytes: Content-Length is taken from ``count`` if it is not given.
        """
        if self.disconnected:
            os.close(fd)
            return
        connection = self._connection
        head = b"" if self.started else self._frame(count)
        if head:
            connection.send(self, head)
        if self._left >= 0 and count > self._left:
            self._complain("sends more than its Content-Length")
            self._last = True
            count = self._left
        if self._no_body or not count:
            os.close(fd)
            return
        self._left -= count if self._left >= 0 else 0
        self.body_sent += count
        if self._chunked:
            connection.send(self, b"%x\r\n" % count)
        connection.send_file(self, fd, offset, count)
        if self._chunked:
            connection.send(self, b"\r\n")

    def finish(self, data: bytes = b"") -> None:
        """Send the last part of the body, and end the response.

        A body that is given here whole gets its Content-Length by itself.
        """
        if self.finished:
            return
        if self.disconnected:
            self._close_body()
            return
        connection = self._connection
        if not self.started:
            if self._finish_plain(data):
                return
            head = self._frame(len(data) if self._whole < 0 else self._whole)
            if not self._no_body and len(data) == self._left:
                self._left = 0
                self.body_sent = len(data)
                self._done(head, data)
                return
            if 0 <= self._left < len(data) and not self._no_body:
                self._last = True  # write() will say what is wrong; the client hears that it is the last
                head = self._frame(len(data))
            connection.send(self, head)
        if data:
            self.write(data)
        if self._left > 0 and not self._no_body:
            self._complain(f"ended {self._left} bytes short of its Content-Length")
            self.abort()
            return
        self._done(b"0\r\n%s\r\n" % self.trailers if self._chunked and not self._no_body else b"")

    def _finish_plain(self, data: bytes) -> bool:
        """The usual case of :meth:`finish`: all of the body is here, and is as long as was said, if it was."""
        head = self._head
        request = self.request
        size = len(data)
        if head is None or request.method == "HEAD" or self._whole >= 0 or size > JOIN_BELOW:
            return False
        if not head.is_plain and not (head.tells_length and head.length == size):
            return False
        now = monotonic()
        connection = self._connection
        daemon = connection.daemon
        dates = daemon.dates
        line = b""
        if (
            not (request.keep_alive and request.version == "1.1" and self.body_complete)
            or self._last
            or daemon.closing
            or self.says_keep_alive
        ):
            line = self._last_words(head)
        wire = head.whole(dates.current if now < dates.until else dates.line(now), size, line)
        self.started = self.finished = True
        self.body_sent = size
        if request.opened is not None:
            request.opened.close()
        connection.answer(self, not self._last, wire + data, now)
        return True

    def respond(self, response: Response) -> None:
        """Send a whole response with a body in bytes, from its cache if it has it."""
        if self.disconnected:
            self._close_body()
            return
        head = response.head
        body: bytes = response.body  # type: ignore[assignment]  # who calls has looked
        self.status = response.status
        request = self.request
        if not head.is_plain or request.method == "HEAD":
            self._head = head
            self.finish(body)
            return
        connection = self._connection
        daemon = connection.daemon
        line = b""
        if (
            not (request.keep_alive and request.version == "1.1" and self.body_complete)
            or self._last
            or daemon.closing
            or self.says_keep_alive
        ):
            line = self._last_words(head)
        now, dates = monotonic(), daemon.dates
        date = dates.current if now < dates.until else dates.line(now)
        cached = response._cached
        wire = cached[2] if cached[0] is date and cached[1] is line else response.wire(date, line)
        self.started = self.finished = True
        self.body_sent = len(body)
        if request.opened is not None:
            request.opened.close()
        connection.answer(self, not self._last, wire, now)

    def _last_words(self, head: Head) -> bytes:
        """Decide whether this answer is the last one.  Returns the Connection line that says so."""
        self._last = self._is_last(head)
        return self._connection_line()

    def leave(self) -> None:
        """Whatever the answer says, it is this connection's last."""
        self._last = True

    @property
    def connection(self) -> "Connection":
        """The engine's side of it."""
        return self._connection

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the response is not whole."""
        self.disconnected = True
        self._close_body()
        self._connection.abort(self)

    def fail(self, exc: BaseException) -> None:
        """The application raised: its traceback goes to standard error, and the client gets a 500, or a
        response that is visibly cut where one has begun.
        """
        request = self.request
        target = request.target.decode("latin-1")
        self._complain(f"raised {type(exc).__name__} in {request.method} {target}", exc)
        if self.disconnected:
            self._close_body()
        elif self.started:
            self.abort()
        else:
            self._head = None
            self._last = True
            self.start(500, ((b"Content-Type", b"text/plain; charset=utf-8"),))
            self.finish(b"500 Internal Server Error\n")

    def fail_reading(self, exc: BaseException) -> None:
        """What gives the body failed: said on standard error, and the client sees that it is not whole."""
        self._complain(f"cannot go on with a response: {type(exc).__name__}: {exc}")
        if not self.disconnected:
            self.abort()

    def sends_no_body(self) -> bool:
        """The answer, whose head was said, ends with its head."""
        return self.request.method == "HEAD" or has_no_body(self.status)

    def wait_writable(self, low_water: int) -> bool:
        """Wait until no more than ``low_water`` bytes are queued; False if the client has gone.

        Threads of the pool only: in the loop's thread nobody would send.
        """
        return not self.disconnected and self._connection.wait_below(low_water)

    def later(self, callback: Callable[[], None]) -> None:
        """Call in the loop's thread, in a later turn."""
        self._connection.later(callback)

    @property
    def is_probe(self) -> bool:
        """The supervisor's own, over a socket pair."""
        return self._connection.probe

    @property
    def may_wait(self) -> bool:
        """This thread is none that serves others."""
        return not self._connection.daemon.in_loop()

    @property
    def high_water(self) -> int:
        return self._connection.daemon.limits.high_water

    @property
    def low_water(self) -> int:
        return self._connection.daemon.limits.low_water

    # -- the request's body, for applications that stream it -----------------------------------

    def read_body(self, on_body: Callable[[bytes, bool], None]) -> None:
        """Deliver the body as it comes: ``on_body(data, more)``, the last call with ``more`` False.

        What is there is delivered before this returns.  Sends 100 Continue if the client waits for it.
        """
        self._on_body = on_body
        if not self.body_complete:
            self._connection.want_body(self)
        if not self._paused:
            self._deliver()

    def take_whole_body(self) -> bytes | None:
        """The body, if all of it is there and nobody has begun to read it; nothing is left then."""
        if not self.body_complete or self._on_body is not None:
            return None
        pending, self._pending = self._pending, None
        return b"".join(pending) if pending else b""

    def pause_reading(self) -> None:
        """No ``on_body`` until :meth:`resume_reading`; the client is held up by TCP."""
        self._paused = True
        self._connection.update_interest()

    def resume_reading(self) -> None:
        """Deliver what has come meanwhile, and read on."""
        self._paused = False
        self._deliver()
        self._connection.update_interest()

    @property
    def wants_body(self) -> bool:
        """The connection reads on: somebody takes the body, or not much of it is held."""
        if self._paused:
            return False
        return self._on_body is not None or sum(map(len, self._pending or ())) < _KEEP_OPEN_BELOW

    def take_body(self, data: bytes, complete: bool) -> None:
        """The connection's: a part of the body has come."""
        if data:
            if self._pending is None:
                self._pending = []
            self._pending.append(data)
        self.body_complete = complete
        if self._on_body is not None and not self._paused:
            self._deliver()

    def _deliver(self) -> None:
        while self._on_body is not None and not self._paused and (self._pending or self.body_complete):
            on_body, pending, more = self._on_body, self._pending, not self.body_complete
            self._pending = None
            if not more:
                self._on_body = None
            on_body(b"".join(pending or ()), more)

    # -- inside -------------------------------------------------------------------------------

    def _is_last(self, head: Head) -> bool:
        if self._last or head.close or not self.request.keep_alive or self._connection.daemon.closing:
            return True
        return not self.body_complete and not self._connection.can_skip(_KEEP_OPEN_BELOW)

    def _connection_line(self) -> bytes:
        if self._last:
            return b"Connection: close\r\n"
        if self.request.version == "1.0" or self.says_keep_alive:
            return b"Connection: keep-alive\r\n"
        return b""

    def _frame(self, whole: int) -> bytes:
        """The head as it goes out.  ``whole``: the body's length if it is known, or -1."""
        head = self._head
        if head is None:
            raise BadResponse("the response has no status: start() was not called")
        self.started = True
        status, length = head.status, head.length
        request = self.request
        is_head = request.method == "HEAD"
        self._no_body = is_head or has_no_body(status)
        framing = b""
        # To HEAD, an application may leave the body out: then nobody knows what GET would have said.
        if length < 0 and not has_no_body(status) and not (is_head and whole == 0):
            if whole >= 0:
                length = whole
                framing = b"Content-Length: %d\r\n" % whole
            elif request.version == "1.1" and self.chunks:
                self._chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            elif not is_head:
                self._last = True
        self._left = length
        date = b"" if head.dated else self._connection.daemon.dates.line(monotonic())
        return b"".join((head.lines, date, framing, self._last_words(head), b"\r\n"))

    def _done(self, data: bytes = b"", more: bytes = b"") -> None:
        self.finished = True
        if self.request.opened is not None:
            self.request.opened.close()
        self._connection.complete(self, not self._last, data, more)

    def _close_body(self) -> None:
        if self.request.opened is not None:
            self.request.opened.close()

    def _complain(self, what: str, exc: BaseException | None = None) -> None:
        daemon = self._connection.daemon
        daemon.loop.complain(f"the {daemon.app.interface} application {what}", exc)

    def tell(self) -> None:
        """The connection's, in the loop's thread: nobody listens any more, or sends any more."""
        callback, self.on_disconnect = self.on_disconnect, None
        if callback is not None:
            callback()

    def seconds(self) -> float:
        """Since the head was complete."""
        return (monotonic_ns() - self.since_ns) / 1e9


def _as_bytes(data: Any) -> bytes:
    """What can be sent as it is, or a copy of it.

    Raises:
        TypeError: Text, a number: before anything of the head is out, so that there can be a 500.
    """
    view = memoryview(data)
    if type(data) is memoryview and view.readonly and view.c_contiguous and view.ndim == view.itemsize == 1:
        return data  # type: ignore[return-value]
    return bytes(view)  # it may change while it waits for the client, or its len() is no number of bytes
