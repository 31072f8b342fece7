"""A body that comes from an iterator, at the client's pace."""

from collections.abc import Callable, Iterable

from quiesce.worker.net.exchange import Exchange


class Parts:
    """Sends what an iterator yields, then finishes the response, then closes the iterable.

    In a thread of the pool it waits while too much is queued.  In the loop's thread it must not wait: it
    returns and goes on when the client has taken enough, so an endless body costs no memory there either.
    """

    __slots__ = ("_close", "_ended", "_exchange", "_iterator", "_run")

    def __init__(self, exchange: Exchange, parts: Iterable[bytes], close: Callable[[], None] | None) -> None:
        """``close`` is called exactly once, however it ends.  The status must have been said by the first part."""
        self._exchange = exchange
        self._iterator = iter(parts)
        self._close = close
        self._ended = False
        self._run = 0  # bytes of this turn

    def run(self) -> None:
        exchange = self._exchange
        if self._ended:
            return
        exchange.on_writable = exchange.on_disconnect = None
        self._run = 0
        try:
            for part in self._iterator:
                if part and not self._send(part):
                    return
                if exchange.disconnected:
                    break
            exchange.finish()
        except BaseException as exc:
            exchange.fail(exc)
        self._end()

    def _send(self, part: bytes) -> bool:
        """False: not now; the loop calls again."""
        exchange = self._exchange
        queued = exchange.write(part)
        self._run += len(part)
        if queued <= exchange.high_water and self._run <= exchange.high_water:
            return True
        if exchange.may_wait:
            if queued > exchange.high_water:
                exchange.wait_writable(exchange.low_water)
            return True
        exchange.on_disconnect = self._gone
        if queued > exchange.low_water:
            exchange.on_writable = self.run
        else:
            exchange.later(self.run)  # a client that reads as fast as we write is not alone here
        return False

    def _gone(self) -> None:
        if self._exchange.disconnected:
            self._exchange.on_writable = None
            self._exchange.finish()
            self._end()
        else:
            self._exchange.on_disconnect = self._gone  # it only sends no more

    def _end(self) -> None:
        self._ended = True
        close, self._close = self._close, None
        if close is None:
            return
        try:
            close()
        except BaseException as exc:
            self._exchange.fail(exc)
