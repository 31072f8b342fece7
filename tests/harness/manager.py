"""A stand-in for the service manager: a real notify socket that keeps descriptors, or does not."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import time
from collections.abc import Callable

from quiesce.supervisor.loop import Loop

LIMIT_S = 20.0  # only bounds a test that fails

_LARGEST = 253
_INT = array.array("i").itemsize


class Manager:
    """Reads only when it is told to, so that its queue can be full.

    Args:
        keeps: FileDescriptorStoreMax=.
        listens: NotifyAccess= lets us speak; else all is thrown away, but for barriers.
    """

    def __init__(self, address: str, keeps: int = 1000, listens: bool = True) -> None:
        self.address = address
        self.keeps = keeps
        self.listens = listens
        self.late = 0  # so many descriptors that it does not keep it closes when it comes to it
        self._lingering: list[int] = []
        self.heard: list[dict[str, str]] = []
        self.store: list[tuple[str, int]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.bind("\0" + address[1:] if address[0] == "@" else address)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def names(self) -> list[str]:
        return sorted(name for name, _ in self.store)

    def read(self, most: int = 1_000_000) -> list[dict[str, str]]:
        """Deal with all that waits, in order; returns it."""
        found = []
        while len(found) < most:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(_LARGEST * _INT))
            except BlockingIOError:
                break
            assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and data.endswith(b"\n")
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            found.append(dict(line.split("=", 1) for line in data.decode().splitlines()))
            self._take(found[-1], list(fds))
        self.heard += found
        return found

    def _take(self, said: dict[str, str], fds: list[int]) -> None:
        if "BARRIER" in said:
            assert len(fds) == 1 and said == {"BARRIER": "1"}
        elif self.listens and said.get("FDSTORE") == "1":
            while fds and len(self.store) < self.keeps:
                self._keep(said["FDNAME"], fds.pop(0))
        elif self.listens and said.get("FDSTOREREMOVE") == "1":
            for entry in [entry for entry in self.store if entry[0] == said["FDNAME"]]:
                self.store.remove(entry)
                os.close(entry[1])
        while "BARRIER" not in said and fds and self.late > len(self._lingering):
            self._lingering.append(fds.pop())
        for fd in fds:
            os.close(fd)

    def let_go(self) -> None:
        """Close what should have been closed long ago."""
        for fd in self._lingering:
            os.close(fd)
        self._lingering.clear()
        self.late = 0

    def _keep(self, name: str, fd: int) -> None:
        if _open_file(fd) in [_open_file(other) for _, other in self.store]:
            os.close(fd)
        else:
            self.store.append((name, fd))

    def empty(self) -> None:
        """Let go of all that is kept."""
        for _, fd in self.store:
            os.close(fd)
        self.store.clear()

    def close(self) -> None:
        """Die: the queue and the store are gone."""
        self._sock.close()
        self.empty()
        if self.address[0] == "/" and os.path.exists(self.address):
            os.unlink(self.address)


def _open_file(fd: int) -> tuple[int, int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def turn_until(loop: Loop, fact: Callable[[], object]) -> None:
    """Turn the loop until it is so."""
    limit = loop.call_at(loop.now() + LIMIT_S, lambda: None)
    end = time.monotonic() + LIMIT_S
    while not fact():
        assert time.monotonic() < end, "it never happened"
        loop.turn()
    limit.cancel()


def serve(loop: Loop, manager: Manager) -> None:
    """Have the manager read whenever there is something, in the same loop."""
    loop.watch(manager.fileno(), lambda _events: manager.read() and None)


def has_writer(fd: int) -> bool:
    """Is the other end of this pipe open?"""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)
