"""The shop on the native interface: a request in, a response out.

One argument is what tells a native handler from WSGI's two and ASGI's three.  It runs in a pool of threads
unless ``threads = 1``, so a slow answer holds up nobody.
"""

from quiesce import Request, Response

VERSION = "v1"
PRICES = {"apple": 120, "bread": 340}  # in cents

# A response may be kept and returned again, from any thread: its bytes are made once.
HEALTHY = Response("ok\n")
NOT_FOUND = Response("no such page\n", status=404)


def handle(request: Request) -> Response:
    """Answer one request."""
    if request.path == "/healthz":
        return HEALTHY
    if request.path == "/":
        lines = [f"The shop, {VERSION}"] + [f"{name:>8} {cents / 100:6.2f}" for name, cents in PRICES.items()]
        return Response("\n".join([*lines, ""]))
    return NOT_FOUND
