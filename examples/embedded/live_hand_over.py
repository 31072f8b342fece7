"""A newer process takes over the listening socket and the live connections: no client is disconnected.

python examples/embedded/live_hand_over.py [PORT]       HUP: start this file again, and give it everybody
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


def hand_over(daemon: Daemon) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, CHANNEL: str(theirs.fileno())}
    subprocess.Popen([sys.executable, *sys.argv], env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    with daemon.quiesce() as listener:
        socket.send_fds(ours, [b"listener"], [listener.fileno()])
    ours.recv(1)  # it serves: from here on it reads what we give it
    daemon.hand_over(ours)  # who is idle goes now, who is busy when it has its answer
    daemon.stop(drain=30)


if __name__ == "__main__":
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    port, listener, older = int(sys.argv[1]) if sys.argv[1:] else 8080, None, None
    if CHANNEL in os.environ:
        older = socket.socket(fileno=int(os.environ.pop(CHANNEL)))
        listener = socket.socket(fileno=socket.recv_fds(older, 8, 1)[1][0])
    with Daemon(handler, port=port, listener=listener) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/ pid {os.getpid()}", flush=True)
        if older is not None:
            older.send(b"1")
            daemon.receive(older)
        if signal.sigwait(signals) == signal.SIGHUP:
            hand_over(daemon)
