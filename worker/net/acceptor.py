"""Takes connections from the kernel's queue, and stops taking them."""

import _socket
import errno
import fcntl
import os
import select
import socket
from collections.abc import Callable
from typing import Any, cast

from quiesce.worker.core.request import Address
from quiesce.worker.core.share import FIRST_LOOK_S, LOOK_S, Patience, next_look_s
from quiesce.worker.loops.base import READ, Loop, Timer
from quiesce.worker.net.gate import Gate
from quiesce.worker.net.reserve import Reserve
from quiesce.worker.net.room import first_kept

_BURST = 16  # of one turn: what is accepted here is not accepted by an idle neighbour
_MOST_LAST = (
    1024  # from the queue of a listener that goes; who connects faster than we accept must not keep it
)
_RETRY_S = 0.1
_MOST_LOCALS = 1000  # with a whole IPv6 network on an interface there could be any number
_QUIET_LOOKS = 25  # above our share, and nobody comes: look no more, be told
# accept(2): errors of the connection that came, not of the listener
_OF_THE_CONNECTION = frozenset(
    (errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN,
     errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EINTR, errno.ETIMEDOUT)
)  # fmt: skip
_OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_EXHAUSTED = _OUT_OF_DESCRIPTORS | {errno.ENOBUFS, errno.ENOMEM}

Accepted = Callable[[socket.socket, Address, Address, "Listener"], None]


class Listener:
    """One listening socket.  Owns this process's descriptor of it, and nothing else: other processes accept on
    the same socket, so it is never shut down and no flag of it is changed but towards O_NONBLOCK.
    """

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.sock = sock
        self.fd = sock.fileno()
        self.watched = False
        self.patience = Patience()
        self.family, self.proto = int(sock.family), sock.proto
        self.is_inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        self._local: Address = None
        self._locals: dict[Address, Address] = {}  # so that connections to one address share it; bounded
        if self.is_inet:
            address = sock.getsockname()
            if address[0] not in ("0.0.0.0", "::"):
                self._local = address[:2]
            try:
                # Accepted sockets inherit it, which saves a call for each of them.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass

    def local_of(self, sock: socket.socket) -> Address:
        """Our end of an accepted connection."""
        if not self.is_inet or self._local is not None:
            return self._local
        try:
            local = sock.getsockname()[:2]
        except OSError:
            return None
        if len(self._locals) > _MOST_LOCALS:
            self._locals.clear()
        return self._locals.setdefault(local, local)


