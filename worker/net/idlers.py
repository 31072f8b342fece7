"""Ends connections on which nobody asks anything: there is nobody left to hand them over to."""

import socket
from typing import TYPE_CHECKING

from quiesce.worker.net.ending import FRESH, IDLE

if TYPE_CHECKING:
    from quiesce.worker.daemon import Daemon


def end_idle(daemon: "Daemon") -> None:
    """Close politely each connection between two requests, and each that has never begun one.  The loop's thread only.

    Whoever has sent something is left alone, read or not: that will be answered, and the answer is its last.
    """
    for connection in list(daemon.roster.all):
        if connection.state not in (FRESH, IDLE) or connection.probe or connection.has_input:
            continue
        if _is_silent(connection.sock):
            connection.end()


def _is_silent(sock: socket.socket) -> bool:
    """Does nothing lie in its queue, neither bytes nor an end?"""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass  # the loop hears of it
    return False
