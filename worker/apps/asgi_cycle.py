"""One ASGI request and its response: the application's ``receive`` and ``send``.

All in the loop's thread.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quiesce.worker.core.response_head import Head, HeadMemo, encode
from quiesce.worker.net.sending import send_path

if TYPE_CHECKING:
    from quiesce.worker.loops.asyncio_loop import AsyncioLoop
    from quiesce.worker.net.exchange import Exchange

BODY_HIGH = 64 * 1024  # bytes of a request that wait for the application before its client has to
OUT_HIGH = 64 * 1024  # bytes of a response that wait for the client before the application has to

Future = asyncio.Future[None]


_heads = HeadMemo()


class Running(set["Cycle"]):
    """The cycles whose tasks go on; asyncio itself has only weak references to tasks."""

    when_idle: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, loop: "AsyncioLoop") -> None:
        super().__init__()
        self._loop = loop

    def over(self, cycle: "Cycle") -> None:
        self.discard(cycle)
        if not self:
            self.when_idle()

    def answered(self) -> None:
        """A task has said something that counts, and this may be no turn of the loop's."""
        self._loop.turned()


class Cycle:
    """One request, and its response."""

    # Defaults on the class, of what most requests neither change nor ask for.
    _task: "asyncio.Task[None] | None" = None  # held here for as long as it goes on
    _running: Running | None = None  # that we are in
    _chunks: list[bytes] | None = None  # of the body, for receive()
    _queued = 0  # bytes in _chunks
    _more = True  # there is body that receive() has not returned
    _reading = _paused = False
    _readers: list[Future] | None = None  # who waits in receive(): more than one may, and one be cancelled
    _writers: list[Future] | None = None  # who waits in send()
    _hung_up = False  # the client has gone, or sends no more: the application hears the same of both

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._complete = False  # the response is
        self._waited = False  # somebody has, or the task begins in a later turn: others have had theirs

    async def run(self, app: Any, scope: dict[str, Any]) -> None:
        """Call the application and make sure that there is an end."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._exchange.abort()
            self._end()
            raise
        except BaseException as exc:
            # KeyboardInterrupt and SystemExit too: from a task, asyncio would let them end the whole worker.
            self._fail(exc)
        else:
            if not self._complete:
                self._returned_early()
        finally:
            if self._waited:
                self._over()

    def goes_on(self, task: "asyncio.Task[None]", running: Running) -> None:
        """The application has not returned yet: it waits, or will begin in a later turn."""
        self._task, self._running = task, running
        running.add(self)  # not a callback of the task: each would cost a turn of asyncio's queue
        self._listen()

    def _listen(self) -> None:
        """Hear of the client's end.  Before the first wait nobody could."""
        self._waited = True
        self._hung_up = self._hung_up or self._exchange.disconnected
        self._exchange.on_disconnect = self._on_disconnect

    def _over(self) -> None:
        self._end()
        if not self._writers:
            self._exchange.on_disconnect = None  # else they would hold each other until the collector comes
        if self._running is not None:
            self._running.over(self)

    def _returned_early(self) -> None:
        exchange = self._exchange
        if self._hung_up or exchange.disconnected:
            exchange.abort()  # it was told, and stopped
            self._end()
        else:
            what = "a whole response" if exchange.status else "a response"
            self._fail(RuntimeError(f"the ASGI application returned without {what}"))

    def _fail(self, exc: BaseException) -> None:
        self._exchange.fail(exc)
        self._end()

    def _end(self) -> None:
        """The response is over; a task that the application left behind finds only http.disconnect."""
        self._complete = True
        if self._readers is not None:
            self._wake_readers()
        if self._running is not None:
            self._running.answered()

    # -- request ------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        """The next part of the body; when all of it was returned, http.disconnect as soon as that is true."""
        while True:
            if self._chunks:
                return self._next_part()
            if self._hung_up or self._complete:
                return {"type": "http.disconnect"}
            if self._more:
                if not self._reading:
                    body = self._exchange.take_whole_body()
                    if body is not None:  # the usual case
                        self._more = False
                        return {"type": "http.request", "body": body, "more_body": False}
                self._read_on()
            if not self._chunks:
                await self._until_readable()

    def _next_part(self) -> dict[str, Any]:
        chunks, self._chunks = self._chunks, None
        assert chunks is not None
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._queued = 0
        return {"type": "http.request", "body": data, "more_body": self._more}

    def _read_on(self) -> None:
        """Let the body come."""
        if not self._reading:
            self._reading = True
            self._exchange.read_body(self._on_body)  # may have the first part already
        elif self._paused:
            self._paused = False
            self._exchange.resume_reading()

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
        if self._readers:
            self._wake_readers()

    async def _until_readable(self) -> None:
        if not self._waited:
            self._listen()
        if self._readers is None:
            self._readers = []
        future: Future = asyncio.get_running_loop().create_future()
        self._readers.append(future)
        await future

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, None
        _wake(readers)

    def _on_disconnect(self) -> None:
        self._hung_up = True
        self._exchange.on_disconnect = self._on_disconnect  # it may have said only that it sends no more
        self._wake_readers()
        self._on_writable()

    # -- response -----------------------------------------------------------------------

    async def send(self, message: dict[str, Any]) -> None:
        """Take one message of the response; return when the client has taken enough of it.

        Raises:
            RuntimeError: The messages are not in order.
            BadResponse: The head cannot be sent as HTTP.
            OSError: The file of ``http.response.pathsend`` cannot be opened.
        """
        exchange = self._exchange
        kind = message["type"]
        if kind == "http.response.start":
            if exchange.status:
                raise RuntimeError("ASGI: a second 'http.response.start'")
            key = message["status"], *message.get("headers", ())
            try:
                head = _heads.get(key)
            except TypeError:  # pairs that are lists, or no bytes objects
                head = None
            # Kept there until there is a body, so that an error before it can still be a 500.
            exchange.start_head(head or _encoded(key))
            return
        if kind != "http.response.body" and kind != "http.response.pathsend":
            raise RuntimeError(f"ASGI: {kind!r} is not a message of an HTTP response")
        if not exchange.status:
            raise RuntimeError(f"ASGI: {kind!r} before 'http.response.start'")
        if exchange.disconnected:
            return  # specification 2.3: sending to a client that has gone does nothing
        if self._complete:
            raise RuntimeError(f"ASGI: {kind!r} after the response was complete")
        if kind == "http.response.pathsend":
            send_path(exchange, message["path"])
            exchange.finish()
            self._end()
            return
        data = message.get("body", b"")
        if type(data) is not bytes:
            data = bytes(data)
        if message.get("more_body", False):
            if exchange.write(data) > OUT_HIGH:
                await self._until_writable()
            return
        exchange.finish(data)
        self._complete = True
        if self._waited:
            self._end()

    async def _until_writable(self) -> None:
        exchange = self._exchange
        if not self._waited:
            self._listen()
        while not exchange.disconnected and exchange.write(b"") > OUT_HIGH:
            exchange.on_writable = self._on_writable
            if self._writers is None:
                self._writers = []
            future: Future = asyncio.get_running_loop().create_future()
            self._writers.append(future)
            await future

    def _on_writable(self) -> None:
        writers, self._writers = self._writers, None
        _wake(writers)


def _encoded(key: tuple[Any, ...]) -> Head:
    status, *headers = key
    head = encode(int(status), [(bytes(name), bytes(value)) for name, value in headers])
    with suppress(TypeError):
        _heads.keep(key, head)
    return head


def _wake(waiting: list[Future] | None) -> None:
    for future in waiting or ():
        if not future.done():
            future.set_result(None)
