"""The descriptor store: what the manager above us keeps while we are dead.

systemd drops silently what does not fit or is not allowed, and answers the barrier all the same.  So
the store is measured once, with pipes: whoever lets go of a write end shows it at the read end.

Source: systemd.service(5) FileDescriptorStoreMax=; sd_pid_notify_with_fds(3) FDSTORE=1.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from quiesce.shared.logs import Log
from quiesce.supervisor import fdnames
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import MAX_FDS, Notifier

SETTLE_S = 0.5
ANSWER_TIMEOUT_S = 5.0  # a barrier takes 0.25 to 5 ms on an idle machine
_FOR_THE_BARRIER = 4  # its pipe, and two to spare

_UNKNOWN = "it is not known yet whether the service manager keeps our descriptors"
_NOBODY = "there is no service manager and no keeper above this supervisor (--no-keeper)"
_SILENT = f"the service manager did not answer within {ANSWER_TIMEOUT_S:g} s"
_NOTHING_KEPT = (
    "the unit keeps no descriptors (FileDescriptorStoreMax=0, or NotifyAccess= does not let us); "
    "see systemd/README.md"
)
_NO_PIPES = "no descriptors were left to ask the service manager with; raise LimitNOFILE="

Then = Callable[[bool], None]


class Keeping(Protocol):
    """What others use of it."""

    def put(self, name: str, fd: int) -> None: ...
    def drop(self, name: str) -> None: ...
    def sync(self, then: Then) -> None: ...


class FdStore:
    """Our descriptors in the manager's hands, by name.  Duplicates nothing and closes nothing of the caller's.

    Args:
        limit: $FDSTORE, the manager's own word on how many it keeps (systemd 254, our keeper); None: unsaid.
    """

    def __init__(self, loop: Loop, notifier: Notifier, log: Log, limit: int | None) -> None:
        self._loop = loop
        self._notifier = notifier
        self._log = log
        self._limit = limit
        self.works: bool | None = None  # None: not measured yet
        self.capacity: int | None = limit  # at least so many; None: unknown, or nothing is kept
        self._why = _UNKNOWN
        self._kept: dict[str, int] = {}  # what shall be with the manager
        self._missing: dict[str, None] = {}  # of these, what is not; in order
        self._found_some = False  # a manager gave us back what our predecessor had put
        self._measuring = False
        self._waiting: list[Then] = []  # syncs asked for while measuring
        if not notifier.there:
            self._fails(_NOBODY)
        elif limit == 0:
            self._fails(_NOTHING_KEPT)

    @property
    def used(self) -> int:
        """How many descriptors the manager keeps for us."""
        return len(self._kept) - len(self._missing)

    @property
    def room(self) -> int | None:
        """How many more fit; None: unknown, or nothing is kept."""
        return None if self.capacity is None else max(0, self.capacity - self.used)

    @property
    def complete(self) -> bool:
        """Would a successor find all that was put?"""
        return self.works is True and not self._missing

    @property
    def reason(self) -> str:
        """Why the death of this supervisor would lose something, with the cure; "" where it would not."""
        if self.works is not True:
            return self._why
        if not self._missing:
            return ""
        if self.room == 0:
            return (
                f"the service manager keeps {self.capacity} descriptors and {len(self._kept)} are needed; "
                "raise FileDescriptorStoreMax="
            )
        return (
            f"the service manager was too slow to take {len(self._missing)} of {len(self._kept)} descriptors"
        )

    @property
    def missing(self) -> list[str]:
        """Names of what was put and is not with the manager."""
        return list(self._missing)

    def kept(self) -> list[tuple[str, int]]:
        """All that was put, for `reexec`."""
        return list(self._kept.items())

    def put(self, name: str, fd: int) -> None:
        """Have ``fd`` kept under ``name``, which is unique.  The caller keeps it open until :meth:`drop`."""
        assert name != fdnames.CHECK
        if self._kept.get(name, fd) != fd:
            self.drop(name)  # or the manager would keep both
        self._kept[name] = fd
        self._missing[name] = None
        self._send_missing()

    def found(self, name: str, fd: int) -> None:
        """Remember what the manager kept for us and has passed back; it need not be sent again."""
        self._kept[name] = fd
        self._missing.pop(name, None)
        self._found_some = True

    def drop(self, name: str) -> None:
        """Forget it and have the manager let go, before the caller closes it.

        Also for what a predecessor stored and nobody wants any more.
        """
        self._kept.pop(name, None)
        self._missing.pop(name, None)
        self._notifier.unstore(name)
        self._send_missing()

    def sync(self, then: Then) -> None:
        """Call ``then(True)`` when all that was put so far is with the manager.

        ``then(False)``, perhaps at once: it is not, or there is no store; ``reason`` says why.
        """
        if self._measuring:
            self._waiting.append(then)
            return
        self._send_missing()
        if self.works is False:
            then(False)
            return
        asked = tuple(self._kept)
        self._notifier.barrier(
            lambda answered: then(answered and self._with_manager(asked)), ANSWER_TIMEOUT_S
        )

    def _with_manager(self, names: Iterable[str]) -> bool:
        return self.works is not False and self._missing.keys().isdisjoint(names)

    def lost_its_manager(self, why: str) -> None:
        """Whoever kept all this is dead: until :meth:`put_all_again` nothing is kept, and nobody is waited for."""
        self._fails(why)

    def put_all_again(self) -> None:
        """Give all to another manager, after ``Notifier.move_to``.

        What the new one keeps is not known: measure it.
        """
        if not self._notifier.there:
            self._fails(_NOBODY)
            return
        self.works, self.capacity, self._why = None, self._limit, _UNKNOWN
        self._found_some = False
        # Listeners first: a successor that found a part of all this could bind none of them again while workers
        # that it does not know still have them.
        order = sorted(self._kept, key=lambda name: not name.startswith(fdnames.listener("")))
        self._missing = dict.fromkeys(order)
        self._send_missing()

    def _send_missing(self) -> None:
        # While measuring, pipes fill the store, and what is sent now would not fit.
        if self._measuring or self.works is False:
            return
        # One place is left free for the pipe of measure(), or a full store would look like none.
        least = 0 if self.works or self._limit is None else 1
        for name in list(self._missing):
            if self.room is not None and self.room <= least:
                return
            del self._missing[name]
            self._notifier.store(name, self._kept[name], partial(self._lost, name))

    def _lost(self, name: str) -> None:
        if name in self._kept:  # the next sync tries again
            self._missing[name] = None
            self._log.warning("descriptor could not be given to the service manager", name=name)

    # How many are kept

    def measure(self, most: int, then: Then) -> None:
        """Find out how many descriptors this manager really keeps; ``then(works)`` when it is known.

        What is put meanwhile is sent afterwards, and syncs wait.

        Args:
            most: How many more we may ever want to put.  So many pipes are made and sent, but only one
                where the manager has named its limit.  Be modest: PID 1 compares each descriptor with
                all that it keeps (systemd 252: 40 take 1 ms, 600 take 0.3 to 0.6 s).
        """
        assert not self._measuring
        if not self._notifier.there:
            self._fails(_NOBODY)
            then(False)
            return
        # No pipe would fit, and it has shown that it keeps.
        if (self.works or self._found_some) and self.room == 0:
            self.works, self._why = True, ""
            then(True)
            return
        self._measuring = True
        began = self._loop.now()
        reading, datagrams = self._send_pipes(1 if self._limit is not None else max(2, most))

        def answer(answered: bool) -> None:
            # systemd 254 closes what does not fit by a helper thread, which may be late (134 ms, seen on a
            # busy machine): where some are gone, the others may follow.
            if answered and self._limit is None and 0 < _still_held(reading) < len(reading):
                self._loop.call_at(self._loop.now() + SETTLE_S, lambda: settled(True))
            else:
                settled(answered)

        def settled(answered: bool) -> None:
            self._judge(reading, datagrams, answered)
            self._log.debug(
                "descriptor store measured",
                works=self.works,
                capacity=self.capacity,
                used=self.used,
                after_s=round(self._loop.now() - began, 3),
            )
            self._measured(then)

        self._notifier.barrier(answer, ANSWER_TIMEOUT_S)

    def _send_pipes(self, count: int) -> tuple[list[int], int]:
        """Send the write ends of ``count`` new pipes, or as many as can be made.

        Not duplicates of one: the manager drops a second descriptor of the same open file.

        Returns:
            Their read ends, which the caller closes; the number of datagrams.
        """
        reading: list[int] = []
        datagrams = 0
        while len(reading) < count:
            wanted = min(MAX_FDS, count - len(reading))
            pairs = _pipes(wanted)
            writing = [pair[1] for pair in pairs]
            if pairs:
                self._notifier.store_many(fdnames.CHECK, writing)
                datagrams += 1
            for fd in writing:
                os.close(fd)
            reading += [pair[0] for pair in pairs]
            if len(pairs) < wanted:  # no descriptors left, and the barrier needs some
                for fd in reading[-_FOR_THE_BARRIER:]:
                    os.close(fd)
                del reading[-_FOR_THE_BARRIER:]
                break
        return reading, datagrams

    def _judge(self, reading: list[int], datagrams: int, answered: bool) -> None:
        """Owns ``reading``."""
        count = _still_held(reading) if answered else 0
        for fd in reading:
            os.close(fd)
        self._notifier.unstore(fdnames.CHECK)
        # One of each datagram may still seem to be kept.  systemd 254 has told its limit, unless that is 0.
        ghosts = datagrams if self._limit is None else 0
        if not reading:
            self._fails(_NO_PIPES)
        elif not answered:
            self._fails(_SILENT)
        elif count <= ghosts:
            self._fails(_NOTHING_KEPT)
        else:
            self.works, self._why = True, ""
            self.capacity = self.used + count if self._limit is None else self._limit

    def _measured(self, then: Then) -> None:
        self._measuring = False
        self._send_missing()
        then(self.works is True)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self.sync(each)

    def _fails(self, why: str) -> None:
        self.works, self.capacity, self._why = False, None, why
        self._missing = dict.fromkeys(self._kept)


def _pipes(count: int) -> list[tuple[int, int]]:
    """(read end, write end) of as many pipes as can be made; the caller owns them."""
    made: list[tuple[int, int]] = []
    try:
        while len(made) < count:
            made.append(os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        pass  # EMFILE: then the capacity is known to be at least what was asked for
    return made


def _still_held(reading: Iterable[int]) -> int:
    """How many of these pipes still have a writer."""
    poll = select.poll()
    fds = tuple(reading)
    for fd in fds:
        poll.register(fd, 0)  # POLLHUP is always told
    return len(fds) - len(poll.poll(0))
