"""A daemon in a process of its own, that is told over a unix socket what to do.

Run as a script: the socket's descriptor, the mode, the poller.  `serve` comes with a listener (SCM_RIGHTS) and is
answered when it is listened on, `give` is answered with the listener, after which nobody here accepts; EOF ends it.
"""

from __future__ import annotations

import socket
import sys

from quiesce import Daemon, Mode, Poller, Response


def main(fd: int, mode: str, poller: str) -> None:
    channel = socket.socket(fileno=fd)
    daemon: Daemon | None = None
    while True:
        order, fds, _, _ = socket.recv_fds(channel, 100, 1)
        if not order:
            break
        if order == b"serve":
            handler = lambda request: Response(b"new")  # noqa: E731
            daemon = Daemon(handler, listener=fds[0], mode=Mode(mode), poller=Poller(poller)).start()
            channel.send(b"serving")
        elif order == b"give":
            assert daemon is not None
            with daemon.quiesce() as listener:
                daemon.stop(drain=20)
                socket.send_fds(channel, [b"given"], [listener.fileno()])
    if daemon is not None:
        daemon.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
