"""The shop on the native interface: a request in, a response out.

One argument is what tells a native handler from WSGI's two and ASGI's three.  It runs in a pool of threads
unless ``threads = 1``, so a slow answer holds up nobody.
"""

from quiesce import Request, Response

VERSION = "v1"
PRICES = {"apple": 120, "bread": 340}  # in cents


def handle(request: Request) -> Response:
    """Answer one request."""
    if request.path == "/healthz":
        return text("ok\n")
    if request.path == "/":
        lines = [f"The shop, {VERSION}"] + [f"{name:>8} {cents / 100:6.2f}" for name, cents in PRICES.items()]
        return text("\n".join([*lines, ""]))
    return text("no such page\n", status=404)


def text(body: str, status: int = 200) -> Response:
    return Response(body.encode(), status=status, headers=[("Content-Type", "text/plain; charset=utf-8")])