class Acceptor:
    """All listeners of a daemon.  Loop's thread only, so that after ``pause`` nobody accepts.

    While one of its two timers is set no listener is watched: out of descriptors (``_retry``), or above our share
    (``_look``).
    """

    def __init__(
        self,
        loop: Loop,
        accepted: Accepted,
        before_accept: Callable[[], None] | None,
        gate: Gate,
        show: Callable[[bool], None],
        reserve: Reserve | None,
        turn_away: Accepted,
        come: Callable[[], None],
    ) -> None:
        """
        Args:
            come: Is told when those who were given to ``accepted`` one after the other are all.
            show: Is told whether we accept, whenever that changes; a gate that is closed changes nothing.
            reserve: For who accepts alone: to accept with when there are no descriptors left.  None: others accept on
                these listeners, and who comes then is left to them.
            turn_away: Is given, as ``accepted`` would be, whom the reserve was used for.
        """
        self._loop = loop
        self._accepted = accepted
        self._come = come
        self._before = before_accept
        self._gate = gate
        self._show = show
        self._turn_away = turn_away
        self._reserve = reserve
        self._is_short = False  # we rest for want of descriptors
        self._kept = first_kept()
        self._is_last = False  # the client that was accepted last had one of the last descriptors
        self.listeners: dict[str, Listener] = {}
        self.active = False
        self._retry: Timer | None = None
        self._look: Timer | None = None
        self._look_s = 0.0
        self._quiet = 0  # looks in a row that found nobody
        self._others = 0  # what the others had accepted then
        self._said = False

    def add(self, name: str, sock: socket.socket) -> None:
        """Take a listening socket, in place of one of that name.

        A supervisor that took over brings another descriptor of the socket that we have: the kernel's queue is
        the socket's, so nobody in it notices.
        """
        listener = Listener(name, sock)  # if it is none, the old one stays
        self.remove(name)
        self.listeners[name] = listener
        if self.active and self._retry is None and self._look is None:
            self._watch(listener)

    def remove(self, name: str) -> None:
        """Close our descriptor of it.  Connections in its queue are for whoever else holds it."""
        listener = self.listeners.pop(name, None)
        if listener is not None:
            self._unwatch(listener)
            listener.sock.close()

    def retire(self, name: str) -> None:
        """Accept what waits in its queue, then close our descriptor: nobody is going to listen there any more.

        Who does not accept leaves the queue to those who do.
        """
        listener = self.listeners.get(name)
        if listener is not None and self.active:
            os.set_blocking(listener.fd, False)  # as in _ready
            for _ in range(_MOST_LAST):
                if not self._accept(listener):
                    break
            self._come()
        self.remove(name)

    def start(self) -> None:
        self.active = True
        if self._reserve is not None:
            self._reserve.hold()
        self._watch_all()

    def pause(self) -> None:
        if self.active and self._reserve is not None:
            self._reserve.leave()
        self.active = False
        self._show(False)
        self._unwatch_all()

    def _watch_all(self) -> None:
        self._cancel()
        self._show(True)
        for listener in self.listeners.values():
            self._watch(listener)

    def _unwatch_all(self) -> None:
        self._cancel()
        for listener in self.listeners.values():
            self._unwatch(listener)

    def _cancel(self) -> None:
        for timer in (self._retry, self._look):
            if timer is not None:
                timer.cancel()
        self._retry = self._look = None

    def _watch(self, listener: Listener) -> None:
        if not listener.watched:
            listener.watched = True
            self._loop.watch(listener.fd, lambda events: self._ready(listener), READ)

    def _unwatch(self, listener: Listener) -> None:
        # Before every close: epoll holds the open file description, and while another process has the
        # listener open, our epoll would report it for ever with no way left to remove it.
        if listener.watched:
            listener.watched = False
            self._loop.unwatch(listener.fd)

    def _ready(self, listener: Listener) -> None:
        if self._before is not None:
            self._before()  # an order to quiesce that has arrived wins
        if not listener.watched:
            return
        if self._reserve is not None and not self._reserve.is_there():
            self._rest(_no_descriptors())
            return
        # O_NONBLOCK is on the shared open file description and any process may have cleared it; accept has no
        # MSG_DONTWAIT; and what epoll saw, another worker may have taken.  We would block for ever.
        os.set_blocking(listener.fd, False)
        gate, counters = self._gate, self._gate.counters
        try:
            for _ in range(_BURST):
                if counters.open > gate.limit and gate.is_above():
                    self._hold_back(listener)
                    break
                if not listener.watched or not self._take(listener):
                    break
        finally:  # whatever befell one of them
            self._come()

    def _take(self, listener: Listener) -> bool:
        """Accept one, and rest if it has one of the last descriptors; False: no more now."""
        if not self._accept(listener):
            return False
        if self._is_last and self._reserve is None:
            self._rest(_no_descriptors())
            return False
        return True

    def _accept(self, listener: Listener) -> bool:
        """Accept one; False when there is none."""
        try:
            fd, peer = listener.sock._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            return self._failed(listener, exc)
        self._is_last = fd >= self._kept  # the kernel gives the lowest that is free
        self._give(listener, fd, peer, self._accepted)
        return True

    @staticmethod
    def _give(listener: Listener, fd: int, peer: Any, to: Accepted) -> None:
        # With family and type given, no getsockopt is needed to ask for them.
        # And socket.socket adds to this class nothing but 24 bytes for each connection, and a microsecond.
        sock = cast(socket.socket, _socket.socket(listener.family, socket.SOCK_STREAM, listener.proto, fd))
        to(sock, peer[:2] if listener.is_inet else None, listener.local_of(sock), listener)

    def _failed(self, listener: Listener, exc: OSError) -> bool:
        if exc.errno in _OF_THE_CONNECTION:
            return True
        if exc.errno not in _EXHAUSTED:
            self._loop.complain(f"cannot accept on {listener.name}: {exc}", None)
        self._rest(exc)
        return False

    def _rest(self, exc: OSError) -> None:
        """Leave the listeners alone for a moment.

        Where others accept on them clients lose nothing: they wait in the kernel's queue, and another worker may take
        them.  So no reserve is spent on accepting them only to turn them away.
        """
        if not self._said:
            self._said = True
            self._loop.complain(
                f"accepting pauses: {exc.strerror}; raise LimitNOFILE or lower limits.connections (said once)",
                None,
            )
        self._show(False)
        self._unwatch_all()
        self._is_short = exc.errno in _OUT_OF_DESCRIPTORS
        self._retry = self._loop.call_at(self._loop.now() + _RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        if self.active and not (self._is_short and self._accept_short()):
            self._watch_all()

    def _accept_short(self) -> bool:
        """Nobody else accepts, and so nobody is to wait for ever: if there still is no descriptor, take one client with
        the reserve and turn it away.  One for each rest, so there is a bound to it; and it has the reserve's place
        until it has gone.  True: we rest again.
        """
        if self._reserve is None:
            return self._is_still_short()
        waiting = self._waiting()  # accept wants a descriptor before it looks who is there
        for listener in [one for one in self.listeners.values() if one.fd in waiting]:
            os.set_blocking(listener.fd, False)  # as in _ready
            give = self._accepted
            with self._reserve:
                taken, error = self._try(listener)
                if error is not None and self._reserve.spend():
                    give = self._turn_away
                    taken, _ = self._try(listener)
                    self._reserve.fill()
            if error is not None:
                self._rest(error)
            if taken is not None:
                self._give(listener, *taken, give)
                self._come()
            if error is not None:
                return True
        return False

    def _is_still_short(self) -> bool:
        """Is the next descriptor one of the last, or is there none?  Then we rest again."""
        self._kept = first_kept()
        listener = next(iter(self.listeners.values()), None)
        if listener is None:
            return False
        try:
            probe = fcntl.fcntl(listener.fd, fcntl.F_DUPFD_CLOEXEC, 0)
            os.close(probe)
            if probe < self._kept:
                return False
            error = _no_descriptors()
        except OSError as exc:
            error = exc
        self._rest(error)
        return True

    @staticmethod
    def _try(listener: Listener) -> tuple[tuple[int, Any] | None, OSError | None]:
        """Whom we accepted; or what says that there are no descriptors.  Neither: nobody is there."""
        try:
            return listener.sock._accept(), None  # type: ignore[attr-defined]
        except OSError as exc:
            return None, exc if exc.errno in _OUT_OF_DESCRIPTORS else None

    # -- above our share ------------------------------------------------------------------------

    def _hold_back(self, listener: Listener) -> None:
        """Leave this one, and who comes now, to the others: to be woken for each would cost more than to look."""
        self._unwatch_all()
        self._quiet = 0
        for one in self.listeners.values():
            one.patience.since = None
        listener.patience.look(self._loop.now(), True)
        self._others = self._gate.others_accepted()
        self._look_again(FIRST_LOOK_S)

    def _look_again(self, after_s: float) -> None:
        self._look_s = after_s
        self._look = self._loop.call_at(self._loop.now() + after_s, self._on_look)

    def _on_look(self) -> None:
        """Accept as before if we have our share and no more; else what the others leave, be they stopped, dead or at
        work on a request.
        """
        self._look = None
        if self._before is not None:
            self._before()
        if not self.active:
            return
        waiting = self._waiting()
        self._quiet = 0 if waiting else self._quiet + 1
        if not self._gate.is_above() or self._quiet > _QUIET_LOOKS:
            self._watch_all()
            return
        now = self._loop.now()
        left = [one for one in self.listeners.values() if one.patience.look(now, one.fd in waiting)]
        for listener in left:
            self._take_left(listener)
        if self._retry is None:
            self._look_again(self._pause_s(bool(left)))

    def _waiting(self) -> set[int]:
        """The listeners on which somebody waits."""
        poll = select.poll()
        for listener in self.listeners.values():
            poll.register(listener.fd, select.POLLIN)
        return {fd for fd, _ in poll.poll(0)}

    def _take_left(self, listener: Listener) -> None:
        os.set_blocking(listener.fd, False)  # as in _ready
        for _ in range(_BURST):
            if self._retry is not None or not self._take(listener):
                break
        self._come()

    def _pause_s(self, took: bool) -> float:
        """Until the next look.  None at all while we are the only one who takes anybody."""
        before, self._others = self._others, self._gate.others_accepted()
        if took:
            return 0.0 if before == self._others else LOOK_S
        return next_look_s(self._look_s)

    def close(self) -> None:
        self.pause()
        for name in list(self.listeners):
            self.remove(name)


def _no_descriptors() -> OSError:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))
