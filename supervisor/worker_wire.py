"""One worker's channel: what it says goes to who asked for it, and its end is told once."""

from collections.abc import Callable, Sequence
from typing import Protocol

from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel, Incoming
from quiesce.shared.errors import FdPassingError, PeerClosed, ProtocolError
from quiesce.shared.fdpass import close_all
from quiesce.shared.logs import Log
from quiesce.supervisor.core.lifecycle import Event
from quiesce.supervisor.loop import READ, WRITE, Loop

#: What a word of its means for its life.
SAID: dict[type, Event] = {
    msg.Hello: Event.SAID_HELLO,
    msg.Ready: Event.SAID_READY,
    msg.Accepting: Event.SAID_ACCEPTING,
    msg.Quiesced: Event.SAID_QUIESCED,
    msg.Resumed: Event.SAID_RESUMED,
    msg.Drained: Event.SAID_DRAINED,
    msg.Failed: Event.SAID_FAILED,
}


class Listener(Protocol):
    """Who is told what the worker says."""

    id: str
    pid: int

    def on_message(self, message: msg.Message, re: int | None) -> None:
        """``re``: the number of what it answers."""

    def on_identity(self, hello: msg.Hello) -> None:
        """The answer to :meth:`Wire.identify`."""

    def on_stale(self, message: msg.Message) -> None:
        """Said to the supervisor before us."""

    def on_wire_lost(self) -> None:
        """It has ended, or nonsense came; close the wire."""


class Wire:
    """The supervisor's end.  Owns the channel; None: the worker has hung up already."""

    def __init__(self, loop: Loop, log: Log, channel: Channel | None, listener: Listener) -> None:
        self._loop = loop
        self._log = log
        self._channel = channel
        self._listener = listener
        self._identify: int | None = None  # the `identify` that is not answered yet
        self._asked: dict[int, Callable[[], None]] = {}  # others, by number, and who waits for the answer
        if channel is not None:
            loop.watch(channel.fileno(), self._on_ready)

    @property
    def is_open(self) -> bool:
        return self._channel is not None

    def fileno(self) -> int:
        """The socket; -1 when it is closed."""
        return self._channel.fileno() if self._channel is not None else -1

    # -- saying -----------------------------------------------------------------------------

    def tell(self, message: msg.Message, fds: Sequence[int] = ()) -> int | None:
        """Say it, and return its number; None: it will never be heard.  The caller keeps ``fds``."""
        if self._channel is None:
            return None
        try:
            seq = self._channel.send(message, fds)
            self._watch()
        except PeerClosed:
            return None  # its last words are read first; receive() says when nothing more comes
        except (ProtocolError, FdPassingError) as exc:
            self._log.error("cannot talk to worker", worker=self._listener.id, error=str(exc))
            # Not from inside the step that sends: one event at a time.
            self._loop.call_soon(self._lost)
            return None
        return seq

    def identify(self) -> None:
        """Ask a worker of another supervisor who it is; until it answers, what it says is stale."""
        self._identify = self.tell(msg.Identify())

    def when_heard(self, then: Callable[[], None]) -> None:
        """Call ``then`` when it has obeyed everything that was said to it so far, or never will."""
        seq = self.tell(msg.Identify())
        if seq is None:
            self._loop.call_soon(then)
        else:
            self._asked[seq] = then

    # -- hearing ----------------------------------------------------------------------------

    def read(self) -> None:
        """Hear everything that is there."""
        try:
            while self._channel is not None and (incoming := self._channel.receive()) is not None:
                close_all(incoming.fds)  # a worker has no descriptor to give us
                self._on_incoming(incoming)
        except PeerClosed:
            self._lost()
        except (ProtocolError, FdPassingError) as exc:
            who = self._listener
            self._log.error("worker talks nonsense", worker=who.id, pid=who.pid, error=str(exc))
            self._lost()

    def _on_incoming(self, incoming: Incoming) -> None:
        message = incoming.message
        is_hello = isinstance(message, msg.Hello)
        if is_hello and incoming.re in self._asked:
            self._asked.pop(incoming.re)()
        elif self._identify is None:
            self._listener.on_message(message, incoming.re)
        elif isinstance(message, msg.Hello) and incoming.re == self._identify:
            self._identify = None
            self._listener.on_identity(message)
        else:
            self._listener.on_stale(message)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        self.read()

    def _flush(self) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
            self._watch()
        except PeerClosed:
            pass  # as in tell()
        except FdPassingError as exc:
            self._log.error("cannot talk to worker", worker=self._listener.id, error=str(exc))
            self._lost()

    def _watch(self) -> None:
        if self._channel is not None:
            events = READ | WRITE if self._channel.wants_write else READ
            self._loop.rewatch(self._channel.fileno(), events)

    def _lost(self) -> None:
        if self._channel is not None:
            self._listener.on_wire_lost()

    def close(self) -> None:
        """Hang up.  Closing twice is allowed."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._loop.unwatch(channel.fileno())
        channel.close()
        asked, self._asked = self._asked, {}
        for then in asked.values():
            then()
