"""The HTTP daemon: listeners and connections in, an application called, everything let go in the end.

A library in its own right: it knows no supervisor.  Every method is for the loop's thread.
"""

import socket
from _thread import get_ident
from collections.abc import Callable
from math import inf
from time import monotonic, monotonic_ns

from quiesce.worker.apps.base import App
from quiesce.worker.core import drain as life
from quiesce.worker.core.http1 import HeadParser
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.readiness import as_sent, readiness
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address
from quiesce.worker.loops.base import Loop, Timer
from quiesce.worker.loops.thread_pool import ThreadPool
from quiesce.worker.net import counters as figures
from quiesce.worker.net import staying
from quiesce.worker.net.acceptor import Accepted, Acceptor, Listener
from quiesce.worker.net.alone import Alone
from quiesce.worker.net.counters import IN_REQUEST_SINCE_NS, Counters, SharedCounters, TurnCounters
from quiesce.worker.net.deadline import Sweep
from quiesce.worker.net.direct import Direct
from quiesce.worker.net.ending import Ending
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.gate import Gate, Neighbours
from quiesce.worker.net.http_date import HttpDate
from quiesce.worker.net.lane_reader import Arrival, Lanes
from quiesce.worker.net.lane_writer import Target
from quiesce.worker.net.mover import Moved, Mover, shed
from quiesce.worker.net.reserve import Reserve
from quiesce.worker.net.roster import Roster
from quiesce.worker.net.stream import Connection

AccessLog = Callable[[Exchange, int, int, float], None]
"""Called with the exchange, status, bytes of body, seconds; from whichever thread finished the response."""
Connect = Callable[["Daemon", socket.socket, Address, Address, str, bool], Connection]
"""Makes what serves one client; it owns the socket only once it is made."""

_HEARTBEAT_S = 0.2  # the scoreboard promises 0.25
_LAST_WORDS_S = 5.0  # what a drain that is over leaves for FIN and linger, or those who take their 503 slowly
_SHED_ASIDE_S = 0.1  # so that what we shed comes to others, and not back to us


