"""A daemon whose loop is turned by its application."""

from collections.abc import Container

from quiesce.worker.embedded.kinds import Mode, WrongMode
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.loops.own_loop import OwnLoop
from quiesce.worker.loops.select_loop import FD_SETSIZE, SelectLoop


class Turning:
    """The part of a daemon that is for ``Mode.EXTERNAL``."""

    mode: Mode

    def run(self) -> None:
        """Serve what is ready; never waits."""
        self._external().turn(0.0)

    def run_wait(self, timeout_s: float | None) -> None:
        """Wait until something is ready or due, ``timeout_s`` seconds at most (None: however long), then serve it."""
        self._external().turn(timeout_s)

    def wake(self) -> None:
        """Have :meth:`run_wait` return soon.  From any thread."""
        self._running().seats[0].post(lambda: None)

    def run_from_select(self, readable: Container[int], writable: Container[int]) -> None:
        """Serve what your own ``select`` found ready.  Descriptors that are not ours are ignored.

        With ``Poller.EPOLL`` the sets are only a sign that something is ready.
        """
        loop = self._external()
        if isinstance(loop, SelectLoop):
            loop.dispatch(readable, writable)
        elif isinstance(loop, EpollLoop):
            loop.turn(0.0)
        else:
            raise WrongMode("a daemon that polls has no use for sets")

    def get_fdset(self) -> tuple[frozenset[int], frozenset[int]]:
        """What your ``select`` should watch for reading, and for writing."""
        if self._is_over:
            return frozenset(), frozenset()
        loop = self._external()
        if isinstance(loop, SelectLoop):
            return loop.interests
        if isinstance(loop, EpollLoop):
            if loop.fileno() >= FD_SETSIZE:
                raise ValueError("select cannot watch the daemon's epoll descriptor")
            return frozenset((loop.fileno(),)), frozenset()
        raise WrongMode("a daemon that polls has no sets")

    def get_timeout(self) -> float | None:
        """Seconds until the daemon must be turned even if nothing is ready; None: never."""
        if self.mode is Mode.THREAD_PER_CONNECTION:
            return None
        return self._running().seats[0].loop.timeout_s()

    def fileno(self) -> int:
        """With ``Poller.EPOLL`` in ``Mode.EXTERNAL``: one descriptor to watch, readable when a turn is needed."""
        loop = self._external()
        if not isinstance(loop, EpollLoop):
            raise WrongMode("only a daemon on epoll has one descriptor for all")
        return loop.fileno()

    def _external(self) -> OwnLoop:
        if self.mode is not Mode.EXTERNAL:
            raise WrongMode(
                "the daemon has threads of its own; only Mode.EXTERNAL is turned by its application"
            )
        seat = self._running().seats[0]
        seat.engine.enter()  # whoever turns it is its thread
        return seat.loop

    # -- the daemon's ---------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        raise NotImplementedError

    def _running(self) -> ModeShell:
        raise NotImplementedError
