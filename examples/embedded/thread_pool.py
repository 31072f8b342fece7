"""Several threads, each with clients of its own; their number is bounded over all threads.

python examples/embedded/thread_pool.py [PORT [THREADS]]
"""

import contextlib
import signal
import sys
import threading

from quiesce import Daemon, Limits, Mode, Request, Response


def handler(request: Request) -> Response:
    return Response(f"from {threading.current_thread().name}\n")


if __name__ == "__main__":
    with Daemon(
        handler,
        port=int(sys.argv[1]) if sys.argv[1:] else 8080,
        mode=Mode.POOL,
        threads=int(sys.argv[2]) if sys.argv[2:] else 4,
        limits=Limits(connections=1000, connections_per_ip=50),
    ) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