class Daemon:
    """Serves one application on any number of listeners.

    Args:
        app: The application.
        loop: Whoever waits; it must not run yet, or this must be its thread.
        limits: See :class:`~quiesce.worker.core.limits.Limits`.
        threads: 1 = a blocking application runs in the loop's thread; more = in a pool of so many.
        slot: A slot of the scoreboard (``memoryview`` of unsigned 64-bit integers), written in place.
        neighbours: The workers that accept on the same listeners: who has more connections than its share lets them go
            first.
        before_accept: Called before connections are accepted; it may call :meth:`quiesce`.
        access_log: Called once for each response of the application.
        ready_path: This path is answered here and not by the application: 200, or 503 while ``unready()``, and
            then every answer is its connection's last.  Empty: there is no such path.
        unready: Shall requests go elsewhere?  Asked in the loop's thread, at each request; without a
            ``ready_path`` never.
        connect: Makes the connections, in place of ``Connection``: for who must know more of each one.
        accepted: Is given each socket that was accepted, and owns it; then limits on the number of connections are its
            affair, and :meth:`add_connection` is the way back.
        reserve: No other process accepts on these listeners: when there are no descriptors left this one is used to
            tell clients so.  Else they wait in the listener's queue.  Daemons of one process that share a listener
            share it.
        turn_away: Is given, in place of ``accepted``, those who are to be told so.
        taken: The same for what comes by a lane, with :meth:`adopt`.
        may_take: See :class:`~quiesce.worker.net.lane_reader.Lanes`; in place of the gate's word.
        heartbeat: Write the time into the slot five times a second.  Without it a daemon that has nothing to do
            sleeps, and :meth:`enter` must say whose thread the loop's is.
    """

    # Slots: with more than thirty attributes, a dictionary would be looked up for each of them and for each method.
    __slots__ = (
        "_acceptor", "_app_running", "_drain_s", "_drain_timer", "_ended", "_fresh", "_heartbeat", "_is_orphan",
        "_lanes", "_mover", "_on_drained", "_pool", "_ready_path", "_state", "_thread", "_unready", "access_log",
        "app", "closing", "connect", "counters", "cut", "dates", "draining", "gate", "hear", "idle_timeout",
        "in_call", "is_inline", "limits", "loop", "moving", "parser", "roster", "sweep",
    )  # fmt: skip

    def __init__(
        self,
        app: App,
        loop: Loop,
        *,
        limits: Limits = Limits(),  # noqa: B008  (immutable)
        threads: int = 1,
        slot: memoryview | None = None,
        neighbours: Neighbours | None = None,
        before_accept: Callable[[], None] | None = None,
        access_log: AccessLog | None = None,
        ready_path: str = "",
        unready: Callable[[], bool] = lambda: False,
        connect: Connect | None = None,
        accepted: Accepted | None = None,
        reserve: Reserve | None = None,
        turn_away: Accepted | None = None,
        taken: Callable[[list[Arrival]], None] | None = None,
        may_take: Callable[[], bool] | None = None,
        heartbeat: bool = True,
    ) -> None:
        self.app = app
        self.loop = loop
        self.limits = limits
        self.idle_timeout = limits.idle_timeout or inf  # for each answer: a tuple's field costs a call
        self.access_log = access_log
        self.is_inline = threads <= 1 or not getattr(
            app, "blocking", True
        )  # the application is called in the loop's thread
        self.counters: Counters
        if self.is_inline:
            self.counters = counters = TurnCounters(slot)
            loop.turned = counters.turned
        else:
            self.counters = SharedCounters(slot)
        self.gate = Gate(self.counters, neighbours)
        self.parser = HeadParser(limits)
        self.draining = False
        self.closing = False  # every answer is its connection's last: draining, or unready
        self.hear = before_accept or (lambda: None)  # obey orders that have arrived
        self._ready_path = as_sent(ready_path)
        self._unready = unready
        self._state = life.State.QUIESCED
        self._drain_timer: Timer | None = None
        self._drain_s = 0.0
        self.cut = 0  # connections that a drain had to end with a request unanswered
        self._ended = False  # the drain's time is over; who is left has its last words
        self._on_drained: Callable[[], None] | None = None
        self._is_orphan = False  # a lane that is empty has ended: nobody is left to say so
        self.roster = Roster(self.counters, counts_ip=limits.connections_per_ip > 0)
        self.sweep = Sweep(loop, min(limits.idle_timeout or 60.0, 60.0), self.roster.all)
        self.moving: Mover | None = None  # who is told of connections that fall idle: they can move now
        self._mover = Mover(self)
        self._lanes = Lanes(
            loop, taken or self._taken, self.check_empty, before_accept, may_take or self.gate.may_take
        )
        self._acceptor = Acceptor(
            loop,
            accepted or self._accepted,
            before_accept,
            self.gate,
            self._show_accepting,
            reserve,
            turn_away or self._turn_away,
            self._look_at_fresh,
        )
        self._fresh: list[Connection] = []  # accepted just now
        self.connect: Connect = connect or self._usual_kind()
        self._pool = None if self.is_inline else ThreadPool(threads, self._call, self._call_over)
        self.in_call = False  # in the loop's thread
        # An application that answers in tasks of its own says how many run, and when the last one ends.
        self._app_running: Callable[[], int] = getattr(app, "running", lambda: 0)
        getattr(app, "when_idle", lambda callback: None)(self._call_over)
        self.dates = HttpDate()
        self._thread: int | None = None
        if slot is not None:
            loop.slot = slot
        self._heartbeat: Timer | None = loop.call_at(loop.now(), self._beat) if heartbeat else None

    def _usual_kind(self) -> Connect:
        """The shortest way that this application allows for."""
        if not self.is_inline:
            return Connection
        heard = self.access_log is not None or self._ready_path
        return Direct if hasattr(self.app, "handler") and not heard else Alone

    # -- listeners ------------------------------------------------------------------------------

    def add_listener(self, name: str, sock: socket.socket) -> None:
        """Take a listening socket: this process's descriptor of it is closed by :meth:`remove_listener` or
        :meth:`close`, and the socket itself is never shut down.  Accepts at once if the daemon is accepting.
        """
        self._acceptor.add(name, sock)

    def remove_listener(self, name: str) -> None:
        """Close our descriptor of a listener.  What waits in its queue stays there for others."""
        self._acceptor.remove(name)

    def retire_listener(self, name: str) -> None:
        """The same for a listener that goes everywhere: what waits in its queue is accepted first, if we accept."""
        self._acceptor.retire(name)

    def listeners(self) -> list[str]:
        """The names of what was added and not removed."""
        return list(self._acceptor.listeners)

    def accept(self) -> None:
        """Accept connections on all listeners; also the way back from quiesce and from a drain.  Nothing is handed over
        any more."""
        self._step(life.Event.ACCEPT)
        self._ended = False
        self._mover.stop()

    resume = accept

    def quiesce(self) -> None:
        """Stop accepting.  When this returns, nobody here accepts again; connections are served on."""
        self._step(life.Event.QUIESCE)

    def drain(self, timeout_s: float, on_drained: Callable[[], None]) -> None:
        """Quiesce, finish what was accepted, then call ``on_drained``, once.

        A connection whose first request has not come is served when it comes; every answer from now on says
        ``Connection: close``; idle ones are left alone until ``timeout_s``, then closed politely.  Busy ones
        have until then too: who has no answer gets 503, who has half a one is cut.  Code of the application that
        works on after its response has until then too, whoever is connected.  ``on_drained`` is called when
        every close is finished, a few seconds after ``timeout_s`` at the latest.
        """
        self._drain_s = timeout_s
        self._on_drained = on_drained
        self._ended = False
        if not self.draining:  # else it was told again: who was cut stays so
            self.cut = 0
        self._step(life.Event.DRAIN)
        self.check_empty()

    def close(self) -> None:
        """Cut everything; release listeners, connections and threads.  The loop stays its owner's."""
        if self._state is life.State.CLOSED:
            return
        self._mover.stop()
        self._step(life.Event.CLOSE)
        self._acceptor.close()
        self._lanes.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._pool is not None:
            self._pool.close(1.0)

    def descriptors(self) -> list[int]:
        """All that a forked child of the application must close: it would hold connections and listeners open
        for as long as it lives."""
        listeners = [listener.fd for listener in self._acceptor.listeners.values()]
        target = self._mover.target
        lanes = [*self._lanes.descriptors(), *(target.descriptors() if target is not None else ())]
        return [*listeners, *lanes, *self.loop.descriptors(), *(c.sock.fileno() for c in self.roster.all)]

    def forked(self) -> None:
        """In a forked child of the application, after its descriptors were closed: let nothing here act for
        this process's parent any more, nor count for it.
        """
        self.loop.slot = None
        self.counters.slot = memoryview(bytearray(8 * len(self.counters.slot))).cast("Q")
        self.loop.stop()
        if self._pool is not None:
            self._pool.forked()

    # -- lanes: live connections from other processes, and to them ------------------------------------

    def add_lane(self, name: str, sock: socket.socket) -> None:
        """Take the read end of a lane, a connected SOCK_SEQPACKET socket, in place of one of that name.

        Connections that come by it are served, whatever this daemon does with its listeners.  It is closed at its end,
        or by :meth:`close`.
        """
        if self._state is life.State.CLOSED:
            sock.close()
        else:
            self._lanes.add(name, sock)

    def hand_over_to(self, target: Target | None, on_moved: Moved | None = None) -> None:
        """Give each connection away that can move, and each other one as it falls idle; None: keep all.

        Takes the target: both its ends are closed when there is another one, when we accept again, at a drain's
        deadline, and when the lane has ended.  A lane of ours that has its name is not read meanwhile.

        Args:
            on_moved: Called once, now or in a later turn: all that could move by then have moved, or there is another
                order.  With their number, and that of the connections that are still here.
        """
        self._mover.to(target, on_moved)

    def move_now(self) -> int:
        """Move all that can now, without a turn of the loop in between; returns how many have moved to this target."""
        self._mover.move_now()
        return self._mover.moved

    def shed(self, count: int, target: Target) -> int:
        """Give so many idle connections away, or fewer, at once and only now; returns how many.  Takes the target."""
        moved = shed(self, count, target)
        self._lanes.set_aside(target.name, _SHED_ASIDE_S)
        return moved

    def orphaned(self) -> None:
        """Nobody will name a lane or end one any more: keep what we have, and let an empty lane be a lane's end."""
        self._is_orphan = True
        self._mover.stop()

    def _taken(self, arrivals: list[Arrival]) -> None:
        for connection in self.adopt(arrivals):
            connection.go_on()
            if self._ended:
                connection.end()

    def adopt(self, arrivals: list[Arrival]) -> list[Connection]:
        """Serve connections that other processes have served.  No limit turns them away: they were let in.

        Owns the sockets in any case.  ``go_on`` of each that is returned must follow.
        """
        now = monotonic()
        connections: list[Connection] = []
        for record, sock, peer in arrivals:
            try:
                sock.setblocking(False)
                connection = self.connect(self, sock, peer, record.local, record.scheme, False)
                connection.arrive(record, now)
            except Exception as exc:  # the others are not to blame
                sock.close()
                self.loop.complain(f"what came by a lane cannot be served: {exc}", None)
                continue
            connections.append(connection)
        self.roster.came(connections)
        for connection in connections:
            connection.look_at_deadline(now)
        return connections

    def aimed(self) -> None:
        """There is a target now, or there is none any more."""
        target = self._mover.target
        self._lanes.skip(target.name if target is not None else "")
        self._look()

    # -- connections ------------------------------------------------------------------------------

    def add_connection(
        self,
        sock: socket.socket,
        *,
        peer: Address,
        local: Address,
        scheme: str = "http",
        probe: bool = False,
    ) -> Connection:
        """Serve a connected stream socket; owns it in any case.

        ``peer`` and ``local`` are what the application sees.  A probe is not counted, limited or logged.
        """
        try:
            sock.setblocking(False)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self.connect(self, sock, peer, local, scheme, probe)
            connection.attend()
        except BaseException:
            sock.close()
            raise
        self.roster.add(connection)
        return connection

    def _accepted(self, sock: socket.socket, peer: Address, local: Address, listener: Listener) -> None:
        limits = self.limits
        connection = self.welcome(sock, peer, local)
        connection.listener = listener.name
        full = self.counters.open > limits.connections > 0
        full = self.roster.count_ip(connection, peer) > limits.connections_per_ip or full
        self.counters.count(figures.ACCEPTED)
        if full:
            self.counters.count(figures.REFUSED)
            connection.refuse(Rejected(503, "too many connections", retry_after_s=1))

    def welcome(self, sock: socket.socket, peer: Address, local: Address) -> Connection:
        """Serve one that our acceptor has just given to ``accepted``, which is done when it has given all there are."""
        connection = self.connect(self, sock, peer, local, "http", False)
        self.roster.add(connection)
        self._fresh.append(connection)
        return connection

    def _look_at_fresh(self) -> None:
        """Those who were accepted may have sent their requests already."""
        if self._thread is None:
            self.enter()  # it is the first turn, and no heart has beaten: a pool's threads must be told apart by now
        fresh, self._fresh = self._fresh, []
        for connection in fresh:
            try:
                connection.look()
            except Exception as exc:  # a bug of ours, or it cannot be watched: this client pays, nobody else
                self.loop.complain("unexpected error in the serving loop", exc)
                connection.cut()

    def _turn_away(self, sock: socket.socket, peer: Address, local: Address, listener: Listener) -> None:
        self.counters.count(figures.REFUSED)
        connection = self.add_connection(sock, peer=peer, local=local)
        connection.refuse(Rejected(503, "no descriptors left", retry_after_s=1))

    def forget(self, connection: Ending) -> None:
        """A connection's last word."""
        self.roster.remove(connection)
        if not self.roster.all:
            self.sweep.rest()
        if not connection.probe:
            self.check_empty()

    @property
    def open(self) -> int:
        """Connections, probes not counted."""
        return self.counters.open

    @property
    def idle(self) -> int:
        """Connections on which nothing has come since they were accepted or answered."""
        return self.counters.open - self.counters.busy

    @property
    def busy(self) -> int:
        """The others: a request on its way, at work, or answered and not yet closed."""
        return self.counters.busy

    def use_slot(self, slot: memoryview | None, neighbours: Neighbours | None = None) -> None:
        """Count in this slot from now on; the figures so far go along."""
        if slot is not None:
            self.counters.move(slot)
            self.loop.slot = slot
            self.gate.use(neighbours)

    def _show_accepting(self, accepts: bool) -> None:
        self.counters.slot[figures.ACCEPTING] = int(accepts)

    # -- calling the application ----------------------------------------------------------------------

    def call(self, exchange: Exchange, now_ns: int) -> None:
        """Have a request answered, here or by the pool."""
        if self._ready_path and self._answer_ready(exchange):
            return
        if self._pool is not None:
            self._pool.submit(exchange)
            return
        self.in_call = True
        self.counters.slot[IN_REQUEST_SINCE_NS] = now_ns  # until the turn is over
        try:
            self.app.handle(exchange)
        except BaseException as exc:  # SystemExit too: one request does not end the process
            exchange.fail(exc)
        self.in_call = False
        if self.draining:
            self.check_empty()

    def _answer_ready(self, exchange: Exchange) -> bool:
        """Answer in the application's place if this is ``ready_path``; probes are for the application."""
        self._look()
        request = exchange.request
        if request.raw_path != self._ready_path or request.method not in ("GET", "HEAD") or exchange.is_probe:
            return False
        exchange.respond(readiness(unready=self._unready(), accepts=self._state is life.State.SERVING))
        return True

    def _look(self) -> None:
        leaving = self.draining and self._mover.target is None  # else they will live on elsewhere
        self.closing = leaving or (bool(self._ready_path) and self._unready())

    def _call(self, exchange: Exchange) -> None:
        try:
            self.app.handle(exchange)
        except BaseException as exc:  # SystemExit too: one request does not end the process
            exchange.fail(exc)

    # -- what connections ask ---------------------------------------------------------------------------

    def in_loop(self) -> bool:
        """Is this the loop's thread?"""
        return self._thread is None or self._thread == get_ident()

    # -- the daemon's own life ------------------------------------------------------------------------------

    def enter(self) -> None:
        """This thread is the loop's from now on."""
        self._thread = get_ident()

    def _beat(self) -> None:
        self.enter()
        self.counters.slot[figures.TURN_NS] = monotonic_ns()
        if self._pool is not None:
            self.counters.slot[figures.OLDEST_REQUEST_NS] = self._pool.oldest_ns
        self.gate.beat()
        staying.show(self.counters.slot, self.roster.all if self._state is not life.State.SERVING else ())
        self._look()  # for requests that a thread is at already
        if self.draining:
            self.check_empty()  # an orphan's lanes: what lay in one may have become another's
        self._heartbeat = self.loop.call_at(self.loop.now() + _HEARTBEAT_S, self._beat)

    def _step(self, event: life.Event) -> None:
        self._state, actions = life.step(self._state, event)
        self.draining = self._state in (life.State.DRAINING, life.State.DRAINED)
        self._look()
        for action in actions:
            self._perform(action)

    def _perform(self, action: life.Action) -> None:
        if action is life.Action.LISTEN:
            self._acceptor.start()
        elif action is life.Action.UNLISTEN:
            self._acceptor.pause()
        elif action is life.Action.ARM:
            self._drain_timer = self.loop.call_at(self.loop.now() + self._drain_s, self._drain_late)
        elif action is life.Action.DISARM:
            if self._drain_timer is not None:
                self._drain_timer.cancel()
        elif action is life.Action.END:
            self._end()
        elif action is life.Action.CUT:
            for connection in list(self.roster.all):
                connection.cut()
        elif action is life.Action.SAY_DRAINED:
            callback, self._on_drained = self._on_drained, None
            if callback is not None:
                callback()

    def _drain_late(self) -> None:
        self._step(life.Event.DEADLINE)

    def _end(self) -> None:
        """The drain's time is over; the second time, patience is too."""
        self._mover.stop()
        if not self._ended:
            self._lanes.read_all()  # what comes is ended with the others
        for connection in list(self.roster.all):
            if self._ended:
                connection.cut()
                continue
            self.cut += connection.busy and not connection.is_leaving
            connection.end()
        if not self._ended:
            self._ended = True
            self._drain_timer = self.loop.call_at(self.loop.now() + _LAST_WORDS_S, self._drain_late)
            self.check_empty()

    def check_empty(self) -> None:
        """Drained is: nobody is connected, and no application code works on (``close()`` of a WSGI iterable, an
        ASGI background task), and no connection can come by a lane, unless its time is up."""
        if self.draining and not self.counters.open and (self._ended or self._is_through()):
            self._step(life.Event.EMPTY)

    def _is_through(self) -> bool:
        lanes = self._lanes
        return not self._is_working() and (lanes.is_over or (self._is_orphan and lanes.is_empty))

    def _is_working(self) -> bool:
        if self._pool is not None:
            return self._pool.busy
        # A call in this very thread: its answer may have been the last connection's end.
        return self.in_call or self._app_running() > 0

    def _call_over(self) -> None:
        """In a thread of the pool, or in a task of the application: a call has ended.

        Looked at in a turn of its own: what follows a drain is not done within the application's call.
        """
        if self.draining:
            self.loop.call_soon_threadsafe(self.check_empty)
