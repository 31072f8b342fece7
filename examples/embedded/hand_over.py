"""A newer process takes the listening socket over, by hand: what `quiesce upgrade` does for a service.

python examples/embedded/hand_over.py [PORT]            HUP: start this file again, and let it accept
"""

import os
import signal
import socket
import subprocess
import sys

from quiesce import Daemon, Request, Response

CHANNEL = "HAND_OVER_CHANNEL"


def handler(request: Request) -> Response:
    return Response(f"served by {os.getpid()}\n")


def inherited() -> socket.socket | None:
    """The listener of the process that started us, if one did."""
    number = os.environ.pop(CHANNEL, None)
    if number is None:
        return None
    with socket.socket(fileno=int(number)) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        return socket.socket(fileno=fds[0])


def hand_over(daemon: Daemon) -> None:
    """From here on the newer one accepts; what we have we finish."""
    ours, theirs = socket.socketpair()
    with ours, theirs, daemon.quiesce() as listener:
        environment = {**os.environ, CHANNEL: str(theirs.fileno())}
        subprocess.Popen([sys.executable, *sys.argv], env=environment, pass_fds=[theirs.fileno()])
        socket.send_fds(ours, [b"l"], [listener.fileno()])
    daemon.stop(drain=30)


if __name__ == "__main__":
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    with Daemon(handler, port=port, listener=inherited()) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/ pid {os.getpid()}", flush=True)
        if signal.sigwait(signals) == signal.SIGHUP:
            hand_over(daemon)
