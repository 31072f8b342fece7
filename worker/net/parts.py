"""A body that comes from an iterator, at the client's pace."""

from collections.abc import Callable, Iterable

from quiesce.worker.net.exchange import Exchange


class Parts:
    """Sends what an iterator yields, then finishes the response, then closes the iterable.

    In a thread of the pool it waits while too much is queued.  In the loop's thread it must not wait: it
    returns and goes on when the client has taken enough, so an endless body costs no memory there either.
    """

    __slots__ = ("_close", "_exchange", "_iterator")

    def __init__(self, exchange: Exchange, parts: Iterable[bytes], close: Callable[[], None] | None) -> None:
        """``close`` is called exactly once, however it ends.  The status must have been said by the first part."""
        self._exchange = exchange
        self._iterator = iter(parts)
        self._close = close

    def run(self) -> None:
        exchange = self._exchange
        exchange.on_writable = exchange.on_disconnect = None
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
        if exchange.write(part) <= exchange.high_water:
            return True
        if exchange.may_wait:
            exchange.wait_writable(exchange.low_water)
            return True
        exchange.on_writable = self.run
        exchange.on_disconnect = self._gone
        return False

    def _gone(self) -> None:
        if self._exchange.disconnected:
            self._exchange.on_writable = None
            self._exchange.finish()
            self._end()
        else:
            self._exchange.on_disconnect = self._gone  # it only sends no more

    def _end(self) -> None:
        close, self._close = self._close, None
        if close is None:
            return
        try:
            close()
        except BaseException as exc:
            self._exchange.fail(exc)
