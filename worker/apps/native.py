"""The native interface: ``handler(request) -> Response``."""

from collections.abc import Callable

from quiesce.worker.core.request import Request
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.sending import send
from quiesce.worker.response import Response

Handler = Callable[[Request], Response]


class NativeApp:
    """See :class:`quiesce.worker.apps.base.App`."""

    interface = "native"
    streams_body = False
    blocking = True

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def handle(self, exchange: Exchange) -> None:
        handler = self.handler  # called as it is: a call by way of an attribute costs twice as much
        self.answer(exchange, handler(exchange.request))

    def answer(self, exchange: Exchange, response: object) -> None:
        """Send what the handler has returned.

        Raises:
            TypeError: It is no response.
        """
        if type(response) is not Response and not isinstance(response, Response):
            raise TypeError(f"the handler returned {type(response).__name__}, not a quiesce.Response")
        if type(response.body) is bytes and response.path is None:  # it is plain
            exchange.respond(response)
        else:
            send(exchange, response)
