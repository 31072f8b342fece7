"""A response whose length nobody knows: in chunks, at the client's pace, with a footer behind it.

python examples/embedded/streaming.py [PORT]
"""

import signal
import sys
import zlib

from quiesce import Daemon, Request, Response

LINES = 100_000


def handler(request: Request) -> Response:
    line, checksum = 0, 0

    def read(position: int, most: int) -> bytes | None:
        nonlocal line, checksum
        if line == LINES:
            response.add_footer("X-CRC32", f"{checksum:08x}")
            return None
        data = b""
        while line < LINES and len(data) < most - 20:
            line += 1
            data += b"line %d\n" % line
        checksum = zlib.crc32(data, checksum)
        return data

    response = Response.from_reader(read, headers={"Content-Type": "text/plain", "Trailer": "X-CRC32"})
    return response


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    with Daemon(handler, port=int(sys.argv[1]) if sys.argv[1:] else 8080) as daemon:
        print(f"serves at http://127.0.0.1:{daemon.info.port}/", flush=True)
        signal.sigwait(ENDS)
