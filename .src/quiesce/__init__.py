"""quiesce: zero-downtime hot upgrades for Python web services on Linux.

The public names are loaded on first use (PEP 562): a worker that serves a WSGI
application must not pay for what only an embedded daemon needs.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # by hand: importlib.metadata alone would cost every worker 26 ms

if TYPE_CHECKING:
    from quiesce.shared.errors import QuiesceError as QuiesceError
    from quiesce.worker.core.limits import Limits as Limits
    from quiesce.worker.core.request import Request as Request
    from quiesce.worker.core.termination import Termination as Termination
    from quiesce.worker.embedded.connection import Connection as Connection
    from quiesce.worker.embedded.connection import Kind as Kind
    from quiesce.worker.embedded.connection import NotNow as NotNow
    from quiesce.worker.embedded.connection import Stage as Stage
    from quiesce.worker.embedded.daemon import Daemon as Daemon
    from quiesce.worker.embedded.kinds import Mode as Mode
    from quiesce.worker.embedded.kinds import NotListening as NotListening
    from quiesce.worker.embedded.kinds import Poller as Poller
    from quiesce.worker.embedded.kinds import WrongMode as WrongMode
    from quiesce.worker.embedded.panic import set_panic_handler as set_panic_handler
    from quiesce.worker.response import Options as Options
    from quiesce.worker.response import Response as Response

_HOME = {
    "Connection": "quiesce.worker.embedded.connection",
    "Daemon": "quiesce.worker.embedded.daemon",
    "Kind": "quiesce.worker.embedded.connection",
    "Limits": "quiesce.worker.core.limits",
    "Mode": "quiesce.worker.embedded.kinds",
    "NotListening": "quiesce.worker.embedded.kinds",
    "NotNow": "quiesce.worker.embedded.connection",
    "Options": "quiesce.worker.response",
    "Poller": "quiesce.worker.embedded.kinds",
    "QuiesceError": "quiesce.shared.errors",
    "Request": "quiesce.worker.core.request",
    "Response": "quiesce.worker.response",
    "Stage": "quiesce.worker.embedded.connection",
    "Termination": "quiesce.worker.core.termination",
    "WrongMode": "quiesce.worker.embedded.kinds",
    "set_panic_handler": "quiesce.worker.embedded.panic",
}
__all__ = [
    "Connection",
    "Daemon",
    "Kind",
    "Limits",
    "Mode",
    "NotListening",
    "NotNow",
    "Options",
    "Poller",
    "QuiesceError",
    "Request",
    "Response",
    "Stage",
    "Termination",
    "WrongMode",
    "__version__",
    "set_panic_handler",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'quiesce' has no attribute {name!r}") from None
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # completion in a shell finds what is not loaded yet
