"""How a request ended, for who wants to know.  Pure."""

from enum import IntEnum

from quiesce.worker.core.connection import Event
from quiesce.worker.core.rejected import Rejected


class Termination(IntEnum):
    """The numbers are those of libmicrohttpd."""

    COMPLETED_OK = 0  # the client's kernel has the whole answer
    WITH_ERROR = 1  # the application, or what it said, was at fault
    TIMEOUT_REACHED = 2  # the client was too slow
    DAEMON_SHUTDOWN = 3
    READ_ERROR = 4  # the connection was reset
    CLIENT_ABORT = 5  # the client said that it sends no more, in the middle of a request


def cause(event: Event, rejected: Rejected | None) -> Termination | None:
    """What an event that ends a request says about why; None: ask what came before it."""
    if event is Event.REFUSED:
        late = rejected is not None and rejected.status == 408
        return Termination.TIMEOUT_REACHED if late else Termination.WITH_ERROR
    return {
        Event.DEADLINE: Termination.TIMEOUT_REACHED,
        Event.END: Termination.DAEMON_SHUTDOWN,
        Event.PEER_DONE: Termination.CLIENT_ABORT,
    }.get(event)
