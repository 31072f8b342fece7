"""The engine's application that hands a request to its connection."""

from collections.abc import Callable
from typing import cast

from quiesce.worker.core.request import Request
from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import NOTHING, Stage
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.response import Response


class HandlerApp:
    """See :class:`quiesce.worker.apps.base.App`.

    Args:
        streams_body: The handler is called at the head, for each part of the body, and at the end.  Else once, when the
            body is complete: in memory, or in a temporary file.
    """

    interface = "native"
    blocking = True

    def __init__(self, *, streams_body: bool) -> None:
        self.streams_body = streams_body
        self._begins_at = Stage.HEAD if streams_body else Stage.END

    def handle(self, exchange: Exchange) -> None:
        cast(Client, exchange.connection).handle.begin(exchange, self._begins_at)


class RequestApp:
    """The same for a handler of whole requests, where nobody is told of connections and how requests end.

    Then an answer that is nothing but bytes needs nothing of a :class:`Connection`.  All others have one.
    """

    interface = "native"
    streams_body = False
    blocking = True

    def __init__(self, handler: Callable[[Request], Response]) -> None:
        self._handler = handler

    def handle(self, exchange: Exchange) -> None:
        answer = self._handler(exchange.request)
        client: Client = exchange._connection  # type: ignore[assignment]
        if (
            type(answer) is Response
            and type(answer.body) is bytes
            and answer.path is None
            and answer._more is None  # and so it has one reference, its creator's
            and (client._handle is None or client._handle.asked is NOTHING)
        ):
            exchange.respond(answer)
            if client._queue:  # else nobody could see that it had a reference more
                client.handle.sends_on(exchange, answer)
        else:
            client.handle.answered(exchange, answer)
