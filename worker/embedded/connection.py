"""One client as an embedding application sees it: its request, its upload, the answer that is queued."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, Flag
from typing import TYPE_CHECKING, Any, NamedTuple

from quiesce.shared.errors import QuiesceError
from quiesce.worker.core.request import Address, Request
from quiesce.worker.core.response import Headers
from quiesce.worker.core.response import encode_text as latin1
from quiesce.worker.core.response_head import interim
from quiesce.worker.core.termination import Termination
from quiesce.worker.core.values import Value, arguments, cookies, text
from quiesce.worker.embedded.guard import guarded
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.sending import Pump, send
from quiesce.worker.response import ICY, Freed, Options, Response

if TYPE_CHECKING:
    from quiesce.worker.embedded.client import Client
    from quiesce.worker.embedded.daemon import Daemon
    from quiesce.worker.embedded.seat import Seat


class Stage(Enum):
    """Where the request is when the handler is called."""

    HEAD = "head"  # the header section is complete, nothing of the body is shown
    DATA = "data"  # a part of the body is there
    END = "end"  # body and trailers are complete


class Kind(Flag):
    """Where a value came from."""

    HEADER = 1
    COOKIE = 2
    POSTDATA = 4
    ARGUMENT = 8
    FOOTER = 16


class NotNow(QuiesceError):
    """The connection is in no state for what was asked of it."""


class ConnectionInfo(NamedTuple):
    """What is known of a connection at this moment."""

    peer: Address
    local: Address
    fd: int
    daemon: "Daemon"
    suspended: bool
    timeout_s: float  # 0 = the daemon's
    header_size: int | None  # None: there is no request
    status: int | None  # None: nothing is queued
    socket_context: Any


class Upload:
    """The part of a request's body that has arrived and was not read.

    What a handler leaves is shown to it again, with what has come behind it.
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    @property
    def data(self) -> bytes:
        """What is there."""
        return self._data

    def read(self, size: int = -1) -> bytes:
        """Take so many bytes, or all that is there."""
        if size < 0 or size >= len(self._data):
            taken, self._data = self._data, b""
        else:
            taken, self._data = self._data[:size], self._data[size:]
        return taken

    def add(self, data: bytes) -> None:
        """The connection's: more has come."""
        self._data = self._data + data if self._data else data

    def __len__(self) -> int:
        return len(self._data)


Answer = Response | bool | None
AccessHandler = Callable[["Connection"], Answer]
"""Called when the head is complete, for each part of the body, and at the end: see ``Connection.stage``."""


class Asked:
    """What there is of one request, from its line or head to the last byte of its answer.

    The loop's thread makes it and lets it go: between two requests a connection has nothing of it.
    """

    # Defaults on the class: most requests change few of them.
    exchange: Exchange | None = None
    request = Request("", b"/")
    stage = Stage.HEAD
    upload = Upload()  # of requests without a body; nobody adds to it
    state: Any = None
    trailers: Sequence[tuple[bytes, bytes]] = ()
    added: tuple[tuple[Kind, Value], ...] = ()
    queued: Response | None = None
    status = 0
    is_counted = False  # the answer has a reference for this request
    pump: Pump | None = None
    in_handler = False
    is_logged = False  # uri_log has heard of it
    is_parked = False  # the loop has seen that we are suspended
    is_complete = False  # all of the body was delivered
    is_answered = False  # the engine has the whole answer
    is_at_fault = False  # the application: whatever is said now, it is not what was asked for
    cause: Termination | None = None  # why it will have ended early

    @property
    def is_shown(self) -> bool:
        """The application has seen it, or its target."""
        return self.exchange is not None or self.is_logged


NOTHING = Asked()
"""Between two requests.  For everybody, so nobody changes it."""


