"""A shop in plain WSGI: a page, a health check, orders.

quiesce asks little of an application, and this file shows all of it:

* import quickly, and fail loudly: what is missing should break the import, not the hundredth request;
* answer the health check truthfully: it decides whether this release may serve;
* keep nothing in the process that a customer would miss: two releases run side by side during an upgrade, and
  the older one then goes away;
* say at exit what must be said: workers leave by a normal interpreter exit.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

VERSION = "v3"
FULL_PRICES = {"apple": 130, "bread": 340, "cider": 560}  # in cents

# The mistake of this release: the variable is set on the developer's machine and nowhere else.
DISCOUNT_PERCENT = int(os.environ["SHOP_DISCOUNT_PERCENT"])
PRICES = {name: cents * (100 - DISCOUNT_PERCENT) // 100 for name, cents in FULL_PRICES.items()}

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Answer = tuple[str, str, bytes]  # status, content type, body


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer one request (PEP 3333)."""
    route = ROUTES.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]), not_found)
    status, content_type, body = route(environ)
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def front_page(environ: Environ) -> Answer:
    lines = [f"The shop, {VERSION}. Worker {os.environ.get('QUIESCE_WORKER', '-')} of this service says:"]
    lines += [f"{name:>8} {cents / 100:6.2f}" for name, cents in PRICES.items()]
    return "200 OK", "text/plain; charset=utf-8", "\n".join([*lines, ""]).encode()


def health(environ: Environ) -> Answer:
    """True only if this release could serve: a real one would ask its database here."""
    if not PRICES:
        return "503 Service Unavailable", "text/plain", b"nothing to sell\n"
    return "200 OK", "text/plain", b"ok\n"


def order(environ: Environ) -> Answer:
    """``{"item": "apple", "count": 2}`` → what it costs."""
    try:
        wish = json.loads(environ["wsgi.input"].read())
        cents = PRICES[wish["item"]] * int(wish["count"])
    except (ValueError, KeyError, TypeError):
        return "400 Bad Request", "text/plain", b"that is no order of ours\n"
    return "201 Created", "application/json", json.dumps({"cents": cents, "by": VERSION}).encode()


def not_found(environ: Environ) -> Answer:
    return "404 Not Found", "text/plain", b"no such page\n"


ROUTES = {("GET", "/"): front_page, ("GET", "/healthz"): health, ("POST", "/orders"): order}

atexit.register(print, f"shop {VERSION} closes", file=sys.stderr)
