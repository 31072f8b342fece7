"""A Response to its client: from memory, files, pipes and functions, at the client's pace."""

import os
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from quiesce.worker.core.response_head import BadResponse
from quiesce.worker.loops.base import READ
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.parts import Parts
from quiesce.worker.response import (
    FromBuffers,
    FromFile,
    FromPipe,
    FromReader,
    Options,
    Response,
)

_PIPE_BLOCK = 64 * 1024
_NOT_NOW_S = (0.001, 0.1)  # how soon a reader that had nothing is asked again: twice as late each time


class Pump(Protocol):
    """What goes on sending a response after the handler has returned."""

    def run(self) -> None:
        """Go on; harmless at any time, in the thread that sends."""


def send(
    exchange: Exchange, response: Response, status: int = 0, held: Callable[[], bool] = lambda: False
) -> Pump | None:
    """Send it, or begin to.

    Args:
        status: Another than its own.
        held: Must nothing be asked of a reader or pipe now?  Whoever says so calls the pump's ``run`` afterwards.

    Returns:
        What goes on by itself, or None if everything was said.
    """
    if response.is_plain and status in (0, response.status):
        exchange.respond(response)
        return None
    _frame(exchange, response, status or response.status)
    more = response.more
    source, body = more.source, response.body
    if more.options & Options.HEAD_ONLY:
        if exchange.request.method != "HEAD" and exchange.status != 304:
            raise BadResponse("a response for HEAD only cannot answer this request")
        exchange.finish()
    elif isinstance(source, FromFile):
        exchange.send_file(os.dup(source.fd), source.offset, source.size)
        _finish(exchange, response)
    elif isinstance(source, FromBuffers):
        _send_buffers(exchange, response, source)
    elif isinstance(source, FromReader):
        return _begin(ReaderPump(exchange, response, source, held))
    elif isinstance(source, FromPipe):
        return _begin(PipePump(exchange, response, source, held))
    elif response.path:
        send_path(exchange, response.path)
        _finish(exchange, response)
    elif isinstance(body, bytes):
        if response.more.fields.chunked:
            exchange.write(body)
            _finish(exchange, response)
        else:
            exchange.finish(body)
    elif isinstance(body, (list, tuple)):
        _expect(exchange, response, sum(map(len, body)))
        for part in body:
            exchange.write(part)
        _finish(exchange, response)
    else:
        return _begin(Parts(exchange, body, getattr(body, "close", None)))
    return None


def _frame(exchange: Exchange, response: Response, status: int) -> None:
    options = response.more.options
    exchange.start_head(response.head_for(status))
    if options & (Options.HTTP_1_0_STRICT | Options.HTTP_1_0_SERVER):
        exchange.chunks = False
    asked = exchange.request.asks_keep_alive
    if options & Options.HTTP_1_0_STRICT or (options & Options.HTTP_1_0_SERVER and not asked):
        exchange.leave()
    exchange.says_keep_alive = bool(options & (Options.SAY_KEEP_ALIVE | Options.HTTP_1_0_SERVER))


def _expect(exchange: Exchange, response: Response, size: int) -> None:
    """The length is known, and said unless chunks are wanted."""
    if size >= 0 and not response.more.fields.chunked:
        exchange.expect(size)


def _finish(exchange: Exchange, response: Response) -> None:
    footers = response.more.footers
    if footers:
        exchange.trailers = b"".join(b"%s: %s\r\n" % pair for pair in footers)
    exchange.finish()


def _begin(pump: Pump) -> Pump:
    pump.run()
    return pump


