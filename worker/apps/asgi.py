"""ASGI 3 applications on the daemon: one task a request.

Source: ASGI specification 3.0, HTTP & WebSocket message format 2.3.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from quiesce.worker.apps.lifespan import Lifespan
from quiesce.worker.apps.loader import LoadError
from quiesce.worker.core.response_head import Head, HeadMemo, encode

if TYPE_CHECKING:
    from quiesce.worker.core.request import Request
    from quiesce.worker.loops.asyncio_loop import AsyncioLoop
    from quiesce.worker.net.exchange import Exchange

BODY_HIGH = 64 * 1024  # bytes of a request that wait for the application before its client has to
OUT_HIGH = 64 * 1024  # bytes of a response that wait for the client before the application has to

NO_WEBSOCKETS = b"WebSockets come with a later version of quiesce.\n"


class AsgiApp:
    """``App`` (base.py) around an ASGI application."""

    interface = "asgi"
    streams_body = True
    blocking = False

    def __init__(self, app: Any, loop: "AsyncioLoop") -> None:
        self._app, self._loop = app, loop
        self._start = _starter(loop.aio)
        self._heads = HeadMemo()
        self._lifespan = Lifespan(app, loop.aio)
        self._running = Running()

    def running(self) -> int:
        """Requests whose tasks have not ended: a background task goes on after the response."""
        return len(self._running)

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call each time when the last one has ended."""
        self._running.when_idle = callback

    def startup(self, done: Callable[[LoadError | None], None]) -> None:
        """Lifespan startup; ``done(None)`` when requests may come.  In the loop's thread."""
        self._lifespan.startup(done)

    def shutdown(self, done: Callable[[], None]) -> None:
        """Lifespan shutdown, when the last request is over."""
        self._lifespan.shutdown(done)

    def close(self) -> None:
        """After the loop has stopped: cancel what still runs, release the loop's descriptors."""
        self._loop.close()

    def handle(self, exchange: "Exchange") -> None:
        request = exchange.request
        if request.offers_upgrade and _asks_for_websocket(request):
            _refuse(exchange)
            return
        scope = scope_of(request)
        if self._lifespan.is_supported:
            scope["state"] = self._lifespan.state.copy()
        cycle = Cycle(exchange, self._loop.aio, self._running, self._heads)
        task = self._start(cycle.run(self._app, scope))
        if not task.done():
            cycle.task = task


def _starter(aio: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]:
    """Makes a task, which runs to its first wait at once where Python can do that: then it costs no turn."""
    if sys.version_info >= (3, 12):
        return partial(asyncio.Task, loop=aio, eager_start=True)
    return aio.create_task


class Running(set["Cycle"]):
    """The cycles whose tasks run; asyncio itself has only weak references to tasks."""

    when_idle: Callable[[], None] = staticmethod(lambda: None)

    def over(self, cycle: "Cycle") -> None:
        self.discard(cycle)
        if not self:
            self.when_idle()


