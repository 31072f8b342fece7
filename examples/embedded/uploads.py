"""Uploads of any size, digested while they arrive; what is too large is refused before it is sent.

python examples/embedded/uploads.py [PORT]
"""

import hashlib
import signal
import sys

from quiesce import Connection, Daemon, Response, Stage

MOST = 1 << 30


def handler(connection: Connection) -> Response | None:
    if connection.stage is Stage.HEAD:
        if connection.request.method != "PUT":
            return Response("PUT something here\n", 405, {"Allow": "PUT"})
        if connection.request.length > MOST:
            return Response("Too large\n", 413)  # a client that says Expect: 100-continue never sends it
        connection.state = hashlib.sha256()
    elif connection.stage is Stage.DATA:
        connection.state.update(connection.upload.read())
    else:
        return Response(connection.state.hexdigest() + "\n", 201)
    return None


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    with Daemon(access_handler=handler, port=int(sys.argv[1]) if sys.argv[1:] else 8080) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
