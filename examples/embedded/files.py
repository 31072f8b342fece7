"""Files of a directory, sent by the kernel, with single byte ranges.

python examples/embedded/files.py [PORT [DIRECTORY]]
"""

import os
import re
import signal
import sys
from pathlib import Path

from quiesce import Daemon, Request, Response

ROOT = Path(sys.argv[2] if sys.argv[2:] else ".").resolve()
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def handler(request: Request) -> Response:
    path = (ROOT / request.path.lstrip("/")).resolve()
    if not path.is_relative_to(ROOT) or not path.is_file():
        return Response("Not here\n", 404)
    if request.method not in ("GET", "HEAD"):
        return Response("Only to be read\n", 405, {"Allow": "GET, HEAD"})
    fd = os.open(path, os.O_RDONLY)  # the response's from here on
    size = os.fstat(fd).st_size
    wanted = RANGE.fullmatch(request.header("range"))
    if wanted is None:
        return Response.from_fd(fd, size, headers={"Accept-Ranges": "bytes"})
    first = int(wanted[1])
    last = min(int(wanted[2] or size - 1), size - 1)
    if first > last:
        os.close(fd)
        return Response("", 416, {"Content-Range": f"bytes */{size}"})
    headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return Response.from_fd(fd, last - first + 1, first, 206, headers)


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    with Daemon(handler, port=int(sys.argv[1]) if sys.argv[1:] else 8080) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
