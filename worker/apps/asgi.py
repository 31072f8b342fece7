"""ASGI 3 applications on the daemon: one task a request.

Source: ASGI specification 3.0, HTTP & WebSocket message format 2.3.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quiesce.worker.apps.asgi_cycle import Cycle, Running
from quiesce.worker.apps.lifespan import Lifespan
from quiesce.worker.apps.loader import LoadError
from quiesce.worker.loops.eager_tasks import later, starter

if TYPE_CHECKING:
    from quiesce.worker.core.request import Request
    from quiesce.worker.loops.asyncio_loop import AsyncioLoop
    from quiesce.worker.net.exchange import Exchange

NO_WEBSOCKETS = b"WebSockets come with a later version of quiesce.\n"


class AsgiApp:
    """``App`` (base.py) around an ASGI application."""

    interface = "asgi"
    streams_body = True
    blocking = False

    def __init__(self, app: Any, loop: "AsyncioLoop") -> None:
        self._app, self._loop = app, loop
        self._start, self._start_later = starter(loop.aio), later(loop.aio)
        self._lifespan = Lifespan(app, loop.aio)
        self._running = Running(loop)

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
        parts = request._parts or request._split()
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.version,
            "method": request.method.upper(),
            "scheme": request.scheme,
            "path": parts[1],
            "raw_path": parts[0],
            "query_string": parts[2],
            "root_path": "",
            "headers": request.headers,
            "client": request.peer,
            "server": request.local,
            "extensions": {"http.response.pathsend": {}},
        }
        if self._lifespan.is_supported:
            scope["state"] = self._lifespan.state.copy()
        cycle = Cycle(exchange)
        start = self._start if exchange.since_ns < self._loop.until_ns else self._start_later
        task = start(cycle.run(self._app, scope))
        if not task.done():
            cycle.goes_on(task, self._running)


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
