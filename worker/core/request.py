"""One request, as an application sees it."""

from io import BytesIO
from typing import IO, Any

Address = tuple[str, int] | None
"""A peer's or our own (host, port); None on a unix socket."""

Header = tuple[bytes, bytes]

TargetParts = tuple[bytes, str, bytes, dict[str, Any] | None]
"""Of a target in origin-form: the path as sent, the path decoded, and the query.  And, if all of the head came
before, a place for what an application's interface makes of it, shared by all requests with this very head."""

_HASH, _PERCENT = b"#%"  # numbers are looked for three times faster than bytes of length 1
_HEX = {b"%02x" % i: bytes((i,)) for i in range(256)}
_HEX |= {key.upper(): value for key, value in _HEX.items()}
_HEX |= {bytes((a, b)): _HEX[bytes((a, b)).lower()] for a in b"abcdefABCDEF" for b in b"abcdefABCDEF"}


def unquote(raw: bytes) -> bytes:
    """Percent-decode; an escape that is none stays as it is (RFC 3986 §2.4 says decode once, never twice)."""
    if _PERCENT not in raw:
        return raw
    first, *rest = raw.split(b"%")
    parts = [first]
    for piece in rest:
        octet = _HEX.get(piece[:2])
        parts += (b"%", piece) if octet is None else (octet, piece[2:])
    return b"".join(parts)


def split_target(target: bytes) -> TargetParts:
    """Of a target in origin-form; its path is UTF-8, or else Latin-1."""
    if _HASH in target:
        target = target.partition(b"#")[0]
    path, _, query = target.partition(b"?")
    decoded = unquote(path)
    try:
        return path, decoded.decode(), query, None
    except UnicodeDecodeError:
        return path, decoded.decode("latin-1"), query, None


class Request:
    """What the client asked for.

    Attributes:
        method: As sent; case matters.
        target: The request target as sent.
        version: ``"1.1"`` or ``"1.0"``.
        headers: ``(name, value)`` in order, names in lower case, values without surrounding white space.
        scheme: ``"http"`` or ``"https"``.
        peer, local: Both ends of the connection, None on a unix socket.
    """

    # Slots: filling all of them costs less than one look at a default on the class.
    __slots__ = (
        "_parts", "content", "expects_continue", "headers", "keep_alive", "length", "local", "method",
        "offers_upgrade", "opened", "peer", "scheme", "target", "version",
    )  # fmt: skip

    def __init__(
        self, method: str, target: bytes, version: str = "1.1", headers: list[Header] | None = None
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers: list[Header] = [] if headers is None else headers
        self.keep_alive = version == "1.1"
        self.scheme = "http"
        self.peer: Address = None
        self.local: Address = None
        # The engine's: a body that is in memory, and one that is in a file, or was asked for as one.
        self.content: bytes | None = None
        self.opened: IO[bytes] | None = None
        self._parts: TargetParts | None = None
        # What the framing of the message says (RFC 9112 §6, §9.3); the engine's, not the application's.
        self.length = 0  # of the body in bytes; -1 = chunked
        self.expects_continue = False
        self.offers_upgrade = False

    def _split(self) -> TargetParts:
        target = self.target
        if target[:1] not in (b"/", b"*"):  # absolute-form: RFC 9112 §3.2.2
            start = target.find(b"/", target.find(b"://") + 3)
            query = target.find(b"?")
            if start < 0 or 0 <= query < start:
                target = b"/" if query < 0 else b"/" + target[query:]
            else:
                target = target[start:]
        self._parts = split_target(target)
        return self._parts

    @property
    def asks_keep_alive(self) -> bool:
        """Connection says keep-alive in so many words, and not close."""
        said = b",".join(value for name, value in self.headers if name == b"connection").lower()
        return self.keep_alive and b"keep-alive" in said

    @property
    def raw_path(self) -> bytes:
        """The path as sent, without the query."""
        return (self._parts or self._split())[0]

    @property
    def path(self) -> str:
        """The path, percent-decoded, as UTF-8 or else as Latin-1."""
        return (self._parts or self._split())[1]

    @property
    def query(self) -> bytes:
        """What follows the first ``?``, as sent."""
        return (self._parts or self._split())[2]

    def header(self, name: str, default: str = "") -> str:
        """The first value of that name, case-insensitively, as Latin-1."""
        wanted = name.lower().encode("latin-1")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return default

    @property
    def file(self) -> IO[bytes] | None:
        """The body, a binary file at its beginning, or None where it is not there (streaming applications read it
        from their exchange).  It is closed after the response.
        """
        if self.opened is None and self.content is not None:
            self.opened = BytesIO(self.content)  # which shares the bytes
        return self.opened

    def read(self, size: int = -1) -> bytes:
        """Read on in the body; ``b""`` at its end."""
        file = self.file
        return b"" if file is None else file.read(size)

    @property
    def body(self) -> bytes:
        """The whole body in memory, however much of it was read before."""
        if self.content is not None:
            return self.content
        file = self.opened
        if file is None:
            return b""
        position = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(position)
        return data

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target.decode('latin-1')}>"
