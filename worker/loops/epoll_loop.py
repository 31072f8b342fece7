"""The worker's own loop: level-triggered epoll."""

from quiesce.worker.loops.epoll_set import EpollSet
from quiesce.worker.loops.own_loop import OwnLoop


class EpollLoop(EpollSet, OwnLoop):  # in this order: watching is the set's
    """See :class:`quiesce.worker.loops.base.Loop`.  Owns its epoll and eventfd descriptors."""

    def __init__(self, slot: memoryview | None = None) -> None:
        OwnLoop.__init__(self, slot)
        EpollSet.__init__(self)
        self._wait = self._epoll.poll  # nothing in between: this is the worker's hottest call
        self._watch_wake_fd()

    def fileno(self) -> int:
        """Readable when a turn would find something: for a loop of somebody else's that watches ours."""
        return self._epoll.fileno()

    def descriptors(self) -> list[int]:
        return [self._epoll.fileno(), *OwnLoop.descriptors(self)]

    def close(self) -> None:
        self._epoll.close()
        OwnLoop.close(self)
