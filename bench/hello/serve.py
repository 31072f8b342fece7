"""One of our servers, on a given port, in this process, until it is killed.

    python serve.py native|daemon|wsgi|wsgi-pool|asgi|asgi-asyncio PORT

The engine as a worker runs it (with its slot of counters and its heartbeat), without a supervisor around it.
"""

import signal
import socket
import sys
from typing import Any

import apps

POOL = 4


def embedded(port: int) -> None:
    from quiesce import Daemon

    with Daemon(apps.native_handler(), port=port):
        signal.pause()


def engine(app: Any, loop: Any, port: int, threads: int = 1) -> None:
    from quiesce.shared.scoreboard import SLOT_FIELDS
    from quiesce.worker.daemon import Daemon

    slot = memoryview(bytearray(8 * SLOT_FIELDS)).cast("Q")
    daemon = Daemon(app, loop, slot=slot, threads=threads)
    daemon.add_listener("http", socket.create_server(("127.0.0.1", port), backlog=1024))
    daemon.accept()
    loop.run()


def native(port: int) -> None:
    from quiesce.worker.apps.native import NativeApp
    from quiesce.worker.loops.epoll_loop import EpollLoop

    engine(NativeApp(apps.native_handler()), EpollLoop(), port)


def wsgi(port: int, threads: int = 1) -> None:
    from quiesce.worker.apps.wsgi import WsgiApp
    from quiesce.worker.loops.epoll_loop import EpollLoop

    engine(WsgiApp(apps.wsgi), EpollLoop(), port, threads)


def asgi(port: int) -> None:
    from quiesce.worker.apps.asgi import AsgiApp
    from quiesce.worker.loops.asyncio_loop import AsyncioLoop

    loop = AsyncioLoop()
    app = AsgiApp(apps.asgi, loop)
    app.startup(lambda failure: None)  # it says that it knows no lifespan
    engine(app, loop, port)


def asgi_asyncio(port: int) -> None:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it were not installed
    asgi(port)


SERVERS = {
    "native": native,
    "daemon": embedded,
    "wsgi": wsgi,
    "wsgi-pool": lambda port: wsgi(port, POOL),
    "asgi": asgi,
    "asgi-asyncio": asgi_asyncio,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
