"""The engine's application that hands a request to its connection."""

from typing import cast

from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import Stage
from quiesce.worker.net.exchange import Exchange


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
