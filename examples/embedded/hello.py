"""The smallest server: one handler, one thread of the daemon's.

python examples/embedded/hello.py [PORT]
"""

import signal
import sys

from quiesce import Daemon, Request, Response

HELLO = Response("Hello, world\n")  # made once, sent to everybody


def handler(request: Request) -> Response:
    return HELLO if request.path == "/" else Response("Not here\n", 404)


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    with Daemon(handler, port=int(sys.argv[1]) if sys.argv[1:] else 8080) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
        daemon.stop(drain=5)
