"""What the supervisor's messages bring along: descriptors, each with an owner from the moment it is here."""

import socket

from quiesce.shared import messages as msg
from quiesce.shared.channel import Incoming
from quiesce.shared.errors import ProtocolError
from quiesce.shared.fdpass import close_all
from quiesce.shared.scoreboard import Scoreboard
from quiesce.worker import output
from quiesce.worker.core.lane_record import version_for
from quiesce.worker.net.gate import Neighbours
from quiesce.worker.net.lane_writer import Target


class Inbox:
    """What may come at any time, before ``configure`` or after: things to hold.  Owns the descriptors."""

    def __init__(self) -> None:
        self.listeners: dict[str, socket.socket] = {}
        self.lanes: dict[str, socket.socket] = {}  # read once the application has started
        self.scoreboard: Scoreboard | None = None
        self.slot: memoryview | None = None
        self.neighbours: Neighbours | None = None

    def keep(self, incoming: Incoming) -> bool:
        """Take the message if it brings something to hold.  Its descriptors are then ours."""
        message, fds = incoming.message, incoming.fds
        if isinstance(message, msg.Listen):
            for name, sock in sockets_of(message, fds):
                self.forget(name)
                self.listeners[name] = sock
        elif isinstance(message, msg.UseLane):
            for name, sock in sockets_of(message, fds):
                if name in self.lanes:
                    self.lanes.pop(name).close()
                self.lanes[name] = sock
        elif isinstance(message, msg.Unlisten):
            for name in message.names:
                self.forget(name)
        elif isinstance(message, msg.UseScoreboard):
            self.attach(message, fds)
        elif isinstance(message, msg.UseLog):
            output.use(one(fds))
        else:
            return False
        return True

    def forget(self, name: str) -> None:
        """Close our copy of a listener; nothing happens to those of others."""
        if name in self.listeners:
            self.listeners.pop(name).close()

    def attach(self, message: msg.UseScoreboard, fds: list[int]) -> None:
        """Map the scoreboard; the old mapping goes when nobody writes to it any more."""
        board = Scoreboard.attach(one(fds))
        try:
            slot = board.slot(message.slot)
        except ProtocolError:
            board.close()  # what we have stays in force
            raise
        old, self.scoreboard, self.slot = self.scoreboard, board, slot
        self.neighbours = Neighbours(board, message.slot)
        if old is not None:
            old.close()  # its descriptor; the memory stays while a slot of it is held

    def is_unready(self) -> bool:
        """Does the supervisor want requests to go elsewhere?"""
        return self.scoreboard is not None and self.scoreboard.unready

    def descriptors(self) -> list[int]:
        """What a forked child must not keep."""
        board = [self.scoreboard.fd] if self.scoreboard is not None else []
        return board + [sock.fileno() for sock in (*self.listeners.values(), *self.lanes.values())]


def one(fds: list[int]) -> int:
    """The one descriptor that a message must bring."""
    if len(fds) != 1:
        close_all(fds)
        raise ProtocolError(f"this message brings {len(fds)} descriptors, not one")
    return fds[0]


def sockets_of(message: msg.Listen | msg.UseLane, fds: list[int]) -> list[tuple[str, socket.socket]]:
    """The sockets that came, by name.  On failure all are closed."""
    if len(fds) != len(message.names):
        close_all(fds)
        word = msg.WORD_OF[type(message)]
        raise ProtocolError(f"`{word}` names {len(message.names)} sockets and brings {len(fds)}")
    found: list[tuple[str, socket.socket]] = []
    try:
        for name, fd in zip(message.names, fds, strict=True):
            found.append((name, socket.socket(fileno=fd)))
    except OSError as exc:
        for _, sock in found:
            sock.close()
        close_all(fds[len(found) :])
        kind = "listener" if isinstance(message, msg.Listen) else "lane"
        raise ProtocolError(f"{kind} {name!r} is not a socket: {exc.strerror}") from exc
    return found


def target_of(message: msg.Quiesce | msg.Drain | msg.Shed, fds: list[int]) -> Target | None:
    """The lane that an order names, which owns the two descriptors then; None: it names none, or none that we can use.

    On failure both are closed.
    """
    version = version_for(message.lane_version)
    if not message.lane or not version:
        close_all(fds)
        return None
    if len(fds) != 2:
        close_all(fds)
        raise ProtocolError(f"lane {message.lane!r} brings {len(fds)} descriptors, not its two ends")
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError as exc:
        close_all(fds)
        raise ProtocolError(f"lane {message.lane!r} is not a socket: {exc.strerror}") from exc
    return Target(message.lane, sock, fds[1], version=version, readers=message.readers)
