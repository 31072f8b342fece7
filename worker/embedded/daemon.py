"""The HTTP daemon for a process of your own: ``from quiesce import Daemon``."""

import socket
import threading
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.worker.apps.base import App
from quiesce.worker.complaints import Complain, Logger, to_logger, to_stderr
from quiesce.worker.core.discipline import discipline as disciplined
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.request import Address, Request
from quiesce.worker.core.termination import Termination
from quiesce.worker.core.values import unescape as plain_unescape
from quiesce.worker.embedded.admission import AcceptPolicy, Admission
from quiesce.worker.embedded.apps import HandlerApp, RequestApp
from quiesce.worker.embedded.connection import AccessHandler, Connection
from quiesce.worker.embedded.hand_over import HandOver
from quiesce.worker.embedded.kinds import DaemonInfo, Mode, NotListening, Poller
from quiesce.worker.embedded.modes.base import Mode as ModeShell
from quiesce.worker.embedded.modes.external import External
from quiesce.worker.embedded.modes.polling_threads import PollingThreads
from quiesce.worker.embedded.modes.thread_per_connection import ThreadPerConnection
from quiesce.worker.embedded.reception import OnConnection, Reception
from quiesce.worker.embedded.seat import Engine, Seat
from quiesce.worker.embedded.sockets import Listening, as_listener, open_listener
from quiesce.worker.embedded.turning import Turning
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.loops.own_loop import OwnLoop
from quiesce.worker.loops.poll_loop import PollLoop
from quiesce.worker.loops.select_loop import SelectLoop
from quiesce.worker.net.acceptor import Listener
from quiesce.worker.net.http_date import NoDate
from quiesce.worker.net.lane_reader import Arrival
from quiesce.worker.net.reserve import Reserve
from quiesce.worker.response import Response

OnCompleted = Callable[[Connection, Any, Termination], None]


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


