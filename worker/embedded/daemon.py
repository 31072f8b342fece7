"""The HTTP daemon for a process of your own: ``from quiesce import Daemon``."""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Container
from enum import Enum
from time import monotonic
from typing import Any, NamedTuple

from quiesce.shared.errors import QuiesceError
from quiesce.worker.apps.base import App
from quiesce.worker.core.lane_record import Record
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Address, Request
from quiesce.worker.core.termination import Termination
from quiesce.worker.core.values import unescape as plain_unescape
from quiesce.worker.daemon import Daemon as Engine
from quiesce.worker.embedded.admission import AcceptPolicy, Admission, Verdict
from quiesce.worker.embedded.apps import AccessApp, RequestApp
from quiesce.worker.embedded.client import Client
from quiesce.worker.embedded.connection import AccessHandler, Connection
from quiesce.worker.embedded.guard import guarded
from quiesce.worker.embedded.hand_over import HandOver
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.embedded.modes.external import External
from quiesce.worker.embedded.modes.polling_threads import PollingThreads
from quiesce.worker.embedded.modes.thread_per_connection import ThreadPerConnection
from quiesce.worker.embedded.seat import Seat
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.loops.own_loop import OwnLoop
from quiesce.worker.loops.poll_loop import PollLoop
from quiesce.worker.loops.select_loop import FD_SETSIZE, SelectLoop
from quiesce.worker.net.acceptor import Listener
from quiesce.worker.net.lane_reader import Arrival
from quiesce.worker.response import Response


class Mode(Enum):
    """Who turns the daemon's loop."""

    EXTERNAL = "external"  # you: run, run_wait, run_from_select
    THREAD = "thread"  # one thread of the daemon's
    POOL = "pool"  # several, each with clients of its own
    THREAD_PER_CONNECTION = "thread per connection"


class Poller(Enum):
    """How it waits."""

    AUTO = "auto"  # epoll; poll with a thread for each connection
    SELECT = "select"
    POLL = "poll"
    EPOLL = "epoll"


class WrongMode(QuiesceError):
    """This call is for a daemon that was started in another way."""


class NotListening(QuiesceError):
    """There is no listening socket, or it is not the daemon's any more."""


class DaemonInfo(NamedTuple):
    """What is known of a daemon at this moment."""

    mode: Mode
    poller: Poller
    listener_fd: int  # -1: it never listened; the number stays after quiesce
    address: Any  # as getsockname() said, None: it never listened
    port: int  # 0: none
    epoll_fd: int  # -1: there is none, or there are several
    connections: int
    idle: int
    busy: int
    is_accepting: bool


class _State(Enum):
    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


_LOOPS: dict[Poller, Callable[[], OwnLoop]] = {
    Poller.SELECT: SelectLoop,
    Poller.POLL: PollLoop,
    Poller.EPOLL: EpollLoop,
}
_LAST_WORDS_S = 10.0  # beyond a drain's time: what the engine leaves for FIN and linger, twice


