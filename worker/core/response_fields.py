"""The fields of a response that are added and taken away one by one.  Pure.

Source: RFC 9110 §5.6.2, §7.6.1; libmicrohttpd's rules for adding headers, without its exceptions.
"""

from quiesce.worker.core.body_framing import TOKEN
from quiesce.worker.core.request import Header
from quiesce.worker.core.response_head import BadResponse

_BREAKS = (b"\r", b"\n", b"\0")


def check_field(name: bytes, value: bytes) -> None:
    """Raises:
    BadResponse: The name is no token, or the value is empty or holds a line's end.
    """
    if not name or name.translate(None, TOKEN):
        raise BadResponse(f"{name!r} is not a field name")
    if not value or any(octet in value for octet in _BREAKS):
        raise BadResponse(f"the value of {name!r} is empty, or holds CR, LF or NUL")


class Fields:
    """Name and value pairs in order, and what of them is the framing's affair.

    Attributes:
        pairs: The fields, as they were given.
        chunked: Somebody wants chunks though the length may be known.
    """

    def __init__(self, pairs: list[Header]) -> None:
        self.pairs = pairs
        self.chunked = False

    def add(self, name: bytes, value: bytes, *, length_allowed: bool = False) -> None:
        """Add a field.  A second Date replaces the first; tokens of Connection are merged, ``close`` first,
        ``keep-alive`` left out; Transfer-Encoding is ``chunked`` or refused.

        Raises:
            BadResponse: It may not be said.  Nothing was changed.
        """
        check_field(name, value)
        lower = name.lower()
        if lower == b"connection":
            self._add_connection(value)
            return
        if lower == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise BadResponse("the only Transfer-Encoding that can be sent is chunked")
            self.chunked = True
            return
        if lower == b"content-length" and not length_allowed:
            raise BadResponse("Content-Length is the daemon's to say")
        if lower == b"date":
            self.pairs = [pair for pair in self.pairs if pair[0].lower() != b"date"]
        self.pairs.append((name, value))

    def _add_connection(self, value: bytes) -> None:
        tokens = _tokens(value)
        if not tokens:
            raise BadResponse("Connection: keep-alive is the daemon's to say")
        have = self._connection()
        merged = have + [token for token in tokens if token.lower() not in [known.lower() for known in have]]
        merged.sort(key=lambda token: token.lower() != b"close")
        self._set_connection(merged)

    def _connection(self) -> list[bytes]:
        return [
            token for name, value in self.pairs if name.lower() == b"connection" for token in _tokens(value)
        ]

    def _set_connection(self, tokens: list[bytes]) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0].lower() != b"connection"]
        if tokens:
            self.pairs.insert(0, (b"Connection", b", ".join(tokens)))

    def remove(self, name: bytes, value: bytes) -> bool:
        """Take away the field of exactly this name and value; of Connection, these tokens.  False: it is not there."""
        lower = name.lower()
        if lower == b"transfer-encoding" and value.lower() == b"chunked" and self.chunked:
            self.chunked = False
            return True
        if lower == b"connection":
            gone = {token.lower() for token in _tokens(value)}
            have = self._connection()
            left = [token for token in have if token.lower() not in gone]
            self._set_connection(left)
            return len(left) != len(have)
        if (name, value) not in self.pairs:
            return False
        self.pairs.remove((name, value))
        return True

    def get(self, name: bytes) -> bytes | None:
        """The first value of that name, case-insensitively."""
        lower = name.lower()
        return next((value for key, value in self.all() if key.lower() == lower), None)

    def all(self) -> list[Header]:
        """What was said, Transfer-Encoding included."""
        return [*self.pairs, (b"Transfer-Encoding", b"chunked")] if self.chunked else list(self.pairs)


def _tokens(value: bytes) -> list[bytes]:
    tokens = (token.strip(b" \t") for token in value.split(b","))
    return [token for token in tokens if token and token.lower() != b"keep-alive"]
