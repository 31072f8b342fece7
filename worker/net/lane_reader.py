"""Takes live connections from lanes: to a worker a lane is a second listener.  The loop's thread only."""

import errno
import socket
from collections.abc import Callable
from typing import NamedTuple

from quiesce.shared.errors import FdPassingError, ProtocolError
from quiesce.shared.fdpass import MAX_FDS, close_all, recv_fds
from quiesce.worker.core.lane_record import MAX_PACKET_BYTES, Record, decode
from quiesce.worker.core.request import Address
from quiesce.worker.loops.base import READ, Loop, Timer
from quiesce.worker.net.room import Room

_NO_ROOM_S = 0.1
_ASIDE_S = 0.02  # others have less to do: they may take it first
_MOST_PACKETS = 1024  # of one lane at a drain's end; whoever fills it faster than we read must not keep us


class Arrival(NamedTuple):
    """A connection that came.  Whoever is given it owns the socket."""

    record: Record
    sock: socket.socket
    peer: Address


class Lane:
    """A read end.  Owns this process's descriptor of it."""

    __slots__ = ("fd", "name", "passed", "sock", "watched")

    def __init__(self, name: str, sock: socket.socket) -> None:
        sock.setblocking(False)  # see shared/channel.py: for Python's own timeouts
        self.name = name
        self.sock = sock
        self.fd = sock.fileno()
        self.watched = False
        self.passed = False  # something was there, and we let others have it first