class Daemon:
    """Serves HTTP in this process.

    ``with Daemon(handler, port=8080) as daemon:`` serves inside of the block, ``start`` and ``stop`` say the same.

    Args:
        handler: Called with each whole request; returns its :class:`Response`.
        access_handler: In its place: called with the :class:`Connection` when a head is complete, for each part
            of the body, and at the end (``connection.stage``).  It answers by ``connection.queue`` or by returning
            a response, goes on by returning None or True, and has the client dropped without a word by returning False.
        host, port: Where to listen; port 0 takes a free one (see ``info``).
        listener: A listening socket, or its descriptor, in their place; it is the daemon's from then on (until
            :meth:`quiesce`), and is never shut down.
        listen: False: no listening socket at all; clients come by :meth:`add_connection` or :meth:`resume`.
        mode, poller: Who waits, and how.
        threads: With ``Mode.POOL``, how many.
        limits: Sizes and times.
        timeout_s: In place of the times of ``limits``: the longest silence of a client, anywhere.
        policy: Called with each client's address; False turns it away.
        allow_suspend: ``Connection.suspend`` may be called.
        on_connection: Called with a connection, and True when it begins, False when it has ended.
        on_completed: Called once for each request that a handler saw: connection, ``connection.state``, how it ended.
        uri_log: Called with connection and request target as sent; what it returns is the request's first ``state``.
        unescape: Decodes arguments, in place of percent-decoding.
        backlog: Of the listening socket.
        upload_memory: So much of a body may be left unread by an access handler.
    """

    def __init__(
        self,
        handler: Callable[[Request], Response] | None = None,
        *,
        access_handler: AccessHandler | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        listener: socket.socket | int | None = None,
        listen: bool = True,
        mode: Mode = Mode.THREAD,
        poller: Poller = Poller.AUTO,
        threads: int = 4,
        limits: Limits = Limits(),  # noqa: B008  (immutable)
        timeout_s: float = 0.0,
        policy: AcceptPolicy | None = None,
        allow_suspend: bool = False,
        on_connection: Callable[[Connection, bool], None] | None = None,
        on_completed: Callable[[Connection, Any, Termination], None] | None = None,
        uri_log: Callable[[Connection, str], Any] | None = None,
        unescape: Callable[[str], str] = plain_unescape,
        backlog: int = socket.SOMAXCONN,
        upload_memory: int = 256 * 1024,
    ) -> None:
        if (handler is None) is (access_handler is None):
            raise TypeError("give a handler, or an access_handler, and not both")
        if handler is not None:
            whole = handler
            access_handler = lambda connection: whole(connection.request)  # noqa: E731
        if mode is Mode.THREAD_PER_CONNECTION and poller is Poller.EPOLL:
            raise ValueError("a thread that serves one client waits by poll or select, not by epoll")
        if mode is Mode.POOL and threads < 1:
            raise ValueError("a pool has at least one thread")
        assert access_handler is not None
        self.access_handler: AccessHandler = access_handler
        self._app: App = AccessApp() if handler is None else RequestApp()
        self._mode = mode
        self._poller = _poller(mode, poller)
        self._threads = threads
        if timeout_s:
            limits = limits._replace(
                header_timeout=timeout_s,
                body_timeout=timeout_s,
                idle_timeout=timeout_s,
                send_timeout=timeout_s,
            )
        self.timeout_s = timeout_s
        # Counted here, over all threads; the engines count nobody.
        self._limits = limits._replace(connections=0, connections_per_ip=0)
        self._admission = Admission(limits.connections, limits.connections_per_ip, policy)
        self.allows_suspend = allow_suspend
        self._on_connection = on_connection
        self._on_completed = on_completed
        self.uri_log = uri_log
        self.unescape = unescape
        self.upload_memory = upload_memory
        self._backlog = backlog
        self._where = (host, port)
        self._listens = listen
        self._given = listener
        self._listener: socket.socket | None = None
        self._listener_fd = -1
        self._address: Any = None
        self._hand_over = HandOver()
        self._state = _State.NEW
        self._lock = threading.Lock()
        self._shell: ModeShell | None = None

    # -- lifecycle ------------------------------------------------------------------------------

    def start(self) -> "Daemon":
        """Listen, and serve from now on (in ``Mode.EXTERNAL``: whenever you turn it).

        Raises:
            OSError: The address cannot be had, or the listener is none.
        """
        if self._state is not _State.NEW:
            raise QuiesceError("a daemon is started once; make another one")
        listener = self._open_listener()
        try:
            self._shell = self._make_shell()
        except BaseException:
            if listener is not None:
                listener.close()
            raise
        self._state = _State.RUNNING
        self._shell.start()
        if listener is not None:
            self._take(listener)
        return self

    def __enter__(self) -> "Daemon":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _open_listener(self) -> socket.socket | None:
        if self._given is not None:
            return _as_listener(self._given)
        if not self._listens:
            return None
        family = socket.AF_INET6 if ":" in self._where[0] else socket.AF_INET
        return socket.create_server(self._where, family=family, backlog=self._backlog)

    def _take(self, listener: socket.socket) -> None:
        self._listener = listener
        self._listener_fd = listener.fileno()
        self._address = listener.getsockname()
        for seat in self._running().seats:
            seat.do(lambda seat=seat: seat.listen(listener))  # type: ignore[misc]

    def quiesce(self) -> socket.socket:
        """Stop accepting, serve on whom we have, and give the listening socket away: it is the caller's now.

        When this returns none of our threads will accept, and none uses the socket: it may be closed, resumed, or
        given to another process.

        Raises:
            NotListening: There is none, or this is the second time.
        """
        with self._lock:
            listener = self._listener
            if self._state is not _State.RUNNING or listener is None:
                raise NotListening("the daemon has no listening socket to give away")
            self._listener = None
        for seat in self._running().seats:
            seat.do(seat.quiesce)
        return listener

    def resume(self, listener: socket.socket | int) -> None:
        """Accept on this socket, which is the daemon's again: the way back from :meth:`quiesce`."""
        if self._listener is not None:
            raise QuiesceError("the daemon listens; quiesce it first")
        self._running()
        self.hand_over(None)
        self._take(_as_listener(listener))

    def stop(self, drain: float | None = None) -> None:
        """End.  At once: who is connected is cut, and told so by ``Termination.DAEMON_SHUTDOWN``.  Or, with a number of
        seconds, when all are served: see :meth:`drain`.  A second stop does nothing.
        """
        if self._state is not _State.RUNNING:
            return
        if any(seat.is_here for seat in self._running().all_seats()) and self._mode is not Mode.EXTERNAL:
            raise QuiesceError(
                "a handler cannot stop the daemon that calls it: its thread would wait for itself"
            )
        if drain is not None:
            self.drain(drain)
            self.wait_drained(drain + _LAST_WORDS_S)
        with self._lock:
            if self._state is not _State.RUNNING:
                return  # somebody else stops it
            self._state = _State.STOPPING
        self._running().stop()
        self._state = _State.STOPPED
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()  # and never shut down: other processes may accept on it
        self._hand_over.close()

    def drain(self, timeout_s: float) -> None:
        """Accept nobody, tell each client with its next answer that it is the last, and end after ``timeout_s`` what is
        left then.  Returns at once; the listening socket stays ours.
        """
        for seat in self._running().all_seats():
            seat.do(lambda seat=seat: seat.drain(timeout_s))  # type: ignore[misc]

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until nobody is connected; in ``Mode.EXTERNAL`` by turning the loop.  False: it took too long."""
        if self._mode is not Mode.EXTERNAL:
            return self._admission.wait_empty(timeout_s)
        until = monotonic() + timeout_s
        while self._admission.count and monotonic() < until:
            self._external().turn(max(0.0, until - monotonic()))
        return not self._admission.count

    # -- live connections, from one daemon to another -----------------------------------------------

    def hand_over(self, sock: socket.socket | None) -> int:
        """Give live connections to a daemon in another process, which calls :meth:`receive` with the other end.

        Each connection that is between two requests moves now, with what was read of the next one; each other one as
        it falls idle, until :meth:`stop`, :meth:`resume` or ``hand_over(None)``.  Their clients notice
        nothing: the sockets stay open.  Those whose answer is their last stay; so do all while nobody reads
        fast enough, and are served here until there is room.  Callbacks are told that a
        connection which moved has ended; what they keep of it stays here.

        :meth:`quiesce` first, or new clients go on coming.  See to it that somebody reads: what lies in the socket
        when its last reader ends is lost.

        Args:
            sock: A connected AF_UNIX socket of type SOCK_SEQPACKET.  It is the daemon's from then on, and closed when
                it hands over no more: then the other daemon's :meth:`receive` has come to its end.

        Returns:
            How many have moved to the socket that was given last.

        Raises:
            ValueError: The socket is another one; it stays the caller's.
        """
        return self._hand_over.to(self._running().all_seats(), sock)

    def receive(self, sock: socket.socket) -> None:
        """Serve the live connections that another daemon hands over on this socket, until its end.

        Policy and limits turn none of them away.  Their times go on where they were.  In a pool each thread takes some.

        Args:
            sock: A connected AF_UNIX socket of type SOCK_SEQPACKET.  It is the daemon's from then on, and closed at
                its end or by :meth:`stop`.

        Raises:
            ValueError: The socket is another one; it stays the caller's.
        """
        self._hand_over.receive(self._running().seats, sock)

    # -- an application that turns the loop ------------------------------------------------------

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
        if self._state in (_State.STOPPING, _State.STOPPED):
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
        if self._mode is Mode.THREAD_PER_CONNECTION:
            return None
        return self._running().seats[0].loop.timeout_s()

    def fileno(self) -> int:
        """With ``Poller.EPOLL`` in ``Mode.EXTERNAL``: one descriptor to watch, readable when a turn is needed."""
        loop = self._external()
        if not isinstance(loop, EpollLoop):
            raise WrongMode("only a daemon on epoll has one descriptor for all")
        return loop.fileno()

    # -- clients ----------------------------------------------------------------------------------

    def add_connection(self, sock: socket.socket | int, peer: Address = None) -> None:
        """Serve a connected stream socket as if we had accepted it: policy and limits hold.  Also after
        :meth:`quiesce`.  It is the daemon's, and closed, whatever happens.

        Args:
            sock: The socket, or its descriptor; a descriptor that is no socket is closed too.
            peer: What the application sees; default: what the socket says.

        Raises:
            OSError: EACCES by policy, ENFILE at a limit, EINVAL where it cannot be served, or what the socket said.
        """
        owned = _as_socket(sock)
        try:
            shell = self._running()
            owned.setblocking(False)
            peer = peer or _address(owned, owned.getpeername)
            local = _address(owned, owned.getsockname)
            verdict = self._admission.judge(peer)
        except BaseException:
            owned.close()
            raise
        if verdict is not Verdict.ADMITTED:
            owned.close()
            if verdict is Verdict.DENIED:
                raise PermissionError(errno.EACCES, "the accept policy turns this client away")
            self._admission.leave(peer)
            raise OSError(errno.ENFILE, "a limit on the number of connections is reached")
        try:
            shell.add(owned, peer, local)
        except ValueError as exc:
            raise OSError(errno.ENFILE, str(exc)) from exc

    def _accepted(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, listener: Listener
    ) -> None:
        try:
            verdict = self._admission.judge(peer)
        except BaseException:
            sock.close()
            raise
        if verdict is Verdict.DENIED:
            sock.close()
            return
        if verdict is Verdict.ADMITTED:
            self._running().accepted(seat, sock, peer, local)
        else:  # told so here, in every mode: this costs no thread
            self._place(seat, sock, peer, local).refuse(
                Rejected(503, "too many connections", retry_after_s=1)
            )

    def _taken(self, seat: Seat, arrivals: list[Arrival]) -> None:
        """By a lane: no policy and no limit turns them away, for they were let in."""
        for record, sock, peer in arrivals:
            self._admission.enter(peer)
            try:
                self._running().accepted(seat, sock, peer, record.local, record)
            except Exception as exc:  # the others are not to blame; the socket is closed
                print(f"quiesce: cannot serve a client: {exc}", file=sys.stderr, flush=True)

    def _place(
        self, seat: Seat, sock: socket.socket, peer: Address, local: Address, record: Record | None = None
    ) -> Client:
        """In the seat's thread.  Who was admitted leaves again, whatever happens."""
        handle = Connection(self, seat, peer, local)

        def connect(
            engine: Engine, sock: socket.socket, peer: Address, local: Address, scheme: str, probe: bool
        ) -> Client:
            handle.client = Client(engine, sock, peer, local, scheme, handle)
            return handle.client

        seat.engine.connect = connect
        try:
            if record is None:
                seat.engine.add_connection(sock, peer=peer, local=local)
            elif not seat.engine.adopt([Arrival(record, sock, peer)]):
                raise OSError(errno.EINVAL, "it came by a lane, and cannot be watched")
        except BaseException:
            self._admission.leave(peer)
            raise
        if self._on_connection is not None:
            guarded(self._on_connection, handle, True)
        if record is not None:
            handle.client.go_on()
        lane = self._hand_over.lane
        if lane is not None and seat not in self._running().seats:  # one that was made for this client
            seat.hand_over(lane)
        return handle.client

    def connection_closed(self, connection: Connection) -> None:
        """A connection's last word, in its thread."""
        if self._on_connection is not None:
            guarded(self._on_connection, connection, False)
        # After it: who waits until nobody is connected has been told of everybody.
        self._admission.leave(connection.peer)
        shell = self._shell
        if isinstance(shell, ThreadPerConnection):
            shell.left(connection.seat)

    def connection_moved(self, connection: Connection) -> None:
        """The same, but the client lives on elsewhere."""
        self._hand_over.count_one()
        self.connection_closed(connection)

    def request_ended(self, connection: Connection, state: Any, why: Termination) -> None:
        """A request's last word, in its connection's thread."""
        if self._on_completed is not None:
            guarded(self._on_completed, connection, state, why)

    # -- what is known -----------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        return self._state is not _State.RUNNING

    @property
    def connections(self) -> int:
        """Clients, over all threads."""
        return self._admission.count

    @property
    def info(self) -> DaemonInfo:
        seats = [] if self._shell is None else self._shell.all_seats()
        loop = seats[0].loop if len(seats) == 1 else None
        port = self._address[1] if isinstance(self._address, tuple) else 0
        return DaemonInfo(
            self._mode,
            self._poller,
            self._listener_fd,
            self._address,
            port,
            loop.fileno() if isinstance(loop, EpollLoop) and self._state is _State.RUNNING else -1,
            self._admission.count,
            sum(seat.engine.idle for seat in seats),
            sum(seat.engine.busy for seat in seats),
            self._listener is not None and self._state is _State.RUNNING,
        )

    # -- inside -------------------------------------------------------------------------------------

    def _make_shell(self) -> ModeShell:
        if self._mode is Mode.EXTERNAL:
            return External(self._make_seat(), self._place)
        if self._mode is Mode.THREAD_PER_CONNECTION:
            return ThreadPerConnection(self._make_seat(), self._place, self._make_seat, self._admission.leave)
        count = self._threads if self._mode is Mode.POOL else 1
        return PollingThreads([self._make_seat() for _ in range(count)], self._place)

    def _make_seat(self) -> Seat:
        loop = _LOOPS[self._poller]()

        def accepted(sock: socket.socket, peer: Address, local: Address, listener: Listener) -> None:
            self._accepted(seat, sock, peer, local, listener)

        def taken(arrivals: list[Arrival]) -> None:
            self._taken(seat, arrivals)

        engine = Engine(self._app, loop, limits=self._limits, accepted=accepted, taken=taken, heartbeat=False)
        seat = Seat(loop, engine)
        return seat

    def _running(self) -> ModeShell:
        if self._shell is None or self._state not in (_State.RUNNING, _State.STOPPING):
            raise QuiesceError("the daemon does not run")
        return self._shell

    def _external(self) -> OwnLoop:
        if self._mode is not Mode.EXTERNAL:
            raise WrongMode(
                "the daemon has threads of its own; only Mode.EXTERNAL is turned by its application"
            )
        seat = self._running().seats[0]
        seat.engine.enter()  # whoever turns it is its thread
        return seat.loop


def _poller(mode: Mode, poller: Poller) -> Poller:
    if poller is not Poller.AUTO:
        return poller
    return Poller.POLL if mode is Mode.THREAD_PER_CONNECTION else Poller.EPOLL


def _as_socket(sock: socket.socket | int) -> socket.socket:
    if isinstance(sock, socket.socket):
        return sock
    try:
        return socket.socket(fileno=sock)
    except OSError:
        if sock >= 0:
            try:
                os.close(sock)
            except OSError:
                pass  # it was none; what it is not is what the caller is told
        raise


def _as_listener(listener: socket.socket | int) -> socket.socket:
    sock = listener if isinstance(listener, socket.socket) else socket.socket(fileno=listener)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        if sock is not listener:
            sock.detach()  # it stays the caller's
        raise OSError(errno.EINVAL, "this socket does not listen")
    return sock


def _address(sock: socket.socket, ask: Callable[[], Any]) -> Address:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = ask()
    return (str(address[0]), int(address[1]))