class Daemon(Turning):
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
        alone: No other process accepts on this listener.  Then a client who comes when there are no descriptors left is
            told so (503); else it waits for a process that has some.
        mode, poller: Who waits, and how.
        threads: With ``Mode.POOL``, how many.
        limits: Sizes and times.
        timeout_s: In place of the times of ``limits``: the longest silence of a client, anywhere.
        policy: Called with each client's address; False turns it away.
        allow_suspend: ``Connection.suspend`` may be called.
        on_connection: Called with a connection, and True when it begins, False when it has ended.
        on_completed: Called once for each request that a handler saw: connection, ``connection.state``, how it ended.
        uri_log: Called with connection and request target as sent, when the request line is there and before
            anything behind it is looked at; what it returns is the request's first ``state``, and
            ``on_completed`` is called also if no handler ever sees the request.
        unescape: Decodes arguments, in place of percent-decoding.
        backlog: Of the listening socket.
        path: A unix socket to listen on, in place of host and port; who removes the file is you.
        address_reuse: None: an address whose last connections linger may be had; True: one that is in use by others
            who say so, too; False: neither.
        dual_stack: With an IPv6 host: IPv4 as well.
        fast_open: So many clients may have sent their first bytes along with their SYN (TCP Fast Open); 0: none.
        upload_memory: So much of a body may be left unread by an access handler.
        stack_size: Of each thread of the daemon's, in bytes; 0: the system's.
        discipline: How much of a client's carelessness is forgiven: 3 (none) to -3.  None: what could be read in two
            ways is refused, and nothing else.  Row by row in docs/libmicrohttpd.md.
        allow_request_smuggling_by_discipline: Levels below 1 forgive also what a proxy in front may have read in
            another way.  For a network where there is none, and nobody who would try.
        date: False: answers have no Date field, for a machine without a clock.
        logger: Called, from any thread, with each line of what the daemon complains about, in place of standard error.
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
        alone: bool = True,
        mode: Mode = Mode.THREAD,
        poller: Poller = Poller.AUTO,
        threads: int = 4,
        limits: Limits = Limits(),  # noqa: B008  (immutable)
        timeout_s: float = 0.0,
        policy: AcceptPolicy | None = None,
        allow_suspend: bool = False,
        on_connection: OnConnection | None = None,
        on_completed: OnCompleted | None = None,
        uri_log: Callable[[Connection, str], Any] | None = None,
        unescape: Callable[[str], str] = plain_unescape,
        backlog: int = socket.SOMAXCONN,
        path: str | bytes = "",
        address_reuse: bool | None = None,
        dual_stack: bool = False,
        fast_open: int = 0,
        upload_memory: int = 256 * 1024,
        stack_size: int = 0,
        discipline: int | None = None,
        allow_request_smuggling_by_discipline: bool = False,
        date: bool = True,
        logger: Logger | None = None,
    ) -> None:
        if (handler is None) is (access_handler is None):
            raise TypeError("give a handler, or an access_handler, and not both")
        self._app: App = HandlerApp(streams_body=handler is None)
        if handler is not None:
            whole = handler
            access_handler = lambda connection: whole(connection.request)  # noqa: E731
            if on_connection is None and on_completed is None and uri_log is None:
                self._app = RequestApp(handler)
        if mode is Mode.THREAD_PER_CONNECTION and poller is Poller.EPOLL:
            raise ValueError("a thread that serves one client waits by poll or select, not by epoll")
        if mode is Mode.POOL and threads < 1:
            raise ValueError("a pool has at least one thread")
        assert access_handler is not None
        self.access_handler: AccessHandler = access_handler
        self.mode = mode
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
        self.complain: Complain = to_stderr if logger is None else to_logger(logger)
        self._stack_size = _stack_size(stack_size)
        self._date = date
        self.discipline = disciplined(discipline, allow_request_smuggling_by_discipline)
        # Counted here, over all threads; the engines count nobody.
        self._limits = limits._replace(connections=0, connections_per_ip=0)
        self._admission = Admission(limits.connections, limits.connections_per_ip, policy)
        self._hand_over = HandOver()
        self.allows_suspend = allow_suspend
        self.on_completed = on_completed
        self.uri_log = uri_log
        self.reception = Reception(self, self._admission, self._hand_over, on_connection)
        self.unescape = unescape
        self.upload_memory = upload_memory
        self._where = Listening(host, port, path, backlog, address_reuse, dual_stack, fast_open)
        self._listens = listen
        self._reserve = Reserve() if alone else None
        self._given = listener
        self._listener: socket.socket | None = None
        self._listener_fd = -1
        self._address: Any = None
        self._state = _State.NEW
        self._draining = False
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
            if self._given is None and listener is not None:
                listener.close()
            elif isinstance(self._given, int) and listener is not None:
                listener.detach()  # it stays the caller's
            raise
        self.reception.shell = self._shell
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
            return as_listener(self._given)
        return open_listener(self._where) if self._listens else None

    def _take(self, listener: socket.socket) -> None:
        self._listener = listener
        self._listener_fd = listener.fileno()
        self._address = listener.getsockname()
        self._draining = False
        shell = self._running()
        for seat in shell.all_seats():
            if seat in shell.seats:
                seat.do(lambda seat=seat: seat.listen(listener))  # type: ignore[misc]
            else:
                seat.do(seat.stay)

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
        """Accept on this socket, which is the daemon's again: the way back from :meth:`quiesce`, and from a
        :meth:`drain` that was followed by it: whoever was not told to leave yet may stay.
        """
        if self._listener is not None:
            raise QuiesceError("the daemon listens; quiesce it first")
        self._running()
        self.hand_over(None)
        self._take(as_listener(listener))

    def stop(self, drain: float | None = None) -> None:
        """End.  At once: who is connected is cut, and told so by ``Termination.DAEMON_SHUTDOWN``.  Or, with a number of
        seconds, when all are served: see :meth:`drain`.  A second stop does nothing.
        """
        if self._state is not _State.RUNNING:
            return
        if any(seat.is_here for seat in self._running().all_seats()) and self.mode is not Mode.EXTERNAL:
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
        self._draining = True
        for seat in self._running().all_seats():
            seat.do(lambda seat=seat: seat.drain(timeout_s))  # type: ignore[misc]

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until nobody is connected; in ``Mode.EXTERNAL`` by turning the loop.  False: it took too long."""
        if self.mode is not Mode.EXTERNAL:
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
        self.reception.add(sock, peer)

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
            self.mode,
            self._poller,
            self._listener_fd,
            self._address,
            port,
            loop.fileno() if isinstance(loop, EpollLoop) and self._state is _State.RUNNING else -1,
            self._admission.count,
            sum(seat.engine.idle for seat in seats),
            sum(seat.engine.busy for seat in seats),
            self._listener is not None and self._state is _State.RUNNING and not self._draining,
        )

    # -- inside -------------------------------------------------------------------------------------

    def _make_shell(self) -> ModeShell:
        place = self.reception.place
        if self.mode is Mode.EXTERNAL:
            return External(self._make_seat(), place)
        if self.mode is Mode.THREAD_PER_CONNECTION:
            return ThreadPerConnection(
                self._make_seat(), place, self._make_seat, self._admission.leave, self.reception.refuse
            )
        count = self._threads if self.mode is Mode.POOL else 1
        return PollingThreads([self._make_seat() for _ in range(count)], place)

    def _make_seat(self) -> Seat:
        loop = _LOOPS[self._poller]()
        loop.complain = self.complain

        def accepted(sock: socket.socket, peer: Address, local: Address, listener: Listener) -> None:
            self.reception.accepted(seat, sock, peer, local, listener)

        def taken(arrivals: list[Arrival]) -> None:
            self.reception.taken(seat, arrivals)

        def turn_away(sock: socket.socket, peer: Address, local: Address, listener: Listener) -> None:
            self.reception.turn_away(seat, sock, peer, local)

        engine = Engine(
            self._app,
            loop,
            limits=self._limits,
            accepted=accepted,
            taken=taken,
            connect=self.reception.client,
            reserve=self._reserve,
            turn_away=turn_away,
            heartbeat=False,
        )
        if not self._date:
            engine.dates = NoDate()
        seat = Seat(self, loop, engine, self._stack_size)
        return seat

    def _running(self) -> ModeShell:
        if self._shell is None or self._state not in (_State.RUNNING, _State.STOPPING):
            raise QuiesceError("the daemon does not run")
        return self._shell

    @property
    def _is_over(self) -> bool:
        return self._state in (_State.STOPPING, _State.STOPPED)


def _stack_size(size: int) -> int:
    if size:
        before = threading.stack_size(size)  # or ValueError: the system has a least size
        threading.stack_size(before)
    return size


def _poller(mode: Mode, poller: Poller) -> Poller:
    if poller is not Poller.AUTO:
        return poller
    return Poller.POLL if mode is Mode.THREAD_PER_CONNECTION else Poller.EPOLL
