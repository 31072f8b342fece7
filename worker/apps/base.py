"""What the daemon needs of an application."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from quiesce.worker.net.exchange import Exchange


class App(Protocol):
    """Somebody's callable, behind one method."""

    interface: str
    """``native``, ``wsgi`` or ``asgi``."""

    streams_body: bool
    """False: ``handle`` is called when the whole body is there (memory, then a temporary file), so that a
    slow upload holds no thread.  True: it is called at the head, and reads by ``exchange.read_body``.
    """

    blocking: bool
    """True: ``handle`` may block, so with ``threads >= 2`` the daemon calls it in its thread pool.  False: always
    in the loop's thread.
    """

    def handle(self, exchange: "Exchange") -> None:
        """Answer one request: now, or later by the exchange.  What it raises goes to ``exchange.fail``."""
