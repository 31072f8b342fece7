"""An ASGI application whose client has gone in the middle of the response is no application with a fault."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import pytest

from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from wire.serving import PATIENCE_S, Served

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_write_that_finds_the_client_gone_is_not_a_response_cut_short(
    capfd: pytest.CaptureFixture[str],
) -> None:
    gone, ended = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begins", "more_body": True})
        assert gone.wait(PATIENCE_S)  # the loop stands still: the next write is the first to know
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    loop = AsyncioLoop()
    served = Served(AsgiApp(app, loop), loop=loop)
    try:
        with served.connect() as sock:
            sock.sendall(GET)
            assert b"begins" in sock.recv(65536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        gone.set()
        assert ended.wait(PATIENCE_S)
        served.until(lambda: served.daemon.open == 0)
    finally:
        served.close()
    assert capfd.readouterr().err == ""
