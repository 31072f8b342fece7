"""Which connections cannot be handed over, by reason."""

from collections.abc import Iterable

from quiesce.worker.net import counters as figures
from quiesce.worker.net.ending import BODY, FLUSHING, LINGERING, SKIPPING, STREAMING, Ending

_HALF_READ = (BODY, STREAMING, SKIPPING)
_LAST_SAID = (FLUSHING, LINGERING)


def show(slot: memoryview, connections: Iterable[Ending]) -> None:
    """Write the gauges.  There is no TLS, no WebSocket and nothing suspended in a worker yet: those stay zero."""
    body = closing = 0
    for connection in connections:
        state = connection.state
        if state in _HALF_READ:
            body += 1
        elif state in _LAST_SAID:
            closing += 1
    slot[figures.CONN_BODY] = body
    slot[figures.CONN_CLOSING] = closing
