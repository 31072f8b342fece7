"""Send and receive descriptors over a Unix socket (unix(7) SCM_RIGHTS)."""

import array
import os
import socket
from collections.abc import Sequence

from quiesce.shared.errors import FdPassingError

MAX_FDS = 253  # SCM_MAX_FD; one more is EINVAL
WANTED_FILES = 65536  # RLIMIT_NOFILE that the supervisor asks for, up to the hard one; workers inherit it
_FD_BYTES = array.array("i").itemsize


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send one packet with descriptors, without blocking.

    Args:
        sock: Connected SOCK_SEQPACKET socket; its O_NONBLOCK does not matter.
        data: The payload; never empty (nobody could tell an empty packet from EOF).
        fds: At most 253 descriptors.  The caller keeps them, whatever happens: what
            travels is a duplicate.

    Raises:
        BlockingIOError: The peer's queue is full; nothing was sent.
        FdPassingError: More descriptors than one packet carries; nothing was sent.
        OSError: As sendmsg(2); nothing was sent.  EPIPE and ECONNRESET: the peer is gone.
            EBADF: one of ``fds`` is closed.  ETOOMANYREFS: as many descriptors as
            RLIMIT_NOFILE allows are in flight for this user (unix(7)).  EMSGSIZE: the
            packet is larger than SO_SNDBUF.
    """
    assert data, "an empty packet looks like EOF"
    if len(fds) > MAX_FDS:
        raise FdPassingError(f"cannot send {len(fds)} descriptors in one packet: Linux carries {MAX_FDS}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    # SEQPACKET: the whole packet or nothing.  MSG_DONTWAIT, because O_NONBLOCK lives on the
    # description, which a forked child shares and may have cleared.  MSG_NOSIGNAL, because POSIX
    # promises SIGPIPE otherwise (Linux sends none for SEQPACKET, and documents that nowhere).
    sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def recv_fds(sock: socket.socket, nbytes: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Receive one packet and the descriptors that travelled with it, without blocking.

    Args:
        sock: Connected SOCK_SEQPACKET socket; its O_NONBLOCK does not matter.
        nbytes: Largest payload to accept, in bytes.
        max_fds: Most descriptors to accept (Linux carries 253 at most); 0: none, and the
            kernel does not even install them.

    Returns:
        ``(payload, fds)``; ``(b"", [])`` means the peer closed.  The caller owns every
        descriptor, and each is close-on-exec.

    Raises:
        BlockingIOError: Nothing is there.
        FdPassingError: The packet or its descriptors did not fit.  What did arrive has
            been closed; the packet is lost, the next one can be read.
        OSError: As recvmsg(2).  ECONNRESET is reported once, and *before* packets that
            still wait to be read: read on until EOF.

    Source: unix(7) SCM_RIGHTS; recvmsg(2) MSG_CTRUNC, MSG_TRUNC, MSG_CMSG_CLOEXEC.
    """
    # Not socket.recv_fds(): it drops its flags argument (CPython gh-107898), and an
    # inheritable descriptor would leak into whatever the application starts.
    # CMSG_LEN, not CMSG_SPACE: the padding of SPACE for one descriptor holds a second one,
    # which would arrive without MSG_CTRUNC.
    room = socket.CMSG_LEN(max_fds * _FD_BYTES)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, ancillary, got, _ = sock.recvmsg(nbytes, room, flags)
    fds = _fds_in(ancillary)
    if got & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        close_all(fds)
        raise FdPassingError(_truncated(got, nbytes, max_fds, len(fds)))
    return data, fds


def _truncated(flags: int, nbytes: int, max_fds: int, arrived: int) -> str:
    if flags & socket.MSG_TRUNC:
        return f"a packet was larger than {nbytes} bytes and was cut; it has been dropped"
    if not max_fds:
        return "a packet brought descriptors, and this socket takes none; it has been dropped"
    return (
        f"descriptors were lost on the way ({arrived} arrived): more came than the {max_fds} expected, "
        "or this process is at its descriptor limit (RLIMIT_NOFILE); raise it, LimitNOFILE= in a unit"
    )


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            # Whole ones only: a truncated control message may end in the middle of a number.
            numbers.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
            fds.extend(numbers)
    return fds


def close_all(fds: Sequence[int]) -> None:
    """Close each descriptor, whatever close(2) says of it."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # it is gone either way (close(2): never retry)
