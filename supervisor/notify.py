"""sd_notify(3): all that a supervisor says to the service manager, or to the keeper.

The manager may be slow or away: its queue holds about ten datagrams, and a keeper can die.  News
is dropped then.  What it must hear waits in one queue, in order, and is tried again by the loop.

Source: sd_notify(3), sd_pid_notify_with_fds(3), sd_notify_barrier(3).
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from quiesce.shared.deadlines import Timer
from quiesce.supervisor.loop import WRITE, Loop

#: States of the service: said until they are heard.  The rest (STATUS, WATCHDOG, EXTEND_TIMEOUT_USEC)
#: is news, and there will be newer.
_STATES = frozenset(
    (
        "READY",
        "RELOADING",
        "STOPPING",
        "MAINPID",
        "ERRNO",
        "BUSERROR",
        "EXIT_STATUS",
        "NOTIFYACCESS",
        "WATCHDOG_USEC",
        "QUIESCE_ARGV",
    )
)
_MAX_STATES = 16  # that wait; older ones say nothing that newer ones do not
_MAX_QUEUED = 4096  # descriptors of 1,000 workers, and as many again
MAX_FDS = 253  # of one datagram: SCM_MAX_FD

RETRY_S = 0.05
GIVE_UP_S = 5.0  # somebody waits for a descriptor to be kept
# systemd reads nothing during a daemon-reload, which takes longer on a large machine, and it kills a
# service whose READY=1 was lost.
STATE_GIVE_UP_S = 30.0

_GONE = (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE)
# ETOOMANYREFS: as many descriptors as RLIMIT_NOFILE allows are on their way for our user.
_LATER = (*_GONE, errno.ENOENT, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_MAX_STATUS_BYTES = 2048  # systemd throws away a datagram of more than 4096

Lost = Callable[[], None]


class _Outcome(Enum):
    SENT = 1
    LATER = 2
    NEVER = 3


class _Waiting:
    """A datagram that waits to be sent.  Owns ``fds``, duplicates, until :meth:`close`."""

    __slots__ = ("data", "fds", "give_up_at", "lost", "state", "stores")

    def __init__(
        self, data: bytes, fds: tuple[int, ...], give_up_at: float, lost: Lost | None, stores: str
    ) -> None:
        self.data = data
        self.fds = fds
        self.give_up_at = give_up_at
        self.lost = lost
        self.stores = stores  # the name under which its descriptors are to be kept
        self.state = lost is None

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()

    def give_up(self) -> None:
        self.close()
        if self.lost is not None:
            self.lost()


class _Barrier:
    """A question that hangs: owns ``fd``, the read end of its pipe, until it is answered."""

    __slots__ = ("done", "fd", "timer")

    def __init__(self, fd: int, done: Callable[[bool], None], timer: Timer) -> None:
        self.fd = fd
        self.done = done
        self.timer = timer


class Notifier:
    """Datagrams to $NOTIFY_SOCKET; does nothing without one.  Never blocks and never raises.

    Args:
        address: "/path", or "@name" in the abstract namespace; None: there is nobody to tell.  The
            caller has removed it from the environment, or children would speak in our name.
    """

    def __init__(self, address: str | None, loop: Loop) -> None:
        self._loop = loop
        self._address = ""
        self._sock: socket.socket | None = None
        self._connected = False
        self._full = False  # the last thing that could not be sent met a full queue
        self._watched = False  # waiting in the loop for room in that queue
        self._queue: deque[_Waiting] = deque()
        self._timer: Timer | None = None
        self._barriers: set[_Barrier] = set()
        self._open(address)

    def _open(self, address: str | None) -> None:
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._connected = False

    @property
    def there(self) -> bool:
        """Is there anybody to tell?"""
        return self._sock is not None

    @property
    def pending(self) -> bool:
        """Does something wait to be said?  The loop sees to it."""
        return bool(self._queue)

    # States and news

    def send(self, **fields: str | int) -> None:
        """Send one datagram of NAME=value lines, in this order."""
        lines = [f"{name}={_one_line(str(value))}\n" for name, value in fields.items()]
        data = "".join(lines).encode("utf-8", "replace")
        if _STATES.isdisjoint(fields):
            self.flush()
            self._sent(data, ())
        else:
            self._say(data, STATE_GIVE_UP_S)

    def ready(self, status: str = "") -> None:
        """We serve; also the end of what :meth:`reloading` began."""
        self.send(READY=1, **_status(status))

    def status(self, text: str) -> None:
        """STATUS= of `systemctl status`."""
        self.send(STATUS=_cut(text))

    def reloading(self, status: str = "") -> None:
        """A change of release begins.  The time must travel in the same datagram, or the reload job never ends."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, **_status(status))

    def stopping(self, status: str = "") -> None:
        """We are really going: the manager's TimeoutStopSec= runs from here."""
        self.send(STOPPING=1, **_status(status))

    def extend_timeout(self, seconds: float) -> None:
        """Start, reload or stop takes this long from now, at least."""
        self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def main_pid(self, pid: int) -> None:
        """Another process is the service's main one from now on."""
        self.send(MAINPID=pid)

    def watchdog(self) -> None:
        """We are alive; due twice in WATCHDOG_USEC, so that one may get lost."""
        self.send(WATCHDOG=1)

    def watchdog_trigger(self) -> None:
        """We are not well: be treated as if the watchdog had expired."""
        self.send(WATCHDOG="trigger")

    def watchdog_every(self, seconds: float) -> None:
        """From now on the watchdog expires after this time."""
        self.send(WATCHDOG_USEC=int(seconds * 1e6))

    def errno(self, number: int, status: str = "") -> None:
        """Why we could not start or go on: an errno(3)."""
        self.send(ERRNO=number, **_status(status))

    def buserror(self, name: str, status: str = "") -> None:
        """The same in D-Bus's words, such as "org.freedesktop.DBus.Error.TimedOut"."""
        self.send(BUSERROR=name, **_status(status))

    def exit_status(self, code: int) -> None:
        """How we are about to exit, for a manager that cannot wait for us: the keeper after a keeper."""
        self.send(EXIT_STATUS=code)

    # Descriptors

    def store(self, name: str, fd: int, lost: Lost | None = None) -> None:
        """Ask the manager to keep a duplicate of ``fd``; whether it does, only ``FdStore.measure`` shows.

        Args:
            fd: The caller keeps it, and may close it at once.
            lost: Called, perhaps at once, when it could not be sent: nobody there, the deadline
                passed, no descriptors left for the duplicate.
        """
        self.store_many(name, (fd,), lost)

    def store_many(self, name: str, fds: Sequence[int], lost: Lost | None = None) -> None:
        """As :meth:`store`, up to 253 under one name in one datagram."""
        assert 0 < len(fds) <= MAX_FDS and ":" not in name
        data = f"FDSTORE=1\nFDNAME={_one_line(name)}\n".encode("utf-8", "replace")
        self._say(data, GIVE_UP_S, fds, lost or _nothing, stores=name)

    def unstore(self, name: str) -> None:
        """Have the manager close all that it keeps under ``name``.

        A store that still waits is taken back: its duplicate would hide the end of a worker's channel.
        """
        self._take_back(lambda item: item.stores == name)
        self._say(
            f"FDSTOREREMOVE=1\nFDNAME={_one_line(name)}\n".encode("utf-8", "replace"), GIVE_UP_S, (), _nothing
        )

    def barrier(self, done: Callable[[bool], None], timeout_s: float) -> None:
        """Call ``done(True)`` when the manager has dealt with all that was said before.

        False: nobody there (at once), not within ``timeout_s``, or the manager died over it.
        """
        if self._sock is None:
            done(False)
            return
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            done(False)
            return
        timer = self._loop.call_at(self._loop.now() + timeout_s, lambda: self._end(barrier, False))
        barrier = _Barrier(reading, done, timer)
        self._barriers.add(barrier)
        # A manager that dies closes what was in its queue: the same sign, and the opposite of an answer.
        self._loop.watch(reading, lambda _events: self._end(barrier, self._reaches()))
        try:
            self._say(b"BARRIER=1\n", GIVE_UP_S, (writing,), lambda: self._end(barrier, False))
        finally:
            os.close(writing)

    def _end(self, barrier: _Barrier, answered: bool) -> None:
        if barrier in self._barriers:
            self._forget(barrier)
            barrier.done(answered)

    def _forget(self, barrier: _Barrier) -> None:
        self._barriers.discard(barrier)
        barrier.timer.cancel()
        self._loop.unwatch(barrier.fd)
        os.close(barrier.fd)

    # The queue

    def flush(self) -> None:
        """Try again to say what waits, in order."""
        while self._queue:
            first = self._queue[0]
            outcome = self._sent(first.data, first.fds)
            if outcome is _Outcome.LATER:
                break
            self._queue.popleft()
            first.close() if outcome is _Outcome.SENT else first.give_up()
        self._arm()

    def move_to(self, address: str | None) -> None:
        """Speak to another manager from now on: a new keeper.

        States that wait go to the new one.  Descriptors and barriers were meant for the old one: the
        barriers say False, and ``FdStore.put_all_again`` says all to the new one.
        """
        barriers = list(self._barriers)
        self._take_back(lambda item: not item.state)
        self._shut()
        self._open(address)
        for barrier in barriers:
            self._end(barrier, False)
        self.flush()

    def say_the_rest(self, patience_s: float) -> None:
        """Before we leave: wait, so long at most, until the manager has room for what waits to be said."""
        until = self._loop.now() + patience_s
        self.flush()
        while self._queue and self._sock is not None and (left := until - self._loop.now()) > 0:
            select.select([], [self._sock], [], min(left, 0.05))
            self.flush()

    def close(self) -> None:
        """Close the socket.  What waits is lost, and barriers are never answered."""
        for barrier in list(self._barriers):
            self._forget(barrier)
        self._take_back(lambda _item: True)
        self._shut()
        self._arm()

    def _shut(self) -> None:
        if self._sock is not None:
            self._watch_room(False)
            self._sock.close()
            self._sock = None

    def _say(
        self,
        data: bytes,
        give_up_s: float,
        fds: Sequence[int] = (),
        lost: Lost | None = None,
        stores: str = "",
    ) -> None:
        """Send, now or later, after what waits already.  Without ``lost`` it is a state.

        READY after RELOADING is the end of a reload, before it it is nothing; the same goes for
        FDSTORE and FDSTOREREMOVE of a name, and for all that a BARRIER is to cover.
        """
        self.flush()
        outcome = _Outcome.NEVER if self._sock is None else _Outcome.LATER
        if self._sock is not None and not self._queue:
            outcome = self._sent(data, fds)
        if outcome is _Outcome.LATER and self._enqueue(data, fds, give_up_s, lost, stores):
            self._arm()
        elif outcome is not _Outcome.SENT and lost is not None:
            lost()

    def _enqueue(
        self, data: bytes, fds: Sequence[int], give_up_s: float, lost: Lost | None, stores: str
    ) -> bool:
        if len(self._queue) >= _MAX_QUEUED:
            return False
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))  # the caller may close its own; close-on-exec
        except OSError:
            for fd in copies:
                os.close(fd)
            return False
        item = _Waiting(data, tuple(copies), self._loop.now() + give_up_s, lost, stores)
        self._queue.append(item)
        states = [other for other in self._queue if other.state] if item.state else []
        if len(states) > _MAX_STATES:
            self._queue.remove(states[0])
        return True

    def _take_back(self, unwanted: Callable[[_Waiting], bool]) -> list[_Waiting]:
        kept: deque[_Waiting] = deque()
        taken: list[_Waiting] = []
        for item in self._queue:
            (taken if unwanted(item) else kept).append(item)
        self._queue = kept
        for item in taken:
            item.close()
        return taken

    def _arm(self) -> None:
        """Come back while something waits: when there is room, and every 50 ms for all other reasons."""
        if self._queue and self._timer is None:
            self._timer = self._loop.call_at(self._loop.now() + RETRY_S, self._again)
        elif not self._queue and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch_room(bool(self._queue) and self._full)

    def _again(self) -> None:
        self._timer = None
        self.flush()
        now = self._loop.now()
        for item in self._take_back(lambda item: item.give_up_at <= now):
            item.give_up()
        self._arm()

    def _watch_room(self, wanted: bool) -> None:
        # Only for a full queue: a connected socket is writable when its peer has room, and it is so at
        # once, again and again, when something else was wrong.
        if self._sock is None or wanted == self._watched:
            return
        self._watched = wanted
        if wanted:
            self._loop.watch(self._sock.fileno(), lambda _events: self.flush(), WRITE)
        else:
            self._loop.unwatch(self._sock.fileno())

    def _sent(self, data: bytes, fds: Sequence[int]) -> _Outcome:
        if self._sock is None:
            return _Outcome.NEVER
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            was_connected = self._connected
            try:
                if not was_connected:
                    self._sock.connect(self._address)
                    self._connected = True
                self._sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as exc:
                if exc.errno in _GONE:
                    self._connected = False
                    if was_connected:
                        continue  # another may listen there by now
                self._full = exc.errno == errno.EAGAIN
                return _Outcome.LATER if exc.errno in _LATER else _Outcome.NEVER
            return _Outcome.SENT

    def _reaches(self) -> bool:
        """Is the manager there still?"""
        try:
            assert self._sock is not None, "barriers end with their socket"
            self._sock.connect(self._address)
        except OSError:
            self._connected = False
            return False
        return True


def _nothing() -> None:
    pass


def _status(text: str) -> dict[str, str]:
    return {"STATUS": _cut(text)} if text else {}


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:_MAX_STATUS_BYTES].decode("utf-8", "ignore")


def _one_line(text: str) -> str:
    """A line end in a value would begin another field."""
    return " ".join(text.split("\n")).replace("\r", " ").replace("\0", " ")