class Connection:
    """A client, from its accept to its close.

    All but :meth:`resume`, :meth:`queue` on a suspended connection and the ``info`` are for the handler.

    Attributes:
        request: The request that is being answered.
        stage: Why the handler is called.
        upload: What there is of its body.
        state: Yours, for this request; None at its beginning, or what ``uri_log`` returned.
        socket_context: Yours, for this connection.
        trailers: (name, value) pairs that came behind the body, at ``Stage.END``.
    """

    __slots__ = ("_suspended", "asked", "client", "own_timeout_s", "socket_context")

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.socket_context: Any = None
        self.own_timeout_s: float | None = None  # the client's limit on silence, if it has one of its own
        self.asked = NOTHING
        self._suspended = False

    @property
    def seat(self) -> "Seat":
        """Whose thread serves it."""
        return self.client.daemon.seat

    @property
    def daemon(self) -> "Daemon":
        return self.client.daemon.seat.owner

    @property
    def peer(self) -> Address:
        return self.client.peer

    @property
    def local(self) -> Address:
        return self.client.local

    @property
    def request(self) -> Request:
        return self.asked.request

    @property
    def stage(self) -> Stage:
        return self.asked.stage

    @property
    def upload(self) -> Upload:
        return self.asked.upload

    @property
    def state(self) -> Any:
        return self.asked.state

    @state.setter
    def state(self, state: Any) -> None:
        if self.asked is not NOTHING:  # else the next request begins with None
            self.asked.state = state

    # -- for the handler ------------------------------------------------------------------------

    def queue(self, response: Response, status: int = 0) -> None:
        """Answer with this, under its own status or another one (``Response.ICY`` may be added): as soon as
        possible, but not before the handler has returned, nor before a suspended connection is resumed.  The
        response has one reference more until it is sent.

        Raises:
            NotNow: The request was answered already, or this is neither in the handler nor on a suspended
                connection, or the daemon is being stopped.
            BadResponse: The status is none of a final response, or the response is not for this request.
            Freed: The response has no reference left.
        """
        with self.client.lock:  # the loop may be ending the request at this moment
            self._queue(response, status)

    def _queue(self, response: Response, status: int) -> None:
        asked = self.asked
        if asked.exchange is None or not (asked.in_handler or self._suspended):
            raise NotNow("an answer is queued in the handler, or while the connection is suspended")
        if asked.queued is not None:
            raise NotNow("this request has its answer already")
        if self.daemon.is_stopping:
            raise NotNow("the daemon is being stopped")
        status = status or response.status
        if status != response.status:
            response.head_for(status)  # or BadResponse
        options = response.options if response.path is not None else Options.NONE
        if options & Options.HEAD_ONLY and asked.request.method != "HEAD" and status & ~ICY != 304:
            raise NotNow("a response for HEAD only cannot answer this request")
        response.retain()
        asked.queued = response
        asked.status = status
        asked.is_counted = True

    def send_interim(self, status: int, headers: Headers = ()) -> bool:
        """Say something before the answer, at once: 103 Early Hints with its links, 102 Processing.

        Returns:
            False if nothing was sent: the client's HTTP (1.0) knows no such thing, or it has gone.

        Raises:
            NotNow: The request was answered already, or this is neither in the handler nor on a suspended
                connection.
            BadResponse: It may not be said: 100 and 101, a field about framing or the connection, a line break.
        """
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        data = interim(status, [(latin1(name), latin1(value)) for name, value in pairs])
        with self.client.lock:
            asked = self.asked
            exchange = asked.exchange
            if exchange is None or not (asked.in_handler or self._suspended):
                raise NotNow("an interim answer is said in the handler, or while the connection is suspended")
            if asked.queued is not None:
                raise NotNow("this request has its answer already")
            if asked.request.version == "1.0" or exchange.disconnected:
                return False
        self.client.send(exchange, data)
        return True

    def suspend(self) -> None:
        """Leave this request alone until :meth:`resume`: the handler is not called, no reader is asked, and no
        time runs out.  The connection counts in all limits.

        Raises:
            NotNow: The daemon was not started with ``allow_suspend``.
        """
        if not self.daemon.allows_suspend:
            raise NotNow("start the daemon with allow_suspend=True to suspend connections")
        self._suspended = True

    def resume(self) -> None:
        """Go on: with the answer if one is queued, else by calling the handler again.  From any thread."""
        if not self.daemon.allows_suspend:
            raise NotNow("start the daemon with allow_suspend=True to suspend connections")
        self._suspended = False
        self.seat.post(self._go_on)

    def values(self, kinds: Kind) -> list[tuple[Kind, Value]]:
        """Arguments, headers in the order of the wire, cookies, then trailers, of these kinds."""
        request = self.request
        found: list[tuple[Kind, Value]] = []
        if Kind.ARGUMENT in kinds:
            pairs = arguments(request.query, self.daemon.unescape)
            found += [(Kind.ARGUMENT, pair) for pair in pairs]
        if Kind.HEADER in kinds:
            found += [(Kind.HEADER, (text(name), text(value))) for name, value in request.headers]
        if Kind.COOKIE in kinds:
            fields = [value for name, value in request.headers if name == b"cookie"]
            found += [
                (Kind.COOKIE, pair)
                for value in fields
                for pair in cookies(value, self.daemon.discipline.cookies)
            ]
        if Kind.FOOTER in kinds:
            found += [(Kind.FOOTER, (text(name), text(value))) for name, value in self.trailers]
        return found + [item for item in self.asked.added if item[0] in kinds]

    def lookup(self, kinds: Kind, name: str | None) -> str | None:
        """The first value of that name, case-insensitively; None also for a name without a value."""
        wanted = None if name is None else name.lower()
        for _, (key, value) in self.values(kinds):
            if key.lower() == wanted:
                return value
        return None

    def add_value(self, kind: Kind, name: str, value: str | None) -> None:
        """Let this request have a value more, for whoever asks later."""
        if self.asked is not NOTHING:
            self.asked.added += ((kind, (name, value)),)

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        return list(self.asked.trailers) if self.stage is Stage.END else []

    @property
    def timeout_s(self) -> float:
        """This connection's own limit on silence in seconds; 0 = none.  Setting it starts it afresh."""
        own = self.own_timeout_s
        return self.daemon.timeout_s if own is None else own

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self.own_timeout_s = seconds
        if not self._suspended and not self.asked.in_handler:
            self.seat.post(self._arm)

    def _arm(self) -> None:
        if not self.client.closed and not self._suspended:
            self.client.arm(self.own_timeout_s or 0.0)

    @property
    def is_suspended(self) -> bool:
        return self._suspended

    @property
    def info(self) -> ConnectionInfo:
        return ConnectionInfo(
            self.peer,
            self.local,
            -1 if self.client.closed else self.client.fd,
            self.daemon,
            self._suspended,
            self.timeout_s,
            self._header_size() if self.asked.exchange is not None else None,
            self.asked.status & ~ICY if self.asked.queued is not None else None,
            self.socket_context,
        )

    def _header_size(self) -> int:
        request = self.request
        line = len(request.method) + len(request.target) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + 4 for name, value in request.headers) + 2

    # -- the request's life, in the loop's thread -----------------------------------------------------

    def saw_target(self, target: bytes) -> None:
        """A request line is complete; of what follows nothing has been looked at."""
        log = self.daemon.uri_log
        if log is None or self.asked.is_logged:
            return
        asked = self.asked = Asked()
        asked.is_logged = True
        try:
            asked.state = log(self, text(target))
        except Exception as exc:
            self.daemon.complain(f"{log!r} failed", exc)

    def saw_trailers(self, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        """The body is complete; the application may not have been called."""
        if self.asked is NOTHING:
            self.asked = Asked()
        self.asked.trailers = trailers

    def begin(self, exchange: Exchange, stage: Stage) -> None:
        """The engine has a request: its head and maybe some of its body, or the whole of it."""
        self._take(exchange)
        self._call(stage)

    def answered(self, exchange: Exchange, answer: Answer) -> None:
        """The same, where the handler was called already, and has returned this."""
        asked = self._take(exchange)
        asked.stage = Stage.END
        self._return(asked, exchange, answer)

    def sends_on(self, exchange: Exchange, response: Response) -> None:
        """The same, where it was answered already, and some of the answer waits for the client to take it."""
        asked = self._take(exchange)
        asked.stage = Stage.END
        asked.queued = response
        asked.status = response.status
        asked.is_answered = True
        self._count(asked, response)

    def _take(self, exchange: Exchange) -> Asked:
        request = exchange.request
        if self.daemon.uri_log is not None:
            self.saw_target(request.target)
        asked = self.asked
        if asked is NOTHING:
            asked = self.asked = Asked()
        asked.exchange = exchange
        asked.request = request
        if request.length:
            asked.upload = Upload()
        return asked

    def _call(self, stage: Stage) -> None:
        """Call the handler, then do what it wants."""
        asked = self.asked
        asked.stage = stage
        exchange = asked.exchange
        if exchange is None:
            return
        asked.in_handler = True
        try:
            answer = self.daemon.access_handler(self)
        except Exception as exc:
            self._give_up(exc)
            return
        finally:
            asked.in_handler = False
        self._return(asked, exchange, answer)

    def _return(self, asked: Asked, exchange: Exchange, answer: Answer) -> None:
        """What the handler has returned."""
        if isinstance(answer, Response):
            if self._respond(asked, exchange, answer):
                return
            asked.in_handler = True  # in its place
            try:
                self.queue(answer)
            except Exception as exc:
                self._give_up(exc)
                return
            finally:
                asked.in_handler = False
        if answer is False:
            self.client.drop()
        elif self._suspended:
            asked.is_parked = True
            if not exchange.body_complete:
                exchange.pause_reading()
        else:
            self._after_call()

    def _respond(self, asked: Asked, exchange: Exchange, response: Response) -> bool:
        """The usual case of :meth:`queue` and what follows it: nothing but bytes, which are sent at once.

        Nobody can look at the response's references meanwhile, so there is one more only if something is left to send.
        """
        more = response._more
        if (
            type(response.body) is not bytes
            or response.path is not None
            or asked.queued is not None
            or asked.exchange is not exchange
            or self._suspended
            or (more is not None and more.references <= 0)
            or self.daemon.is_stopping
        ):
            return False
        asked.queued = response
        asked.status = response.status
        try:
            exchange.respond(response)
        except Exception as exc:
            self._give_up(exc)
        if asked.exchange is exchange:
            self._count(asked, response)
        return True

    @staticmethod
    def _count(asked: Asked, response: Response) -> None:
        """It is on its way, and has a reference for that."""
        try:
            response.retain()
            asked.is_counted = True
        except Freed:  # by another thread just now: its bytes are ours
            pass

    def _give_up(self, exc: BaseException) -> None:
        asked = self.asked
        if asked.exchange is not None:
            asked.is_at_fault = True
            asked.exchange.fail(exc)

    def _after_call(self) -> None:
        asked = self.asked
        exchange = asked.exchange
        if exchange is None or asked.pump is not None:
            return
        if asked.queued is not None:
            self._send(exchange, asked.queued)
        elif asked.stage is Stage.END:
            self._give_up(NotNow("the handler has the whole request, and neither answered nor suspended"))
        elif asked.stage is Stage.HEAD:
            if asked.request.length:
                exchange.read_body(self._on_body)
            else:  # what that comes to where there is no body
                asked.is_complete = True
                self._call(Stage.END)

    def _send(self, exchange: Exchange, response: Response) -> None:
        asked = self.asked
        try:
            pump = send(exchange, response, asked.status, lambda: self._suspended)
        except Exception as exc:
            self._give_up(exc)
            return
        if asked.exchange is exchange:
            asked.pump = pump

    def _on_body(self, data: bytes, more: bool) -> None:
        """The engine: a part of the body, or its end."""
        if self.asked.queued is not None:
            return  # answered; what comes is read away
        self.upload.add(data)
        self.asked.is_complete = not more
        self._show(more)

    def _show(self, more: bool) -> None:
        """Have the handler read what is there, as long as it reads any of it."""
        upload = self.upload
        while len(upload):
            before = len(upload)
            self._call(Stage.DATA)
            if self.asked.exchange is None or self._suspended or self.asked.queued is not None:
                return
            if len(upload) == before:
                break
        if not len(upload):
            if not more:
                self._call(Stage.END)
        elif not more or len(upload) > self.daemon.upload_memory:
            # Nothing that could come would help: libmicrohttpd calls for ever, or says 500 as we do.
            self._give_up(NotNow("the handler leaves its upload unread"))

    def _go_on(self) -> None:
        """After a resume."""
        asked = self.asked
        exchange = asked.exchange
        if self._suspended or exchange is None:
            return
        if asked.pump is not None:
            asked.pump.run()
        if not asked.is_parked:
            return  # resumed before the handler had returned: nothing was held up
        asked.is_parked = False
        if asked.queued is not None:
            self._send(exchange, asked.queued)
        elif asked.stage is Stage.DATA:
            self._show(not asked.is_complete)
        else:
            self._call(asked.stage)
        if asked.exchange is exchange and not self._suspended and not exchange.body_complete:
            exchange.resume_reading()

    def ended(self, why: Termination) -> None:
        """The request's answer is all sent, or never will be."""
        asked = self.asked
        with self.client.lock:
            asked.exchange, exchange = None, asked.exchange
            response = asked.queued if asked.is_counted else None
        if exchange is None and not asked.is_logged:
            return
        asked.is_logged = self._suspended = False
        daemon = self.daemon
        if response is not None:
            guarded(daemon.complain, response.release)
        told = daemon.on_completed
        if told is not None:
            try:
                told(self, asked.state, why)
            except Exception as exc:
                daemon.complain(f"{told!r} failed", exc)
        if self.asked is asked:
            self.asked = NOTHING
