"""sd_notify(3): tell the service manager, or the keeper, how we are."""

import errno
import socket
import time
from collections import deque

#: What the manager waits for: kept and sent again if its queue is full.  The rest is news, and
#: there will be newer.
_KEPT = ("READY", "RELOADING", "STOPPING", "MAINPID")
_MAX_KEPT = 16
_LATER = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ECONNREFUSED, errno.ENOENT)


class Notifier:
    """Datagrams to $NOTIFY_SOCKET; does nothing without one.  Never blocks and never raises.

    Args:
        address: "/path", or "@name" in the abstract namespace; None: there is nobody to tell.  The
            caller has removed it from the environment, or children would speak in our name.
    """

    def __init__(self, address: str | None) -> None:
        self._address = ""
        self._sock: socket.socket | None = None
        self._kept: deque[bytes] = deque(maxlen=_MAX_KEPT)
        if address and address[0] in "/@":
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @property
    def pending(self) -> bool:
        """Is something to be said again?  Then call :meth:`flush` in a while."""
        return bool(self._kept)

    def send(self, **fields: str | int) -> None:
        """Send one datagram of NAME=value lines, in this order."""
        lines = [f"{name}={_one_line(str(value))}\n" for name, value in fields.items()]
        self._say("".join(lines).encode("utf-8", "replace"), keep=any(name in _KEPT for name in fields))

    def ready(self, status: str = "") -> None:
        """We serve; also the end of what :meth:`reloading` began."""
        self.send(READY=1, **_status(status))

    def status(self, text: str) -> None:
        """STATUS= of `systemctl status`."""
        self.send(STATUS=text)

    def reloading(self, status: str = "") -> None:
        """A change of release begins.  The time must travel in the same datagram, or the reload job never ends."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, **_status(status))

    def stopping(self, status: str = "") -> None:
        """We are really going: the manager's TimeoutStopSec= runs from here."""
        self.send(STOPPING=1, **_status(status))

    def extend_timeout(self, seconds: float) -> None:
        """Start, reload or stop takes this long from now, at least."""
        self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def main_pid(self, pid: int) -> None:
        """Another process is the service's main one from now on."""
        self.send(MAINPID=pid)

    def flush(self) -> None:
        """Try again to say what could not be said, in order."""
        while self._kept and self._sent(self._kept[0]):
            self._kept.popleft()

    def close(self) -> None:
        """Close the socket; what is still kept is lost."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._kept.clear()

    def _say(self, data: bytes, *, keep: bool) -> None:
        self.flush()
        # What is kept must not overtake what was kept before it: READY after RELOADING is the end
        # of a reload, before it it is nothing.
        waits = bool(keep and self._kept)
        if (waits or not self._sent(data)) and keep:
            self._kept.append(data)

    def _sent(self, data: bytes) -> bool:
        """False: not now, but perhaps later."""
        if self._sock is None:
            return True
        try:
            self._sock.sendto(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as exc:
            return exc.errno not in _LATER
        return True


def _status(text: str) -> dict[str, str]:
    return {"STATUS": text} if text else {}


def _one_line(text: str) -> str:
    """A line end in a value would begin another field."""
    return " ".join(text.split("\n")).replace("\r", " ").replace("\0", " ")
