"""A program for libmicrohttpd, by the names that it has in C: an upload is taken as it comes, and sent back.

python examples/embedded/c_names.py [PORT]
"""

import signal
import sys
from typing import Any

from quiesce import mhd


def handler(
    cls: Any,
    connection: Any,
    url: str,
    method: str,
    version: str,
    data: Any,
    size: mhd.Cell,
    con_cls: mhd.Cell,
) -> int:
    if con_cls.value is None:  # the first call: nothing but the head is there
        con_cls.value = bytearray()
        return mhd.MHD_YES
    if size.value:
        con_cls.value += data[: size.value]
        size.value = 0  # all of it is taken
        return mhd.MHD_YES
    body = bytes(con_cls.value) or f"{method} {url}\n".encode()
    response = mhd.MHD_create_response_from_buffer(len(body), body, mhd.MHD_RESPMEM_PERSISTENT)
    result = mhd.MHD_queue_response(connection, 200, response)
    mhd.MHD_destroy_response(response)
    return result


def completed(cls: Any, connection: Any, con_cls: mhd.Cell, why: int) -> None:
    con_cls.value = None


ENDS = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads that would get them
    daemon = mhd.MHD_start_daemon(
        mhd.MHD_USE_AUTO | mhd.MHD_USE_INTERNAL_POLLING_THREAD | mhd.MHD_USE_ERROR_LOG,
        int(sys.argv[1]) if sys.argv[1:] else 8080,
        None,
        None,
        handler,
        None,
        mhd.MHD_OPTION_NOTIFY_COMPLETED,
        completed,
        None,
        mhd.MHD_OPTION_CONNECTION_TIMEOUT,
        60,
        mhd.MHD_OPTION_END,
    )
    if daemon is None:
        sys.exit(1)
    port = mhd.MHD_get_daemon_info(daemon, mhd.MHD_DAEMON_INFO_BIND_PORT)
    print(f"serves at http://127.0.0.1:{port}/", flush=True)
    signal.sigwait(ENDS)
    mhd.MHD_stop_daemon(daemon)
