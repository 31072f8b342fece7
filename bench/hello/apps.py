"""What is served, once for each interface: GET / says hello, GET /file sends a file, POST / sends back what came."""

import os
from typing import Any

HELLO = b"Hello, world\n"
TEXT = "text/plain; charset=utf-8"
FILE = os.environ["BENCH_FILE"]
_BLOCK = 256 * 1024


def native_handler() -> Any:
    """``handler(request)`` for the native interface."""
    from quiesce import Response

    hello = Response(HELLO)

    def handler(request: Any) -> Any:
        if request.method == "POST":
            return Response(request.body)
        if request.path == "/file":
            return Response.file(FILE, content_type=TEXT)
        return hello

    return handler


def wsgi(environ: Any, start_response: Any) -> Any:
    if environ["REQUEST_METHOD"] == "POST":
        body = environ["wsgi.input"].read()
    elif environ["PATH_INFO"] == "/file":
        size = str(os.stat(FILE).st_size)
        start_response("200 OK", [("Content-Type", TEXT), ("Content-Length", size)])
        return environ["wsgi.file_wrapper"](open(FILE, "rb"))
    else:
        body = HELLO
    start_response("200 OK", [("Content-Type", TEXT), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only http")
    if scope["method"] == "POST":
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
    elif scope["path"] == "/file":
        await _send_file(send, by_server="http.response.pathsend" in scope.get("extensions", ()))
        return
    else:
        body = HELLO
    await send(_start(len(body)))
    await send({"type": "http.response.body", "body": body})


async def _send_file(send: Any, *, by_server: bool) -> None:
    """As Starlette does it: by the server if that has the extension, else in blocks, but without a thread."""
    if by_server:
        await send(_start(os.stat(FILE).st_size))
        await send({"type": "http.response.pathsend", "path": FILE})
        return
    with open(FILE, "rb", buffering=0) as file:
        await send(_start(os.fstat(file.fileno()).st_size))
        while data := file.read(_BLOCK):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _start(size: int) -> dict[str, Any]:
    headers = [(b"content-type", TEXT.encode()), (b"content-length", str(size).encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}
