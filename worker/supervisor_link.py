"""The worker's end of its channel: whatever the supervisor says, the worker goes on."""

import select
import sys

from quiesce.shared.channel import Channel, Incoming
from quiesce.shared.errors import FdPassingError, PeerClosed, ProtocolError, QuiesceError
from quiesce.shared.fdpass import close_all
from quiesce.shared.messages import Hello, Message, Unknown


class Link:
    """Messages in, messages out.  Owns the channel.

    A message that cannot be read, or that this version does not know, is a line on standard error and nothing else: a
    worker that serves must not die of a supervisor of another version.  What was lost is counted.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.is_open = True
        self.lost = ""  # why the last unreadable packet was lost; its descriptors are
        self._is_behind = False  # the supervisor is, and that was said

    def fileno(self) -> int:
        """The socket, or -1 once it is closed."""
        return self._channel.fileno() if self.is_open else -1

    @property
    def wants_write(self) -> bool:
        """Call :meth:`flush` when the socket becomes writable."""
        return self.is_open and self._channel.wants_write

    def receive(self) -> Incoming | None:
        """The next message that this version knows, or None if none is there now.

        The caller owns its descriptors.

        Raises:
            PeerClosed: Nothing more will come; close this link.
        """
        while self.is_open:
            try:
                incoming = self._channel.receive()
            except PeerClosed:
                raise
            except Exception as exc:
                # Also what is not of our tree: with a json.py in the release, the C decoder takes *that*
                # module's JSONDecodeError to complain with.
                self._skip(exc)
                continue
            if incoming is None or not isinstance(incoming.message, Unknown):
                return incoming
            close_all(incoming.fds)
            complain(
                f"message {incoming.message.type!r} is not known to this version of quiesce; it is skipped"
            )
        raise PeerClosed("this channel is closed")

    def _skip(self, exc: Exception) -> None:
        self.lost = str(exc)
        kind = "descriptors" if isinstance(exc, FdPassingError) else "a message"
        complain(f"{kind} of the supervisor lost: {exc}")

    def wait(self) -> Incoming:
        """Block until there is a message.  What is queued is sent meanwhile.

        Raises:
            PeerClosed: Nothing more will come.
            ProtocolError: A packet was lost, and whatever it held: before the start is over, that is the end of it.
        """
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while (incoming := self.receive()) is None:
            if self.lost:
                raise ProtocolError(self.lost)
            self.flush()
            poll.modify(self._channel.fileno(), select.POLLIN | (select.POLLOUT if self.wants_write else 0))
            poll.poll()
        return incoming

    def say(self, message: Message, *, re: int | None = None) -> None:
        """Send; a supervisor that is gone or hopelessly behind is noticed when reading, not here.

        While a supervisor is dead the channel does not end: a store holds the other end for the next one.  So
        nobody may read for long.  What has no room is dropped then; the next one asks with `identify`, and that
        answer finds its room: all that was said before it is stale.
        """
        if not self.is_open:
            return
        if self._channel.is_full:
            if not isinstance(message, Hello):
                self._drop(message)
                return
            self._channel.forget()
        try:
            self._channel.send(message, re=re)
        except PeerClosed:
            pass
        except QuiesceError as exc:
            complain(f"cannot tell the supervisor {type(message).__name__}: {exc}")

    def flush(self) -> None:
        """Send what waits in the queue."""
        if not self.is_open:
            return
        try:
            self._channel.flush()
        except QuiesceError:
            pass
        self._is_behind = self._is_behind and self.wants_write

    def _drop(self, message: Message) -> None:
        if not self._is_behind:
            self._is_behind = True
            complain(
                f"the supervisor has not read for long: {type(message).__name__!r} and what follows is dropped "
                "until it does"
            )

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        if self.is_open:
            self.is_open = False
            self._channel.close()


def complain(text: str, before: str = "") -> None:
    """One line on standard error, whatever the application made of ``sys.stderr``; ``before`` goes ahead as it is."""
    try:
        sys.stderr.write(f"{before}quiesce: {text}\n")
        sys.stderr.flush()
    except Exception:
        pass
