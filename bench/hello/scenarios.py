"""What the client asks for."""

from dataclasses import dataclass, field
from pathlib import Path

FILE_BYTES = 1 << 20
_BROWSER = (
    b"GET / HTTP/1.1\r\nHost: shop.example\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nDNT: 1\r\n"
    b"Connection: keep-alive\r\nCookie: session=%032x; theme=dark\r\nUpgrade-Insecure-Requests: 1\r\n"
    b"Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\nPriority: u=0, i\r\n\r\n"
)
_HELLO = b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"


@dataclass(frozen=True)
class Scenario:
    """``requests`` are sent in turn by each connection, ``depth`` at a time."""

    name: str
    what: str
    requests: list[bytes] = field(repr=False)
    connections: int = 64
    depth: int = 1
    close: bool = False

    def write(self, path: Path) -> None:
        """In the form that the load client reads."""
        path.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in self.requests))


SCENARIOS = (
    Scenario("hello", "a small GET, connections kept", [_HELLO]),
    Scenario(
        "browser",
        "a browser's head of 13 fields, another cookie each time",
        [_BROWSER % (number * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 128)) for number in range(4096)],
    ),
    Scenario("pipelined", "the small GET, 16 at once", [_HELLO], depth=16),
    Scenario(
        "close",
        "a connection for each request",
        [b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"],
        close=True,
    ),
    Scenario(
        "file",
        "1 MiB from a file",
        [b"GET /file HTTP/1.1\r\nHost: shop.example\r\n\r\n"],
        connections=8,
    ),
    Scenario(
        "post",
        "POST of 1 KiB, sent back",
        [b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024],
    ),
)
