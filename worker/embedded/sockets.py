"""The sockets that a daemon is given or opens: listeners, clients, their addresses."""

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from quiesce.worker.core.request import Address


class Listening(NamedTuple):
    """Where a daemon listens, and how."""

    host: str
    port: int
    path: str | bytes  # of a unix socket, in their place; empty: none
    backlog: int
    address_reuse: bool | None  # None: an address in TIME_WAIT; True: one in use, too; False: neither
    dual_stack: bool
    fast_open: int  # so many connections that have sent before they were established; 0: none


def open_listener(where: Listening) -> socket.socket:
    """A listening socket, the caller's.

    Raises:
        OSError: The address cannot be had.
    """
    if where.path:
        family, address = socket.AF_UNIX, where.path
    else:
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        address = (where.host, where.port)  # type: ignore[assignment]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not where.path:
            _set_up(sock, family, where)
        sock.bind(address)
        sock.listen(where.backlog)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on {_name(where)}: {exc.strerror}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _name(where: Listening) -> str:
    return os.fsdecode(where.path) if where.path else f"{where.host} port {where.port}"


def _set_up(sock: socket.socket, family: int, where: Listening) -> None:
    if where.address_reuse is not False:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if where.address_reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not where.dual_stack)
    if where.fast_open:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, where.fast_open)


def as_listener(listener: socket.socket | int) -> socket.socket:
    """A socket object for it.

    Raises:
        OSError: It does not listen.  It stays the caller's.
    """
    if isinstance(listener, socket.socket):
        sock = listener
    else:
        sock = socket.socket(fileno=listener)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        if sock is not listener:
            sock.detach()
        raise OSError(errno.EINVAL, "this socket does not listen")
    return sock


def as_socket(sock: socket.socket | int) -> socket.socket:
    """A socket object for it, which owns it.

    Raises:
        OSError: It is no socket.  It is closed.
    """
    if isinstance(sock, socket.socket):
        return sock
    try:
        return socket.socket(fileno=sock)
    except OSError:
        if sock >= 0:
            try:
                os.close(sock)
            except OSError:
                pass  # it was none; what it is not is what the caller is told
        raise


def address(sock: socket.socket, ask: Callable[[], Any]) -> Address:
    """What ``ask`` says of it; None on a unix socket."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = ask()
    return (str(found[0]), int(found[1]))
