"""Several threads, each with clients of its own; their number is bounded over all threads.

python examples/embedded/thread_pool.py [PORT [THREADS]]
"""

import signal
import sys
import threading

from quiesce import Daemon, Limits, Mode, Request, Response


def handler(request: Request) -> Response:
    return Response(f"from {threading.current_thread().name}\n")


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    with Daemon(
        handler,
        port=int(sys.argv[1]) if sys.argv[1:] else 8080,
        mode=Mode.POOL,
        threads=int(sys.argv[2]) if sys.argv[2:] else 4,
        limits=Limits(connections=1000, connections_per_ip=50),
    ) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
