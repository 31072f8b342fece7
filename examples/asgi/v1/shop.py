"""The shop in plain ASGI 3: the same page, plus prices that arrive while they change.

``lifespan`` opens and closes what the worker needs: startup runs before this worker may say that it is ready,
shutdown after its last response.  ``/ticker`` streams: a response under way when an upgrade begins is
finished by the worker that began it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

VERSION = "v1"
PRICES = {"apple": 120, "bread": 340}  # in cents

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, or live through one worker's life."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await ROUTES.get((scope["method"], scope["path"]), not_found)(receive, send)


async def lifespan(receive: Receive, send: Send) -> None:
    await receive()  # lifespan.startup: open pools here; an error here refuses the release
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown: close them
    await send({"type": "lifespan.shutdown.complete"})


async def front_page(receive: Receive, send: Send) -> None:
    await answer(send, 200, f"The shop, {VERSION}: {json.dumps(PRICES)}\n".encode())


async def health(receive: Receive, send: Send) -> None:
    await answer(send, 200, b"ok\n")


async def ticker(receive: Receive, send: Send) -> None:
    """One line a second, ten lines."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for second in range(10):
        line = f"{second} {VERSION} {json.dumps(PRICES)}\n".encode()
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": b""})


async def not_found(receive: Receive, send: Send) -> None:
    await answer(send, 404, b"no such page\n")


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ROUTES = {("GET", "/"): front_page, ("GET", "/healthz"): health, ("GET", "/ticker"): ticker}
