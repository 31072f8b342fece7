"""One end of a supervisor-worker socket: packets, their descriptors, a bounded send queue."""

import errno
import fcntl
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from quiesce.shared.encoding import MAX_FDS, MAX_PACKET_BYTES, Packet, decode, encode
from quiesce.shared.errors import FdPassingError, PeerClosed, ProtocolError
from quiesce.shared.fdpass import close_all, recv_fds, send_fds
from quiesce.shared.messages import WORD_OF, Message, descriptors

MAX_QUEUED = 256  # packets; a peer that is this far behind is not coming back

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_LATER = (errno.ENOBUFS, errno.ENOMEM)  # the kernel is short of memory: nothing was lost


class Incoming(NamedTuple):
    """A message that arrived.  The receiver owns ``fds`` and closes what it does not keep."""

    message: Message
    fds: list[int]
    seq: int
    re: int | None


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected SOCK_SEQPACKET sockets, close-on-exec: the kernel frames our messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


class Channel:
    """A connected SEQPACKET socket that speaks messages.  Owns the socket.

    Never blocks, in either direction, whatever O_NONBLOCK says.  For one thread.

    Args:
        sock: The socket; closed by :meth:`close`.
        max_fds: Most descriptors that a packet may bring.  0: the peer is not trusted with
            any, and the kernel does not even install them.
        first_seq: The number after which ours begin.  A supervisor that takes over a channel begins far
            above where the one before it can have come, or an answer to that one would look like an
            answer to itself.
    """

    def __init__(self, sock: socket.socket, *, max_fds: int = MAX_FDS, first_seq: int = 0) -> None:
        # A Python-level timeout (socket.setdefaulttimeout(), which is the application's to call)
        # would wait in poll() before every sendmsg, MSG_DONTWAIT or not.
        sock.setblocking(False)
        self._sock = sock
        self._max_fds = max_fds
        self._seq = first_seq
        self._queue: deque[tuple[bytes, list[int]]] = deque()  # duplicates, ours to close

    @property
    def seq(self) -> int:
        """The number of the last message that was sent or queued; ``first_seq`` before the first."""
        return self._seq

    def fileno(self) -> int:
        """The socket's descriptor, -1 after :meth:`close`."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Call :meth:`flush` when the socket becomes writable.  Ask again after each send."""
        return bool(self._queue)

    @property
    def is_full(self) -> bool:
        """The next :meth:`send` would be refused: the peer has not read for long."""
        return len(self._queue) >= MAX_QUEUED

    def send(self, message: Message, fds: Sequence[int] = (), *, re: int | None = None) -> int:
        """Send, or queue what the peer has no room for.

        Args:
            message: What to say.
            fds: Descriptors that go along; the caller keeps them and may close them at once
                (what waits in the queue is a duplicate of ours).
            re: The ``seq`` of the message that is answered.

        Returns:
            The ``seq`` of this message.

        Raises:
            PeerClosed: The peer is gone.  What it said before can still be received.
            ProtocolError: The message is too large, has another number of descriptors, or the
                queue is full.  Nothing was sent.
            FdPassingError: The kernel refuses these descriptors (EBADF, EMFILE, ETOOMANYREFS).
                Nothing was sent.
        """
        wanted = descriptors(message)
        if wanted is not None and len(fds) != wanted:
            word = WORD_OF[type(message)]
            raise ProtocolError(f"message {word!r} goes with {wanted} descriptors, and there are {len(fds)}")
        data = encode(Packet(message, self._seq + 1, re, len(fds)))
        if self.is_full:
            raise ProtocolError(f"the peer has left {MAX_QUEUED} messages unread: it hangs, end it")
        if self._queue or not self._try(data, fds):
            self._queue.append((data, _duplicates(fds)))
        self._seq += 1
        return self._seq

    def flush(self) -> None:
        """Send what is queued, in order, as far as the peer has room.

        Raises:
            PeerClosed: As :meth:`send`; the queue is empty then.
            FdPassingError: The kernel refuses the descriptors of the first message in the
                queue.  It stays there: call again later (not at once: the socket is writable
                all the time), or close the channel.
            ProtocolError: The first message is larger than the socket's send buffer.  It is dropped, or it
                would hold up the others for ever.
        """
        while self._queue:
            data, fds = self._queue[0]
            try:
                if not self._try(data, fds):
                    return
            except PeerClosed:  # a ProtocolError too, and the queue is gone
                raise
            except ProtocolError:
                self._queue.popleft()
                close_all(fds)
                raise
            self._queue.popleft()
            close_all(fds)

    def _try(self, data: bytes, fds: Sequence[int]) -> bool:
        """Send one packet; False: not now."""
        try:
            send_fds(self._sock, data, fds)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno in _LATER:
                return False
            # EBADF is about the descriptors that go along, unless we have closed our own.
            if exc.errno in _GONE or self._sock.fileno() < 0:
                self.forget()
                raise PeerClosed("the peer of this channel is gone") from exc
            if exc.errno == errno.EMSGSIZE:
                raise ProtocolError(
                    f"a packet of {len(data)} bytes is larger than the socket's send buffer; "
                    "raise net.core.wmem_default above 128 KiB"
                ) from exc
            why = os.strerror(exc.errno or 0)
            raise FdPassingError(f"cannot send a packet with {len(fds)} descriptors: {why}") from exc
        return True

    def receive(self) -> Incoming | None:
        """Return the next message, or None if nothing is there now.

        Descriptors beyond those that this version knows of for the message have been closed
        (a newer peer sends them); those of an unknown message come along and are the caller's.

        Raises:
            PeerClosed: EOF; nothing more will come.
            ProtocolError: What came is not a packet of ours, or announced another number
                of descriptors.  They have been closed; the next packet can be read.
            FdPassingError: The packet or its descriptors were truncated, likewise.
        """
        packet = self._next_packet()
        if packet is None:
            return None
        data, fds = packet
        try:
            return _incoming(decode(data), fds)
        except BaseException:
            close_all(fds)
            raise

    def _next_packet(self) -> tuple[bytes, list[int]] | None:
        # A peer that dies with something of ours unread leaves ECONNRESET, which the kernel
        # reports once and *before* what the peer said last: `failed`, for instance.
        for _ in range(2):
            try:
                data, fds = recv_fds(self._sock, MAX_PACKET_BYTES, self._max_fds)
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno == errno.ECONNRESET:
                    continue
                if exc.errno in _LATER:
                    return None
                self.forget()
                raise PeerClosed("the peer of this channel is gone") from exc
            if data:
                return data, fds
            close_all(fds)
            break
        self.forget()
        raise PeerClosed("the peer closed this channel")

    def forget(self) -> None:
        """Drop what is queued.  What the kernel has taken can still be received."""
        while self._queue:
            close_all(self._queue.popleft()[1])

    def close(self) -> None:
        """Close the socket and forget what is queued.  Closing twice is allowed."""
        self.forget()
        self._sock.close()


def _duplicates(fds: Sequence[int]) -> list[int]:
    """Copies that are ours; all or none.

    Raises:
        FdPassingError: No room for them, or one is closed.
    """
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    except OSError as exc:
        close_all(copies)  # or the first ones would leak
        raise FdPassingError(f"cannot keep descriptors for a busy peer: {exc.strerror}") from exc
    return copies


def _incoming(packet: Packet, fds: list[int]) -> Incoming:
    if packet.fds != len(fds):
        raise ProtocolError(f"a message announced {packet.fds} descriptors and brought {len(fds)}")
    known = descriptors(packet.message)
    if known is not None and known != len(fds):
        if known > len(fds):
            word = WORD_OF[type(packet.message)]
            raise ProtocolError(f"message {word!r} goes with {known} descriptors and brought {len(fds)}")
        close_all(fds[known:])
        del fds[known:]  # in place: whoever closes the rest must not close these again
    return Incoming(packet.message, fds, packet.seq, packet.re)
