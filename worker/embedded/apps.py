"""The engine's two applications that hand a request to its connection."""

from typing import cast

from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import Stage
from quiesce.worker.net.exchange import Exchange


class AccessApp:
    """The handler is called at the head, for each part of the body, and at the end."""

    interface = "native"
    streams_body = True
    blocking = True

    def handle(self, exchange: Exchange) -> None:
        cast(Client, exchange.connection).handle.begin(exchange, Stage.HEAD)


class RequestApp:
    """The handler is called once, when the body is complete: in memory, or in a temporary file."""

    interface = "native"
    streams_body = False
    blocking = True

    def handle(self, exchange: Exchange) -> None:
        cast(Client, exchange.connection).handle.begin(exchange, Stage.END)
