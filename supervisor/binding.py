"""Open one listening socket: bind it, or take one that somebody else has bound."""

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from quiesce.shared.addresses import FD, TCP6, UNIX, Address, parse_address
from quiesce.shared.errors import ListenError, QuiesceError
from quiesce.supervisor import fdnames
from quiesce.supervisor.config import Listen
from quiesce.supervisor.identity import group_id, user_id
from quiesce.supervisor.seal import drop_new_connections


class Listener(NamedTuple):
    """One listening socket.  ``sock`` is owned by the :class:`Listeners` that holds it."""

    name: str
    address: Address  # as bound: with the port that the kernel chose
    sock: socket.socket
    wanted: Listen  # the [[listen]] it came from
    key: str  # 16 hex digits: quiesce.l.KEY in the descriptor store
    inode: tuple[int, int] | None = None  # of a unix socket's file that we made

    @property
    def inherited(self) -> bool:
        """The service manager's, who passes it again at each start; else we bound it, and it is stored."""
        return self.wanted.parsed().kind == FD

    @property
    def store_name(self) -> str:
        return fdnames.listener(self.key)


Inherited = Sequence[tuple[str, int]]  # (name, descriptor)


def seal(listener: Listener) -> None:
    """Nobody new comes to a listener that is ours and about to go; who is in its queue stays there.

    A socket of the service manager's is left alone: its queue outlives us.
    """
    try:
        if listener.inode is not None:
            _unlink_if_ours(listener.address.path, listener.inode)
        elif listener.address.kind != UNIX and not listener.inherited:
            drop_new_connections(listener.sock)
    except OSError:
        pass  # then a client that comes between the last accept and the close is reset


def retire(listener: Listener) -> None:
    """Close our copy and remove the file of a unix socket, if it is still the one we made."""
    if listener.inode is not None:
        _unlink_if_ours(listener.address.path, listener.inode)
    listener.sock.close()


TWICE = (
    "two listeners would be called {0!r} (the second socket of a unit gets -2 behind its name); "
    "give one of them another name"
)


def open_all(wanted: Sequence[Listen], inherited: Inherited, leaving: Sequence[Listener]) -> list[Listener]:
    """All or none."""
    opened: list[Listener] = []
    try:
        for item in wanted:
            opened += _open(item, inherited, leaving)
            names = [listener.name for listener in opened]
            if len(set(names)) < len(names):
                raise ListenError(TWICE.format(names[-1]))
    except BaseException:
        for listener in opened:
            retire(listener)
        raise
    return opened


def _open(item: Listen, inherited: Inherited, leaving: Sequence[Listener]) -> list[Listener]:
    address = parse_address(item.address)
    if address.kind == FD:
        return _take_all(item, address, inherited)
    return [bind(item, address, leaving)]


def bind(item: Listen, address: Address, leaving: Sequence[Listener]) -> Listener:
    if address.kind == UNIX:
        return _bind_unix(item, address)
    try:
        sock = _bind_tcp(address, item.backlog)
    except OSError as exc:
        overlap = [x.sock for x in leaving if _overlaps(x.address, address)]
        if exc.errno != errno.EADDRINUSE or not overlap:
            raise ListenError(f"cannot bind {address}: {_why(exc, address)}") from exc
        sock = _bind_beside(address, item.backlog, overlap)
    return Listener(item.name, address.with_port(sock.getsockname()[1]), sock, item, _new_key())


def _new_key() -> str:
    return os.urandom(8).hex()


def _bind_tcp(address: Address, backlog: int, *, beside: bool = False) -> socket.socket:
    family = socket.AF_INET6 if address.kind == TCP6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # One address, one family: [::]:80 beside 0.0.0.0:80 must be possible.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address.sockaddr())
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _overlaps(one: Address, other: Address) -> bool:
    """Does one of them listen on all interfaces, the other one on one of these, on the same port?"""
    wild = {"0.0.0.0", "::"}
    return (
        one.kind == other.kind and one.port == other.port != 0 and (one.host in wild) != (other.host in wild)
    )


