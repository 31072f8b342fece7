"""A loop over select(2), or over the sets of somebody who selects himself."""

import select
from collections.abc import Callable, Container

from quiesce.worker.loops.base import ERROR, HANGUP, READ, WRITE
from quiesce.worker.loops.own_loop import OwnLoop

FD_SETSIZE = 1024
_LOOK_S = 0.5  # so often are those looked at for whom select has no question


class SelectLoop(OwnLoop):
    """See :class:`quiesce.worker.loops.base.Loop`.

    select does not tell of errors and hang-ups: they are found by the read or write that it calls ready.  A
    descriptor that is watched for nothing would say nothing, where epoll and poll tell of a reset: so poll is asked
    about such sockets, twice a second as long as there are any.
    """

    def __init__(self, slot: memoryview | None = None) -> None:
        super().__init__(slot)
        self._reading: set[int] = set()
        self._writing: set[int] = set()
        self._silent: set[int] = set()  # watched for nothing
        self._looks = False  # a timer runs
        self._wait = self._wait_select
        self._watch_wake_fd()

    def can_watch(self, fd: int) -> bool:
        return 0 <= fd < FD_SETSIZE

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Raises:
        ValueError: select cannot watch this descriptor; nothing was changed.
        """
        if not self.can_watch(fd):
            raise ValueError(f"select cannot watch descriptor {fd}: it is not below {FD_SETSIZE}")
        self._callbacks[fd] = callback
        self.rewatch(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        (self._reading.add if events & READ else self._reading.discard)(fd)
        (self._writing.add if events & WRITE else self._writing.discard)(fd)
        if events:
            self._silent.discard(fd)
        else:
            self._silent.add(fd)
            self._look_later()

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._reading.discard(fd)
            self._writing.discard(fd)
            self._silent.discard(fd)

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self.call_at(self.now() + _LOOK_S, self._look)

    def _look(self) -> None:
        self._looks = False
        poll = select.poll()
        for fd in self._silent:
            poll.register(fd, 0)
        for fd, mask in poll.poll(0):
            if fd in self._silent and mask & (ERROR | HANGUP):
                self._guarded(lambda fd=fd, mask=mask: self._callbacks[fd](mask))  # type: ignore[misc]
        if self._silent:
            self._look_later()

    def _wait_select(self, timeout_s: float | None, most: int) -> list[tuple[int, int]]:
        readable, writable, _ = select.select(self._reading, self._writing, (), timeout_s)
        masks = dict.fromkeys(readable, READ)
        for fd in writable:
            masks[fd] = masks.get(fd, 0) | WRITE
        return list(masks.items())

    @property
    def interests(self) -> tuple[frozenset[int], frozenset[int]]:
        """What is watched for reading, and for writing."""
        return frozenset(self._reading), frozenset(self._writing)

    def dispatch(self, readable: Container[int], writable: Container[int]) -> None:
        """Serve what somebody else's select found ready, without a call of our own.  Descriptors that are not
        ours, or that we do not wait for, are ignored.
        """
        masks = {fd: READ for fd in self._reading if fd in readable}
        for fd in self._writing:
            if fd in writable:
                masks[fd] = masks.get(fd, 0) | WRITE
        self._serve(list(masks.items()))