class Lanes:
    """All lanes that a daemon reads: each that it has, but for the one that it hands over to.

    Args:
        taken: Is given what came in one packet, and owns it.
        changed: Called when a lane may have come to its end, or to be empty.
        before: Called before a packet is read: an order that has arrived wins.
        may_take: May this worker take one now, or has it more than its share?  Asked before a packet is read; a
            no delays by 20 ms, in which others may take it, and prevents nothing.
    """

    def __init__(
        self,
        loop: Loop,
        taken: Callable[[list[Arrival]], None],
        changed: Callable[[], None],
        before: Callable[[], None] | None = None,
        may_take: Callable[[], bool] = lambda: True,
    ) -> None:
        self._loop = loop
        self._taken = taken
        self._changed = changed
        self._before = before
        self.may_take = may_take
        self._lanes: dict[str, Lane] = {}
        self._skipped = ""
        self._room = Room()
        self._timers: dict[str, Timer] = {}

    def add(self, name: str, sock: socket.socket) -> None:
        """Read from this one too, in place of one of that name.  Takes it; closes it at its end."""
        lane = Lane(name, sock)
        self._forget(name)
        self._lanes[name] = lane
        self._watch(lane)

    def skip(self, name: str) -> None:
        """Do not read this one from now on, but all others; "": read all."""
        if name == self._skipped:
            return
        self._skipped = name
        for lane in self._lanes.values():
            if lane.name == name:
                self._unwatch(lane)
            else:
                self._watch(lane)

    def set_aside(self, name: str, seconds: float) -> None:
        """Leave this one to others for a moment."""
        lane = self._lanes.get(name)
        if lane is not None:
            self._rest(lane, seconds)

    @property
    def is_over(self) -> bool:
        """No lane that we read can bring anything any more."""
        return not self._read()

    @property
    def is_empty(self) -> bool:
        """Nothing lies in those that we read."""
        return not any(_has_something(lane) for lane in self._read())

    def _read(self) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.name != self._skipped]

    def read_all(self) -> None:
        """Take what there is, as far as there is room."""
        for lane in self._read():
            for _ in range(_MOST_PACKETS):
                if not self._room.has_room() or not self._packet(lane):
                    break

    def descriptors(self) -> list[int]:
        return [lane.fd for lane in self._lanes.values()]

    def close(self) -> None:
        for name in list(self._lanes):
            self._forget(name)

    # -- one of them --------------------------------------------------------------------------------

    def _watch(self, lane: Lane) -> None:
        if not lane.watched and lane.name != self._skipped and lane.name not in self._timers:
            lane.watched = True
            self._loop.watch(lane.fd, lambda events: self._ready(lane), READ)

    def _unwatch(self, lane: Lane) -> None:
        if lane.watched:
            lane.watched = False
            self._loop.unwatch(lane.fd)

    def _forget(self, name: str) -> None:
        lane = self._lanes.pop(name, None)
        if lane is not None:
            self._unwatch(lane)
            lane.sock.close()  # and never shut down: others read it
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _rest(self, lane: Lane, seconds: float) -> None:
        self._unwatch(lane)
        timer = self._timers.pop(lane.name, None)
        if timer is not None:
            timer.cancel()
        self._timers[lane.name] = self._loop.call_at(self._loop.now() + seconds, lambda: self._again(lane))

    def _again(self, lane: Lane) -> None:
        self._timers.pop(lane.name, None)
        if self._lanes.get(lane.name) is lane:
            self._watch(lane)

    def _ready(self, lane: Lane) -> None:
        if self._before is not None:
            self._before()
        if not lane.watched:  # that was the order
            return
        if not self._room.has_room():
            self._rest(lane, _NO_ROOM_S)
        elif lane.passed or self.may_take():
            lane.passed = False
            self._packet(lane)
            self._changed()
        else:
            lane.passed = True
            self._rest(lane, _ASIDE_S)

    def _packet(self, lane: Lane) -> bool:
        """Take one; False: there is none, for now or for ever."""
        try:
            data, fds = recv_fds(lane.sock, MAX_PACKET_BYTES, MAX_FDS)
        except (BlockingIOError, InterruptedError):
            return False  # another worker has it
        except FdPassingError as exc:
            self._complain(lane, str(exc))
            return True
        except OSError as exc:
            self._complain(lane, str(exc))
            self._rest(lane, _NO_ROOM_S)
            return False
        if not data:
            close_all(fds)
            self._forget(lane.name)
            return False
        arrivals = self._arrivals(lane, data, fds)
        if arrivals:
            self._taken(arrivals)
        return True

    def _arrivals(self, lane: Lane, data: bytes, fds: list[int]) -> list[Arrival]:
        """What came, every descriptor of it looked at; what is no client's connection is closed."""
        try:
            records = decode(data, len(fds))
        except ProtocolError as exc:
            close_all(fds)
            self._complain(lane, f"{exc}; {len(fds)} connections are closed")
            return []
        arrivals: list[Arrival] = []
        strange = ""
        for record, fd in zip(records, fds, strict=True):
            try:
                arrivals.append(_arrival(record, fd))
            except OSError as exc:
                if exc.errno != errno.ENOTCONN:  # else it was reset on the way
                    strange = str(exc)
        if strange:
            self._complain(lane, f"a descriptor is no client's connection, and is closed: {strange}")
        return arrivals

    def _complain(self, lane: Lane, what: str) -> None:
        self._loop.complain(f"lane {lane.name!r}: {what}", None)


def _has_something(lane: Lane) -> bool:
    """Also at its end."""
    try:
        # Without a place for them, no descriptor is installed.
        return bool(lane.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _arrival(record: Record, fd: int) -> Arrival:
    """Look at one.  On failure the descriptor is closed."""
    # To have Python find the family out takes three system calls; what the record says is checked by two.
    said = record.peer
    family = socket.AF_UNIX if said is None else socket.AF_INET6 if ":" in said[0] else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, 0, fd)
    except OSError:
        close_all([fd])
        raise
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
            raise OSError("it is no stream socket")
        peer = sock.getpeername()
        if _family_of(peer) != family:
            sock = socket.socket(_family_of(peer), socket.SOCK_STREAM, 0, sock.detach())
        return Arrival(record, sock, None if type(peer) is not tuple else peer[:2])
    except OSError:
        sock.close()
        raise


def _family_of(peer: object) -> socket.AddressFamily:
    """By the form in which Python gives the address; OSError: a family that no client of ours has."""
    if type(peer) is str or type(peer) is bytes:
        return socket.AF_UNIX
    if type(peer) is tuple and type(peer[0]) is str and len(peer) in (2, 4):
        return socket.AF_INET if len(peer) == 2 else socket.AF_INET6
    raise OSError("its family is another")
