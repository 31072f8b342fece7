"""The supervisor's listening sockets, by name.

The supervisor holds each of them for as long as it lives, so the kernel's queue outlives every
worker.  Nobody ever shuts one down, and nobody makes one blocking: both live on the
description that all holders share.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from quiesce.shared.addresses import FD, TCP6, UNIX, Address, parse_address
from quiesce.shared.errors import ListenError
from quiesce.supervisor.config import Listen
from quiesce.supervisor.identity import group_id, user_id


class Listener(NamedTuple):
    """One listening socket.  ``sock`` is owned by the :class:`Listeners` that holds it."""

    name: str
    address: Address  # as bound: with the port that the kernel chose
    sock: socket.socket
    inode: tuple[int, int] | None = None  # of a unix socket's file that we made


Inherited = Sequence[tuple[str, int]]  # (name, descriptor)


class Listeners:
    """All listeners of an instance."""

    def __init__(self) -> None:
        self._all: dict[str, Listener] = {}

    def open(self, wanted: Sequence[Listen], inherited: Inherited) -> None:
        """Bind or take every listener; all or none.

        Args:
            wanted: ``[[listen]]`` of the configuration.
            inherited: Names and descriptors, from systemd.  ``fd://NAME`` takes all of that name (the
                sockets of one unit share it); the caller keeps its descriptors.

        Raises:
            ListenError: One cannot be had; those opened before it are closed again.
        """
        try:
            for item in wanted:
                for listener in _open(item, inherited):
                    self._all[listener.name] = listener
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all.values())

    def names(self) -> list[str]:
        return list(self._all)

    def fds(self) -> list[int]:
        """In the order of :meth:`names`; they stay ours."""
        return [listener.sock.fileno() for listener in self._all.values()]

    def urls(self) -> list[str]:
        return [listener.address.url() for listener in self._all.values()]

    def close(self) -> None:
        """Close them and remove the files of those unix sockets that are still the ones we made."""
        for listener in self._all.values():
            if listener.inode is not None:
                _unlink_if_ours(listener.address.path, listener.inode)
            listener.sock.close()
        self._all.clear()


def _open(item: Listen, inherited: Inherited) -> list[Listener]:
    address = parse_address(item.address)
    if address.kind == FD:
        return _take_all(item.name, address, inherited)
    if address.kind == UNIX:
        return [_bind_unix(item, address)]
    family = socket.AF_INET6 if address.kind == TCP6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # One address, one family: [::]:80 beside 0.0.0.0:80 must be possible.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address.sockaddr())
        sock.listen(item.backlog)
    except OSError as exc:
        sock.close()
        raise ListenError(f"cannot bind {address}: {_why(exc, address)}") from exc
    return [Listener(item.name, address.with_port(sock.getsockname()[1]), sock)]


def _why(exc: OSError, address: Address) -> str:
    if exc.errno == errno.EADDRINUSE:
        where = f"`ss -ltnp sport = :{address.port}`" if address.port else "`ss -lxp`"
        return f"another process listens there; see {where}, or choose another address with --bind"
    if exc.errno == errno.EACCES and 0 < address.port < 1024:
        return (
            "permission denied; give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE, use a socket unit, "
            "or choose a port above 1023"
        )
    if exc.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address; see `ip address`"
    return (exc.strerror or str(exc)).lower()


def _take_all(name: str, address: Address, inherited: Inherited) -> list[Listener]:
    matching = [fd for other, fd in inherited if other == address.name]
    if not matching:
        have = ", ".join(sorted({other for other, _ in inherited})) or "none"
        raise ListenError(
            f"no socket named {address.name!r} was passed for {address} (passed: {have}); give the .socket unit "
            f"FileDescriptorName={address.name} and start it before the service"
        )
    taken: list[Listener] = []
    try:
        for number, fd in enumerate(matching, 1):
            taken.append(_take(name if number == 1 else f"{name}-{number}", address, fd))
    except BaseException:
        for listener in taken:
            listener.sock.close()
        raise
    return taken


def _take(name: str, address: Address, fd: int) -> Listener:
    sock = socket.socket(fileno=os.dup(fd))
    os.set_inheritable(sock.fileno(), False)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ListenError(
            f"the descriptor for {address} is not a listening stream socket; the unit needs ListenStream="
        )
    os.set_blocking(sock.fileno(), False)  # systemd hands it over blocking unless NonBlocking=yes
    return Listener(name, _bound_address(sock, address), sock)


def _bound_address(sock: socket.socket, address: Address) -> Address:
    """The address that a passed socket is really bound to."""
    bound = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(bound) if isinstance(bound, bytes) else bound
        return parse_address("unix:" + path.replace("\0", "@", 1)) if path else address
    host = f"[{bound[0]}]" if sock.family == socket.AF_INET6 else bound[0]
    return parse_address(f"{host}:{bound[1]}")


def _bind_unix(item: Listen, address: Address) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.abstract:
            sock.bind(address.sockaddr())
            sock.listen(item.backlog)
            return Listener(item.name, address, sock)
        _remove_stale(address)
        # The file takes the mode of the socket's inode, and nobody can connect before listen().
        os.fchmod(sock.fileno(), _mode(item))
        old = os.umask(0)
        try:
            sock.bind(address.sockaddr())
        finally:
            os.umask(old)
        inode = _give_to_owner(item, address.path)
        sock.listen(item.backlog)
        return Listener(item.name, address, sock, inode)
    except OSError as exc:
        sock.close()
        raise ListenError(f"cannot bind {address}: {_why(exc, address)}") from exc
    except BaseException:
        sock.close()
        raise


def _give_to_owner(item: Listen, path: str) -> tuple[int, int]:
    """Change the owner of the socket's file, of exactly that: whoever may write to the folder could put a
    link in its place meanwhile, and we may be root.  Returns its device and inode."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
            raise ListenError(f"cannot bind unix:{path}: somebody changes that folder under us")
        if item.owner or item.group:
            uid = user_id(item.owner) if item.owner else -1
            gid = group_id(item.group) if item.group else -1
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
        return info.st_dev, info.st_ino
    finally:
        os.close(fd)


def _mode(item: Listen) -> int:
    return int(item.mode, 8) if item.mode else 0o666 & ~_current_umask()


def _current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove_stale(address: Address) -> None:
    """Make way for a bind: remove a socket that nobody listens on; refuse anything else."""
    path = address.path
    try:
        info = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        if not Path(path).parent.is_dir():
            raise ListenError(f"cannot bind {address}: the folder {Path(path).parent} is not there") from None
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise ListenError(f"cannot bind {address}: {path} is there and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        try:
            client.connect(address.sockaddr())
        except ConnectionRefusedError:
            _unlink_if_ours(path, (info.st_dev, info.st_ino))  # stale: its process is gone
            return
        except BlockingIOError:
            pass  # its queue is full: very much alive
        except OSError as exc:
            raise ListenError(f"cannot bind {address}: {exc.strerror}") from exc
    raise ListenError(f"cannot bind {address}: another process listens there; see `ss -lxp src {path}`")


def _unlink_if_ours(path: str, inode: tuple[int, int]) -> None:
    try:
        info = os.stat(path, follow_symlinks=False)
        if (info.st_dev, info.st_ino) == inode:
            os.unlink(path)
    except OSError:
        pass  # gone, or not ours to remove
