"""What a native handler returns."""

from collections.abc import Iterable, Mapping
from typing import Any

from quiesce.worker.core.request import Header
from quiesce.worker.core.response_head import BadResponse, Head, encode

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Body = bytes | str | Iterable[bytes]

NOTHING_CACHED = (b"never", b"", b"")  # an empty date is one
SMALL = 16 * 1024  # so much body is copied behind its head and kept; more goes out from where it lies


class Response:
    """A response.  It may be kept and returned again, from any thread: its bytes are made once a second.

    Args:
        body: Bytes, text (UTF-8), or an iterable of bytes.  An iterable can be sent once; if it has
            ``close()``, that is called when it is done or the client has gone.
        status: 200 to 999.
        headers: A mapping or (name, value) pairs.  Date, framing and Connection are the daemon's.
        content_type: Default for text and bytes ``text/plain; charset=utf-8``; not used if headers have one.

    Raises:
        BadResponse: It cannot be sent as HTTP (a line break in a header, for instance).
    """

    __slots__ = ("_cached", "_more", "body", "head", "path", "status")

    def __init__(
        self,
        body: Body = b"",
        status: int = 200,
        headers: Headers | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        self.status = status
        self.body: bytes | Iterable[bytes] = body.encode() if isinstance(body, str) else body
        self.path: str | None = None
        self.head: Head = (
            _plain_head(status, content_type)
            if headers is None
            else encode(status, _fields(headers, content_type or _TEXT))
        )
        self._cached = NOTHING_CACHED  # date, connection, bytes: one store, for threads
        self._more: Any = None  # what the daemon's own kind (worker/response.py) has beyond this

    @classmethod
    def file(
        cls,
        path: str,
        status: int = 200,
        headers: Headers | None = None,
        *,
        content_type: str = "application/octet-stream",
    ) -> "Response":
        """The contents of a regular file, sent by the kernel.  It is opened for each request."""
        response = cls(b"", status, headers, content_type=content_type)
        response.path = path
        return response

    def wire(self, date: bytes, connection: bytes) -> bytes:
        """Head and body as they are sent; only for a body in bytes, under a head that is plain.

        ``date`` and ``connection`` are whole lines.  Cached for as long as both stay the same.
        """
        cached = self._cached
        if cached[0] == date and cached[1] == connection:
            return cached[2]
        body = self.body
        assert isinstance(body, bytes)
        wire = self.head.whole(date, len(body), connection) + body
        self._cached = (date, connection, wire)
        return wire


_TEXT = "text/plain; charset=utf-8"
_plain: dict[tuple[int, str | None], Head] = {}  # heads without fields of their own; bounded


def _plain_head(status: int, content_type: str | None) -> Head:
    key = (status, content_type)
    head = _plain.get(key)
    if head is None:
        head = encode(status, [(b"Content-Type", encode_text(content_type or _TEXT))])
        if len(_plain) < 1000:
            _plain[key] = head
    return head


def _fields(headers: Headers, content_type: str) -> list[Header]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields = [(encode_text(name), encode_text(value)) for name, value in pairs]
    if not any(name.lower() == b"content-type" for name, _ in fields):
        fields.append((b"Content-Type", encode_text(content_type)))
    return fields


def encode_text(text: str) -> bytes:
    """A name or value as it is sent.

    Raises:
        BadResponse: It holds what Latin-1 does not know.
    """
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise BadResponse(f"{text!r} does not fit a header: Latin-1 is all that HTTP knows") from None
