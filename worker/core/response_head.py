"""A response's head: status and fields to bytes, with nothing in it that could end it early.

Source: RFC 9112 §4, §6.3; RFC 9110 §5.5, §7.6.1 (hop-by-hop fields are the daemon's), §8.6.
"""

from collections.abc import Iterable

from quiesce.worker.core.body_framing import TOKEN
from quiesce.worker.core.rejected import REASONS
from quiesce.worker.core.request import Header

STATUS_LINES = {
    code: b"HTTP/1.1 %d %s\r\n" % (code, reason.encode()) for code, reason in REASONS.items() if code >= 200
}
_NO_BODY = frozenset((204, 205, 304))
_CONNECTION, _LENGTH, _DATE = b"connection", b"content-length", b"date"
_DROPPED = frozenset(
    (b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection")
)
_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])  # no CTL but HTAB, CR, LF
_SPECIAL = _DROPPED | {_CONNECTION, _LENGTH, _DATE}
_MOST_KEPT = 2048  # bytes of a head
_names: dict[bytes, bytes] = {}  # as given → lower case; bounded


class BadResponse(ValueError):
    """An application's response that cannot be sent as HTTP: its bug, a 500."""


class Head:
    """A checked head without framing, Date and Connection, which depend on what comes after it."""

    __slots__ = ("_whole", "close", "dated", "is_plain", "length", "lines", "status", "tells_length")

    def __init__(self, status: int, lines: bytes, length: int, close: bool, dated: bool) -> None:
        self.status = status
        self.lines = lines  # status line and fields, each with CRLF
        self.length = length  # what Content-Length says, -1 if it is not given
        self.close = close  # the application said Connection: close
        self.dated = dated
        goes_on = not close and status not in _NO_BODY
        self.is_plain = goes_on and length < 0  # says nothing about its framing
        self.tells_length = goes_on and length >= 0  # and nothing else about it
        self._whole = (b"never", -1, b"")

    def whole(self, date: bytes, size: int, connection: bytes = b"") -> bytes:
        """All of the head, down to the empty line, of an answer with a body of that size.

        ``date`` and ``connection`` are whole lines.  Kept for as long as date and size stay the same.  Only for who
        ``is_plain``, or ``tells_length`` and it is this one.
        """
        kept = self._whole
        if kept[0] is date and kept[1] == size:
            whole = kept[2]
        else:
            framing = b"" if self.tells_length else b"Content-Length: %d\r\n" % size
            whole = b"".join((self.lines, b"" if self.dated else date, framing, b"\r\n"))
            self._whole = date, size, whole  # one store, for threads
        return b"%s%s\r\n" % (whole[:-2], connection) if connection else whole

    def fields(self) -> list[Header]:
        """What was said, as pairs."""
        lines = self.lines.split(b"\r\n")[1:-1]
        pairs = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        return [(b"Connection", b"close"), *pairs] if self.close else pairs


def _learn(name: bytes) -> bytes:
    if not name or name.translate(None, TOKEN):
        raise BadResponse(f"{name!r} is not a header name")
    if len(_names) > 1000:
        _names.clear()
    lower = _names[name] = name.lower()
    return lower


def encode(status: int, headers: Iterable[Header], reason: bytes = b"") -> Head:
    """Check and encode what an application wants to say.

    Raises:
        BadResponse: A name that is no token, a value with CR, LF (header injection) or another control
            character in it, a length that is no number, a status that is not 200 to 999.
    """
    line = STATUS_LINES.get(status)
    if reason or line is None:
        if not 200 <= status <= 999:
            raise BadResponse(f"{status} is not the status of a final response")
        line = b"HTTP/1.1 %d %s\r\n" % (status, reason)
    parts = [line]
    length, close, dated = -1, False, False
    for name, value in headers:
        lower = _names.get(name) or _learn(name)
        if lower in _SPECIAL:
            if lower in _DROPPED:
                if status == 426 and lower == b"upgrade":  # RFC 9110 §15.5.22: must be there, and §7.8 how
                    parts += (b"Upgrade: %s\r\n" % value, b"Connection: upgrade\r\n")
                continue
            if lower == _CONNECTION:
                close = close or b"close" in value.lower()
                continue
            if lower == _DATE:
                if dated:
                    continue
                dated = True
            else:
                if not value.isdigit() or len(value) > 18 or length not in (-1, int(value)):
                    raise BadResponse(f"Content-Length {value!r} is not a length, or a second one")
                if length >= 0:
                    continue
                length = int(value)
                if status == 204 or status == 205:  # RFC 9110 §8.6: must not; 205: ours is 0
                    continue
        parts.append(b"%s: %s\r\n" % (name, value))
    if status == 205:  # clients do not know it for one that ends with its head (RFC 9110 §15.3.6)
        parts.append(b"Content-Length: 0\r\n")
        length = 0
    lines = b"".join(parts)
    count = len(parts)
    if (
        lines.count(b"\n") != count
        or lines.count(b"\r") != count
        or len(lines.translate(None, _CONTROL)) != len(lines)
    ):
        raise BadResponse("a status or header holds CR, LF, NUL or another control character")
    return Head(status, lines, length, close, dated)


def interim(status: int, headers: Iterable[Header]) -> bytes:
    """A whole interim response (RFC 9110 §15.2): a head that another one follows.

    Raises:
        BadResponse: It may not be said.  101 ends HTTP, 100 is the daemon's to say.
    """
    if not 102 <= status <= 199:
        raise BadResponse(f"{status} is not the status of an interim response of the application")
    parts = [b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, "").encode())]
    for name, value in headers:
        if (_names.get(name) or _learn(name)) in _SPECIAL:
            raise BadResponse(f"an interim response says nothing of framing or the connection: {name!r}")
        parts.append(b"%s: %s\r\n" % (name, value))
    lines = b"".join(parts)
    if (
        lines.count(b"\n") != len(parts)
        or lines.count(b"\r") != len(parts)
        or len(lines.translate(None, _CONTROL)) != len(lines)
    ):
        raise BadResponse("a header holds CR, LF, NUL or another control character")
    return lines + b"\r\n"


class HeadMemo:
    """Heads that were encoded before, by what the application said.  Bounded; nothing with Set-Cookie stays."""

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self._heads: dict[object, Head] = {}
        self.get = self._heads.get
        """``get(key)``, of status and headers; TypeError if they cannot be a key: then they are encoded afresh."""

    def keep(self, key: object, head: Head) -> None:
        """Answer with this head from now on."""
        if len(head.lines) > _MOST_KEPT or b"\r\nset-cookie:" in head.lines.lower():
            return
        if len(self._heads) >= self._most:
            self._heads.clear()
        self._heads[key] = head


def has_no_body(status: int) -> bool:
    """True for the statuses without content (RFC 9112 §6.3; 205 by RFC 9110 §15.3.6)."""
    return status in _NO_BODY
