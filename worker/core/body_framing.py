"""Where does this message's body end?  RFC 9112 §6 and §7, the strict reading.

Pure.  Both decoders have the same shape: ``feed(data)`` returns the payload found in it; ``done`` says
that the body is complete, and then ``rest`` is what came behind it, the next request's beginning.
"""

import re

from quiesce.worker.core.rejected import Rejected

_MAX_LINE = 256  # of a chunk's size and extensions, which nobody needs
_FREE = 16  # bytes of such a line that nobody counts
_MOST_PADDING = 16 * 1024  # of them in all, beyond what is free and what the chunks' own bytes make up for
_DIGITS = b"0123456789"
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_NOT_TEXT = bytes([*range(9), *range(10, 32), 127])  # CTL but HTAB
# chunk-ext of RFC 9112 §7.1.1; control characters are refused before.
_EXTENSIONS = re.compile(
    rb"""(?:[ \t]*;[ \t]*[!#$%&'*+.^`|~\w-]+(?:[ \t]*=[ \t]*(?:[!#$%&'*+.^`|~\w-]+|"(?:[^"\\]|\\.)*"))?)*"""
)
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def body_length(
    version: str, transfer_encodings: list[bytes], content_lengths: list[bytes], limit: int
) -> int:
    """The body's length in bytes, or -1 for chunked.

    Args:
        version: "1.1" or "1.0".
        transfer_encodings, content_lengths: Every field value of that name.
        limit: Largest body in bytes; 0 = none.

    Raises:
        Rejected: 400, 413 or 501.  Wherever two readings are possible we take neither: that is what
            request smuggling lives on (RFC 9112 §6.1, §6.3, §11.2).
    """
    if transfer_encodings:
        if content_lengths:
            raise Rejected(400, "Transfer-Encoding and Content-Length in one request")
        if version == "1.0":
            raise Rejected(400, "Transfer-Encoding in an HTTP/1.0 request")
        _check_codings(transfer_encodings)
        return -1
    if not content_lengths:
        return 0
    value = content_lengths[0]
    if len(content_lengths) != 1:
        raise Rejected(400, "more than one Content-Length")
    if not value or value.translate(None, _DIGITS):
        raise Rejected(400, "Content-Length is not a number")
    digits = value.lstrip(b"0")
    if len(digits) > 18:  # beyond 63 bits; and int() refuses thousands of digits by ValueError
        raise Rejected(413, "Content-Length is larger than anything")
    length = int(digits or b"0")
    if limit and length > limit:
        raise Rejected(413, f"the body is larger than {limit} bytes")
    return length


def _check_codings(transfer_encodings: list[bytes]) -> None:
    codings = [coding.strip(b" \t").lower() for value in transfer_encodings for coding in value.split(b",")]
    if codings == [b"chunked"]:
        return
    # RFC 9110 §5.6.1.2 would have us ignore the empty ones; not where others may read something else.
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1] or b"" in codings:
        raise Rejected(
            400, "Transfer-Encoding does not end in one chunked"
        )  # §6.3: must, whatever else is in it
    raise Rejected(501, "the only Transfer-Encoding known here is chunked")


class LengthDecoder:
    """So many bytes."""

    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    @property
    def left(self) -> int:
        """Bytes still to come; -1 if that cannot be known."""
        return self._left

    def feed(self, data: bytes) -> bytes:
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        self._left = 0
        self.done = True
        if len(data) == left:
            return data
        self.rest = data[left:]
        return data[:left]