def scope_of(request: "Request") -> dict[str, Any]:
    """The connection scope of one request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method.upper(),
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": request.peer,
        "server": request.local,
    }


def _asks_for_websocket(request: "Request") -> bool:
    if request.version == "1.0" or request.method != "GET":
        return False  # RFC 9110 §7.8: must be ignored; RFC 6455 §4.1: GET it is
    for name, value in request.headers:
        if name == b"upgrade":
            return value.lower() == b"websocket"
    return False


def _refuse(exchange: "Exchange") -> None:
    # Not 426, which would have to name a protocol to upgrade to.  A plain http scope would let the
    # application answer 404, and its author search for the route.
    exchange.start(
        400, [(b"content-type", b"text/plain"), (b"content-length", str(len(NO_WEBSOCKETS)).encode())]
    )
    exchange.write(NO_WEBSOCKETS)
    exchange.finish()


class Cycle:
    """One request and its response: the application's ``receive`` and ``send``.  All in the loop's thread."""

    __slots__ = (
        "_aio", "_chunks", "_complete", "_exchange", "_head", "_heads", "_hung_up", "_more", "_paused", "_queued",
        "_reader", "_reading", "_running", "_started", "_writer", "task",
    )  # fmt: skip

    def __init__(
        self, exchange: "Exchange", aio: asyncio.AbstractEventLoop, running: Running, heads: HeadMemo
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._exchange, self._aio, self._running, self._heads = exchange, aio, running, heads
        running.add(self)  # not a callback of the task: each would cost a turn of asyncio's queue
        self._chunks: list[bytes] | None = None  # made when there is a body
        self._queued = 0  # bytes in _chunks
        self._more = True  # there is body that receive() has not returned
        self._reading = self._paused = False
        self._reader: asyncio.Future[None] | None = None  # receive() waits
        self._writer: asyncio.Future[None] | None = None  # send() waits
        self._head: tuple[int, Any] | None = None  # sent by the application, not yet by us
        self._started = self._complete = False
        self._hung_up = False  # the client has gone, or sends no more: the application hears the same of both
        exchange.on_disconnect = self._on_disconnect

    async def run(self, app: Any, scope: dict[str, Any]) -> None:
        """Call the application and make sure that there is an end."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._exchange.abort()
            raise
        except BaseException as exc:
            # KeyboardInterrupt and SystemExit too: from a task, asyncio would let them end the whole worker.
            self._fail(exc)
        else:
            if (self._hung_up or self._exchange.disconnected) and not self._complete:
                self._exchange.abort()  # it was told, and stopped
            elif not self._complete:
                what = "a whole response" if self._started or self._head else "a response"
                self._fail(RuntimeError(f"the ASGI application returned without {what}"))
        finally:
            self._over()

    def _fail(self, exc: BaseException) -> None:
        self._exchange.fail(exc)
        self._complete = True

    def _over(self) -> None:
        """The application has returned; a task that it left behind finds only http.disconnect."""
        self._complete = True
        if self._writer is None:
            self._exchange.on_disconnect = None  # else they would hold each other until the collector comes
        self._running.over(self)
        if self._reader is not None:
            self._wake(self._reader)

    # -- request ------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        """The next part of the body; when all of it was returned, http.disconnect as soon as that is true."""
        while True:
            if self._chunks:
                return self._next_part()
            if self._hung_up or self._complete:
                return {"type": "http.disconnect"}
            if self._more and not self._read_on():
                self._more = False
                return {"type": "http.request", "body": b"", "more_body": False}
            if not self._chunks:
                await self._until_readable()

    def _next_part(self) -> dict[str, Any]:
        chunks, self._chunks = self._chunks, None
        assert chunks is not None
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._queued = 0
        return {"type": "http.request", "body": data, "more_body": self._more}

    def _read_on(self) -> bool:
        """Let the body come; False if there is none."""
        if not self._reading:
            if self._exchange.request.length == 0:
                return False
            self._reading = True
            self._exchange.read_body(self._on_body)  # may have the first part already
        elif self._paused:
            self._paused = False
            self._exchange.resume_reading()
        return True

    def _on_body(self, data: bytes, more: bool) -> None:
        self._more = more
        if data or not more:
            if self._chunks is None:
                self._chunks = []
            self._chunks.append(data)
            self._queued += len(data)
        if more and self._queued >= BODY_HIGH and not self._paused:
            self._paused = True
            self._exchange.pause_reading()
        self._wake(self._reader)

    async def _until_readable(self) -> None:
        if self._reader is None or self._reader.done():
            self._reader = self._aio.create_future()
        # Shielded: two tasks may wait here, and one of them be cancelled (frameworks watch for disconnect so).
        await asyncio.shield(self._reader)

    def _on_disconnect(self) -> None:
        self._hung_up = True
        self._exchange.on_disconnect = self._on_disconnect  # it may have said only that it sends no more
        self._wake(self._reader)
        self._wake(self._writer)

    # -- response -----------------------------------------------------------------------

    async def send(self, message: dict[str, Any]) -> None:
        """Take one message of the response; return when the client has taken enough of it.

        Raises:
            RuntimeError: The messages are not in order.
        """
        kind = message["type"]
        if kind == "http.response.start":
            if self._head is not None or self._started:
                raise RuntimeError("ASGI: a second 'http.response.start'")
            # Kept until there is a body, so that an error before it can still be a 500.
            self._head = int(message["status"]), message.get("headers", ())
            return
        if kind != "http.response.body":
            raise RuntimeError(f"ASGI: {kind!r} is not a message of an HTTP response")
        if self._head is None and not self._started:
            raise RuntimeError("ASGI: 'http.response.body' before 'http.response.start'")
        if self._complete and not self._exchange.disconnected:
            raise RuntimeError("ASGI: 'http.response.body' after the response was complete")
        await self._body(message.get("body", b""), message.get("more_body", False))

    async def _body(self, data: bytes, more: bool) -> None:
        exchange = self._exchange
        if exchange.disconnected:
            return  # specification 2.3: sending to a client that has gone does nothing
        if self._head is not None:
            exchange.start_head(self._encoded(*self._head))
            self._head, self._started = None, True
        if not more:
            self._complete = True
            exchange.finish(data if type(data) is bytes else bytes(data))
            if self._reader is not None:
                self._wake(self._reader)
            return
        queued = exchange.write(bytes(data))
        while queued > OUT_HIGH and not exchange.disconnected:
            exchange.on_writable = self._on_writable
            self._writer = self._aio.create_future()
            await self._writer
            queued = exchange.write(b"")

    def _encoded(self, status: int, headers: Any) -> Head:
        key = status, tuple(headers)
        try:
            head = self._heads.get(key)
        except TypeError:  # pairs that are lists, or no bytes objects
            return encode(status, [(bytes(name), bytes(value)) for name, value in key[1]])
        if head is None:
            head = encode(status, [(bytes(name), bytes(value)) for name, value in key[1]])
            self._heads.keep(key, head)
        return head

    def _on_writable(self) -> None:
        self._wake(self._writer)

    @staticmethod
    def _wake(future: "asyncio.Future[None] | None") -> None:
        if future is not None and not future.done():
            future.set_result(None)
