"""TCP ports that nobody else gets meanwhile."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """A port on the loopback interface, reserved."""

    number: int
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"


@contextlib.contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[Port]:
    """A free port, held until the end of the block by a socket that is bound but does not listen.

    With SO_REUSEADDR on both, another process may bind and listen there (Linux refuses only when one of the two
    listens already), while the kernel gives the number to nobody who asks for "any".
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        yield Port(holder.getsockname()[1], host)
