"""Long polling: GET /wait is answered when somebody POSTs news.  Waiting costs no thread.

python examples/embedded/suspend_resume.py [PORT]
"""

import signal
import sys

from quiesce import Connection, Daemon, Response, Stage

waiting: list[Connection] = []


def handler(connection: Connection) -> Response | None:
    if connection.stage is Stage.DATA:
        connection.state = (connection.state or b"") + connection.upload.read()
    if connection.stage is not Stage.END:
        return None
    if connection.request.method == "POST":
        told, waiting[:] = list(waiting), []
        for other in told:
            other.queue(Response(connection.state or b""))  # goes out when it is resumed
            other.resume()
        return Response(f"told {len(told)}\n")
    waiting.append(connection)
    connection.suspend()
    return None


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    with Daemon(access_handler=handler, port=port, allow_suspend=True) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
