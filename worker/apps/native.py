"""The native interface: ``handler(request) -> Response``."""

import os
import stat
from collections.abc import Callable

from quiesce.worker.core.request import Request
from quiesce.worker.core.response import Response
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.parts import Parts

Handler = Callable[[Request], Response]


class NativeApp:
    """See :class:`quiesce.worker.apps.base.App`."""

    interface = "native"
    streams_body = False
    blocking = True

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def handle(self, exchange: Exchange) -> None:
        response = self._handler(exchange.request)
        if type(response) is not Response and not isinstance(response, Response):
            raise TypeError(f"the handler returned {type(response).__name__}, not a quiesce.Response")
        if type(response.body) is bytes and response.path is None:
            exchange.respond(response)
        elif response.path is not None:
            _send_file(exchange, response, response.path)
        else:
            _send_parts(exchange, response)


def _send_file(exchange: Exchange, response: Response, path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        exchange.start_head(response.head)
    except BaseException:
        os.close(fd)
        raise
    exchange.send_file(fd, 0, status.st_size)
    exchange.finish()


def _send_parts(exchange: Exchange, response: Response) -> None:
    body = response.body
    assert not isinstance(body, bytes)
    close = getattr(body, "close", None)
    exchange.start_head(response.head)
    if isinstance(body, (list, tuple)):
        exchange.expect(sum(map(len, body)))
        for part in body:
            exchange.write(part)
        exchange.finish()
    else:
        Parts(exchange, body, close).run()
