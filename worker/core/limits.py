"""Sizes and times that a client may not exceed.

The names are the keys of ``[limits]`` in quiesce.toml where there is one.  0 means no limit, for those
that say so.  A named tuple: cheap to import, cannot be changed under a running daemon.
"""

from typing import NamedTuple


class Limits(NamedTuple):
    """Sizes in bytes, times in seconds."""

    header_bytes: int = 32 * 1024  # request line and header section: 431
    header_count: int = 100  # 431 (Apache's LimitRequestFields)
    line_bytes: int = 8190  # request line alone: 414 (Apache's LimitRequestLine)
    body_bytes: int = 0  # 413; 0 = no limit
    body_memory: int = 256 * 1024  # of a buffered body; what is beyond goes to an unlinked temporary file
    connections: int = 10_000  # 503; 0 = no limit
    connections_per_ip: int = 0  # 503; 0 = no limit; unix sockets have no address and are not counted
    header_timeout: float = 10.0  # from the first byte (or the accept) to the whole head, in all: 408
    body_timeout: float = 30.0  # longest silence within a body: 408
    # Bytes a second, once body_grace has passed; 0 = none.  Of a request's body, over the whole of it: 408.  Of a
    # response, while some of it waits for a client that takes it byte by byte: cut.
    body_min_rate: int = 500
    body_grace: float = 30.0
    send_timeout: float = 60.0  # longest time in which a client takes no byte of its response: cut
    idle_timeout: float = 75.0  # between two requests: silent close; 0 = none
    linger_timeout: float = 2.0  # after our FIN: longest silence of a client that has not closed
    linger_time: float = 30.0  # the same in all
    linger_bytes: int = 64 * 1024 * 1024  # and so much of an unwanted body is read to save the answer
    high_water: int = 1024 * 1024  # an iterator's thread waits when so much is queued …
    low_water: int = 256 * 1024  # … until so little is