def send_path(exchange: Exchange, path: str) -> None:
    """Queue a whole regular file; the head must have been said."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
    except BaseException:
        os.close(fd)
        raise
    exchange.send_file(fd, 0, status.st_size)


def _send_buffers(exchange: Exchange, response: Response, source: FromBuffers) -> None:
    _expect(exchange, response, source.size)
    for buffer in source.buffers:
        # The output queue keeps the view, and the view its buffer, until the client has it.
        exchange.write(buffer)  # type: ignore[arg-type]
    _finish(exchange, response)


class ReaderPump:
    """Asks a reader for the next bytes whenever the client has taken enough of the last ones."""

    def __init__(
        self, exchange: Exchange, response: Response, source: FromReader, held: Callable[[], bool]
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._source = source
        self._held = held
        self._position = 0
        self._ended = False
        self._pause_s = _NOT_NOW_S[0]
        self._asked = False  # run() will be called
        _expect(exchange, response, source.size)

    def run(self) -> None:
        exchange = self._exchange
        self._asked = False
        exchange.on_writable = None
        turn = 0
        while not self._ended and not self._held():
            if exchange.disconnected:
                self._ended = True
                return
            most = self._most()
            try:
                with self._source.lock:
                    data = self._source.reader(self._position, most) if most else None
            except BaseException as exc:
                self._ended = True
                exchange.fail_reading(exc)
                return
            if data is None:
                self._ended = True
                _finish(exchange, self._response)
                return
            if not data:
                self._not_now()
                return
            self._pause_s = _NOT_NOW_S[0]
            self._position += len(data)
            turn += len(data)
            if not self._goes_on(exchange.write(data), turn):
                return

    def _most(self) -> int:
        """A reader whose size is known is not asked beyond it, and where nothing is sent not at all."""
        if self._exchange.sends_no_body():
            return 0
        size = self._source.size
        return self._source.block if size < 0 else min(self._source.block, size - self._position)

    def _goes_on(self, queued: int, turn: int) -> bool:
        exchange = self._exchange
        if queued > exchange.high_water or (queued and not exchange.may_wait):
            if exchange.may_wait:
                exchange.wait_writable(exchange.low_water)
                return True
            exchange.on_writable = self.run
            return False
        if turn > exchange.high_water and not exchange.may_wait:
            self._later(exchange.later)
            return False
        return True

    def _not_now(self) -> None:
        """It has nothing yet.  Better it suspends the connection; else it is asked again, ever less often."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _NOT_NOW_S[1])
        loop = self._exchange.connection.daemon.loop
        self._later(lambda call: loop.call_at(loop.now() + pause_s, call))

    def _later(self, call: Callable[[Callable[[], None]], object]) -> None:
        if not self._asked:
            self._asked = True
            call(self.run)


class PipePump:
    """Sends what a pipe gives until its end; the loop waits for it."""

    def __init__(
        self, exchange: Exchange, response: Response, source: FromPipe, held: Callable[[], bool]
    ) -> None:
        if source.taken:
            raise BadResponse("a pipe's bytes are for one client; make a response for each")
        source.taken = True
        self._exchange = exchange
        self._response = response
        self._held = held
        self._fd = os.dup(source.fd)  # watched until we are through, whoever frees the response meanwhile
        os.set_blocking(self._fd, False)
        self._loop = exchange.connection.daemon.loop
        self._watched = False
        self._ended = False

    def run(self) -> None:
        exchange = self._exchange
        exchange.on_writable = exchange.on_disconnect = None
        if self._ended:
            return
        if exchange.sends_no_body():
            self._end()
            _finish(exchange, self._response)
            return
        for piece in self._pieces():
            queued = exchange.write(piece)
            if queued:
                self._unwatch()
                exchange.on_writable = self.run
                exchange.on_disconnect = self._gone
                return

    def _pieces(self) -> Iterator[bytes]:
        while not self._held():
            if self._exchange.disconnected:
                self._end()
                return
            try:
                data = os.read(self._fd, _PIPE_BLOCK)
            except BlockingIOError:
                self._watch()
                self._exchange.on_disconnect = self._gone
                return
            except OSError as exc:
                self._end()
                self._exchange.fail_reading(exc)
                return
            if not data:
                self._end()
                _finish(self._exchange, self._response)
                return
            yield data

    def _ready(self, events: int) -> None:
        self.run()
        if self._watched and self._held():
            self._unwatch()  # level-triggered: it would be said for ever

    def _watch(self) -> None:
        if not self._watched:
            self._loop.watch(self._fd, self._ready, READ)
            self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._fd)

    def _gone(self) -> None:
        if self._exchange.disconnected:
            self._end()
        else:
            self._exchange.on_disconnect = self._gone  # it only sends no more

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._unwatch()
            os.close(self._fd)