def _bind_beside(address: Address, backlog: int, leaving: Sequence[socket.socket]) -> socket.socket:
    """127.0.0.1:80 becomes 0.0.0.0:80, or the other way round: for a moment both must listen, which the
    kernel allows to sockets of one user that all say SO_REUSEPORT.  The narrower one is asked first, so
    they share nothing, and a client that comes in between finds one of them.
    """
    for sock in leaving:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock = _bind_tcp(address, backlog, beside=True)
    except OSError as exc:
        raise ListenError(f"cannot bind {address}: {_why(exc, address)}") from exc
    finally:
        for old in leaving:
            old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    return sock


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


def _take_all(item: Listen, address: Address, inherited: Inherited) -> list[Listener]:
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
            name = item.name if number == 1 else f"{item.name}-{number}"
            taken.append(take(item, name, address, os.dup(fd)))
    except BaseException:
        for listener in taken:
            listener.sock.close()
        raise
    return taken


def take(item: Listen, name: str, address: Address, fd: int) -> Listener:
    """``fd`` is the listener's afterwards, or closed."""
    sock = listening(fd, address)
    os.set_blocking(sock.fileno(), False)  # systemd hands it over blocking unless NonBlocking=yes
    return Listener(name, _bound_address(sock, address), sock, item, _new_key())


def spare_for(item: Listen, stored: Mapping[str, int]) -> tuple[str, Listener] | None:
    """The stored socket that listens at the address of ``item``, with its name in the store.

    The descriptor belongs to the listener's socket, which may still be detached from it.
    """
    address = parse_address(item.address)
    for name, fd in stored.items():
        key = name.rpartition(".")[2]
        if name != fdnames.listener(key) or address.kind == FD:
            continue
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue
        if _listens(sock) and _bound_address(sock, address) == address:
            os.set_blocking(fd, False)
            return name, Listener(item.name, address, sock, item, key, _inode_of(address))
        sock.detach()
    return None


def _inode_of(address: Address) -> tuple[int, int] | None:
    """Of the file of a unix socket of ours; nobody else can have bound that address since."""
    if address.kind != UNIX or address.abstract:
        return None
    try:
        info = os.stat(address.path, follow_symlinks=False)
    except OSError:
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISSOCK(info.st_mode) else None


def _listens(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def listening(fd: int, address: Address) -> socket.socket:
    """The socket, which owns ``fd``; on an error ``fd`` is closed."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        os.close(fd)
        raise ListenError(f"the descriptor for {address} is no socket; the unit needs ListenStream=") from exc
    os.set_inheritable(sock.fileno(), False)
    if not _listens(sock):
        sock.close()
        raise ListenError(
            f"the descriptor for {address} is not a listening stream socket; the unit needs ListenStream="
        )
    return sock


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
            return Listener(item.name, address, sock, item, _new_key())
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
        return Listener(item.name, address, sock, item, _new_key(), inode)
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
            os.chown(f"/proc/self/fd/{fd}", *file_owner(item))
        return info.st_dev, info.st_ino
    finally:
        os.close(fd)


def file_owner(item: Listen) -> tuple[int, int]:
    """Owner and group of a unix socket's file; -1: whoever binds it.  Raises ConfigError for unknown names."""
    return user_id(item.owner) if item.owner else -1, group_id(item.group) if item.group else -1


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


# -- changing what stays -----------------------------------------------------------------------


def renamed(item: Listener, new: Listen) -> str:
    """`http` and `http-2` become `web` and `web-2`."""
    return new.name + item.name.removeprefix(item.wanted.name)


def change_in_place(item: Listener, new: Listen) -> list[str]:
    """Give an open socket another backlog, its file another mode or owner.  Returns what went wrong."""
    old = item.wanted
    try:
        if new.backlog != old.backlog:
            item.sock.listen(new.backlog)  # listen(2) again changes the queue's length and nothing else
        if item.inode is not None and (new.mode, new.owner, new.group) != (old.mode, old.owner, old.group):
            _change_file(item.address.path, item.inode, new)
    except (OSError, QuiesceError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        return [f"cannot change {item.address} as it is configured now: {why}"]
    return []


def _change_file(path: str, inode: tuple[int, int], new: Listen) -> None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != inode:
            raise ListenError(f"{path} is not the socket that we made; restart the service to make it anew")
        uid, gid = file_owner(new)
        name = f"/proc/self/fd/{fd}"
        os.chown(name, os.geteuid() if uid == -1 else uid, os.getegid() if gid == -1 else gid)
        os.chmod(name, _mode(new))  # last: chown clears nothing of a mode below 01000, but needs no rights
    finally:
        os.close(fd)
