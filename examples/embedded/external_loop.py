"""The daemon in somebody else's loop: select is ours, and other descriptors are in it.

python examples/embedded/external_loop.py [PORT]        (ends when its standard input does)
"""

import select
import sys

from quiesce import Daemon, Mode, Poller, Request, Response

lines = 0


def handler(request: Request) -> Response:
    return Response(f"{lines} lines were typed\n")


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    with Daemon(handler, port=port, mode=Mode.EXTERNAL, poller=Poller.SELECT) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        while True:
            reading, writing = daemon.get_fdset()
            readable, writable, _ = select.select([*reading, 0], writing, [], daemon.get_timeout())
            if 0 in readable:
                if not sys.stdin.readline():
                    break
                lines += 1
            daemon.run_from_select(readable, writable)
