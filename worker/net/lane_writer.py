"""The write end of a lane: how much may go into it now, and into it."""

import errno
import os
import socket
import termios
from collections.abc import Sequence
from fcntl import ioctl

from quiesce.shared.fdpass import send_fds
from quiesce.shared.messages import LANE_VERSION
from quiesce.worker.net.room import most_of_packet, soft_limit

_SNDBUF = 1024 * 1024
_SCM_FDS = b"scm_fds:"  # of /proc/PID/fdinfo/N: descriptors that lie in a unix socket's queue
# Nobody is to read what is sent any more.  We hold a read end too, so it is the supervisor who says so, by shutdown.
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED))


class Target:
    """A lane to hand over to.  Owns its descriptors.

    Args:
        name: The lane's.
        sock: Its write end, a connected SOCK_SEQPACKET socket.
        read_end: A descriptor of its read end, of which we only ask how much lies in it; -1: we have none.
        version: Of the records that its readers know.
        readers: How many there are.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        read_end: int = -1,
        *,
        version: int = LANE_VERSION,
        readers: int = 1,
    ) -> None:
        self.name = name
        self.version = version
        self.readers = max(readers, 1)
        self._sock = sock
        self._read_end = read_end
        self._info = -1
        self._sent = 0
        try:
            sock.setblocking(False)  # see shared/channel.py: for Python's own timeouts
            # The kernel gives as much of it as it allows: what has no room waits for a timer.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)
            if read_end >= 0:
                self._info = _open_info(read_end)
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        """So many descriptors may be sent now, in one packet.

        What is in flight counts for all processes of a user against RLIMIT_NOFILE (unix(7)), and ETOOMANYREFS would hit
        the supervisor's messages as well: so at most a quarter of it lies in a lane.
        """
        lying = self._lying()
        if lying < 0:  # this kernel does not say, or it is not our lane: what we have sent since it was empty
            if not self._unread():
                self._sent = 0
            lying = self._sent
        soft = soft_limit()
        return min(max(soft // 4 - lying, 0 if lying else 1), most_of_packet(soft))

    def _lying(self) -> int:
        """Descriptors in the lane; -1: nobody says."""
        if self._info < 0:
            return -1
        try:
            found = os.pread(self._info, 4096, 0).partition(_SCM_FDS)[2].split(None, 1)
            return int(found[0]) if found else -1
        except (OSError, ValueError):
            return -1

    def _unread(self) -> int:
        """Bytes that we sent and nobody has read (unix(7) SIOCOUTQ)."""
        return int.from_bytes(ioctl(self._sock, termios.TIOCOUTQ, bytes(4)), "little")

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        """Put one packet into the lane, or raise OSError (:func:`~quiesce.shared.fdpass.send_fds`)."""
        send_fds(self._sock, data, fds)
        self._sent += len(fds)

    def descriptors(self) -> list[int]:
        return [fd for fd in (self._sock.fileno(), self._read_end, self._info) if fd >= 0]

    def close(self) -> None:
        """Let go of both ends; harmless when it is done."""
        self._sock.close()
        info, self._info = self._info, -1
        read_end, self._read_end = self._read_end, -1
        for fd in (info, read_end):
            if fd >= 0:
                os.close(fd)


def is_gone(exc: OSError) -> bool:
    """Does this error of :meth:`Target.send` mean that the lane has ended?"""
    return exc.errno in _GONE


def _open_info(fd: int) -> int:
    # Held open: where descriptors run out is where connections are to go, and there it could not be opened.
    try:
        return os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