class ChunkedDecoder:
    """RFC 9112 §7.1.  Extensions are checked, bounded and dropped; trailers are kept apart from the headers."""

    # fmt: off
    __slots__ = (
        "_buffer", "_checked", "_expect", "_left", "_limit", "_padding", "_total", "_trailer_bytes", "done", "left",
        "rest", "trailers",
    )
    # fmt: on

    def __init__(self, limit: int, trailer_bytes: int) -> None:
        """``limit``: largest payload (0 = none); ``trailer_bytes``: largest trailer section."""
        self._buffer = b""  # an incomplete line
        self._checked = 0  # so much of it was looked at: it may come byte by byte
        self._expect = "size"  # size → data → end → size …; size 0 → trailer
        self._left = 0  # of the chunk
        self._limit = limit
        self._padding = 0
        self._total = 0
        self._trailer_bytes = trailer_bytes
        self.left = -1
        self.trailers: list[tuple[bytes, bytes]] = []  # names in lower case, when done
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Raises:
        Rejected: 400 malformed, 413 too large, 431 trailers too large.
        """
        payload: list[bytes] = []
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        at = 0
        if self._expect == "size" and not self._checked:
            at = self._whole_chunks(data, 0, payload)
        while at < len(data):
            if self._expect == "data":
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._expect = "end"
                continue
            if self._expect == "end":
                if not b"\r\n".startswith(data[at : at + 2]):
                    raise Rejected(400, "a chunk is longer than its size")
                if len(data) - at < 2:
                    break
                self._expect = "size"
                at = self._whole_chunks(data, at + 2, payload)
                continue
            eol = self._line_end(data, at)
            if eol < 0:
                break
            line, at = data[at:eol], eol + 2
            if self._expect == "size":
                self._size(line)
            elif line:
                self._trailer(line)
            else:
                self.done = True
                self.rest = data[at:]
                return b"".join(payload)
        self._buffer = data[at:]
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _whole_chunks(self, data: bytes, at: int, payload: list[bytes]) -> int:
        """The usual case: chunks that are all there, with short sizes and without extensions.  Returns where begins
        what must be looked at more closely.
        """
        while not self._padding:
            eol = data.find(b"\r\n", at, at + _FREE)
            digits = data[at:eol]
            if eol <= at or digits.translate(None, _HEX_DIGITS):
                break
            size = int(digits, 16)
            end = eol + 2 + size
            if not size or data[end : end + 2] != b"\r\n":
                break
            if self._limit and self._total + size > self._limit:
                break
            self._total += size
            payload.append(data[eol + 2 : end])
            at = end + 2
        return at

    def _line_end(self, data: bytes, at: int) -> int:
        """Where the line that starts at ``at`` ends, or -1.  A bare CR or LF never ends one."""
        limit = _MAX_LINE if self._expect == "size" else self._trailer_bytes
        checked, self._checked = at + self._checked, 0
        eol = data.find(b"\r\n", checked)
        end = eol if eol >= 0 else len(data) - data.endswith(b"\r")
        # The first fault in the order of bytes decides, however they come.
        _check_text(data[checked : min(end, at + limit)])
        if end - at > limit:
            if self._expect == "size":
                raise Rejected(400, "a chunk's size line is too long")
            raise Rejected(431, "the trailer section is too large")
        if eol < 0:
            self._checked = end - at
        return eol

    def _size(self, line: bytes) -> None:
        digits, semicolon, _ = line.partition(b";")
        if semicolon:
            extensions, digits = line[len(digits.rstrip(b" \t")) :], digits.rstrip(b" \t")
            if not _EXTENSIONS.fullmatch(extensions):
                raise Rejected(400, "a chunk's extension is malformed")
        if not digits or len(digits) > 15 or digits.translate(None, _HEX_DIGITS):
            raise Rejected(400, "a chunk's size is not a hexadecimal number")
        self._left = int(digits, 16)
        if self._padding or len(line) > _FREE:
            self._padding = max(0, self._padding + len(line) - _FREE - self._left)
            if self._padding > _MOST_PADDING:
                raise Rejected(400, "there is more of chunk extensions than of the body")
        self._total += self._left
        if self._limit and self._total > self._limit:
            raise Rejected(413, f"the body is larger than {self._limit} bytes")
        self._expect = "data" if self._left else "trailer"

    def _trailer(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.translate(None, TOKEN):
            raise Rejected(400, "a trailer field is malformed")
        self._trailer_bytes -= len(line) + 2
        if self._trailer_bytes < 0:
            raise Rejected(431, "the trailer section is too large")
        self.trailers.append((name.lower(), value.strip(b" \t")))


def _check_text(part: bytes) -> None:
    if len(part.translate(None, _NOT_TEXT)) != len(part):
        raise Rejected(400, "control characters in a chunk's size or trailer")


def decoder(length: int, limit: int, trailer_bytes: int) -> "LengthDecoder | ChunkedDecoder":
    """The decoder for what :func:`body_length` said."""
    return LengthDecoder(length) if length >= 0 else ChunkedDecoder(limit, trailer_bytes)
