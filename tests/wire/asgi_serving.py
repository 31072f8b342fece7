"""Serving ASGI applications in the test's own process, and what such applications do again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from wire.serving import Reply, Served, read_reply

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Serve = Callable[[Application], Served]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


async def say(send: Send, body: object, **start: Any) -> None:
    """A whole response."""
    await send({"type": "http.response.start", "status": 200, "headers": [], **start})
    await send({"type": "http.response.body", "body": str(body).encode()})


async def whole_body(receive: Receive) -> bytes:
    """The request's."""
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body, more = body + message["body"], message["more_body"]
    return body


def ask_all(served: Served, requests: bytes, count: int) -> list[Reply]:
    """The answers to requests that come in one packet."""
    with served.connect() as sock:
        sock.sendall(requests)
        replies = [read_reply(sock)]
        while len(replies) < count:
            replies.append(read_reply(sock, before=replies[-1].rest))
        return replies
