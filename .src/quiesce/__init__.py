"""quiesce: zero-downtime hot upgrades for Python web services on Linux.

The public names are loaded on first use (PEP 562): a worker that serves a WSGI
application must not pay for what only an embedded daemon needs.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # by hand: importlib.metadata alone would cost every worker 26 ms

if TYPE_CHECKING:
    from quiesce.shared.errors import QuiesceError as QuiesceError
    from quiesce.worker.core.request import Request as Request
    from quiesce.worker.response import Response as Response

_HOME = {
    "QuiesceError": "quiesce.shared.errors",
    "Request": "quiesce.worker.core.request",
    "Response": "quiesce.worker.response",
}
__all__ = ["QuiesceError", "Request", "Response", "__version__"]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'quiesce' has no attribute {name!r}") from None
    from importlib import import_module

    return getattr(import_module(home), name)
