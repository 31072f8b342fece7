"""One packet is one message.  Pure: bytes in, messages out, and back.

A packet is a JSON object: ``{"v": 1, "type": "listen", "seq": 7, "re": 6, "fds": 2,
"names": ["http", "admin"]}``.  ``re`` is the ``seq`` that is answered; ``fds`` is how many
descriptors travel along, so that a lost one is noticed (unix(7): near the descriptor limit
the kernel drops some and only sets a flag).

JSON is written in ASCII: a path that is not UTF-8 (surrogateescape, PEP 383) goes through
unharmed.  What is read was written by somebody else: no number that comes out of here is
infinite, NaN or larger than 64 bits.
"""

import json
from typing import Any, NamedTuple, cast

from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import (
    MAX_DETAIL_BYTES,
    MAX_REASON_BYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
    WORD_OF,
    WORDS,
    Failed,
    Message,
    Unknown,
)

MAX_PACKET_BYTES = 64 * 1024
MAX_FDS = 253  # SCM_MAX_FD; 254 is EINVAL
MAX_WORD_CHARS = 64  # of a word that we do not know, and only log

_ENVELOPE = frozenset(("v", "type", "seq", "re", "fds"))
_INT_LIMIT = 2**63
_INFINITY = float("inf")


class Packet(NamedTuple):
    """A message in its envelope."""

    message: Message
    seq: int = 0
    re: int | None = None  # the seq that this answers
    fds: int = 0  # how many descriptors travel along
    version: int = PROTOCOL


def encode(packet: Packet) -> bytes:
    """Return the bytes of one packet.

    A ``failed`` is clipped: whatever a traceback holds, the worker must be able to say it.

    Raises:
        ProtocolError: It would not fit into a packet, or holds a number that JSON has no
            word for (local: a bug or an absurd configuration).
    """
    word = WORD_OF[type(packet.message)]
    if packet.fds > MAX_FDS:
        raise ProtocolError(f"message {word!r} brings {packet.fds} descriptors; a packet carries {MAX_FDS}")
    body: dict[str, Any] = {"v": packet.version, "type": word, "seq": packet.seq}
    if packet.re is not None:
        body["re"] = packet.re
    if packet.fds:
        body["fds"] = packet.fds
    message = packet.message
    if isinstance(message, Failed):
        message = Failed(clip(message.reason, MAX_REASON_BYTES), clip(message.detail, MAX_DETAIL_BYTES))
    body.update(cast(Any, message)._asdict())
    try:
        data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as exc:
        raise ProtocolError(f"message {word!r} cannot be written: {exc}") from exc
    if len(data) > MAX_PACKET_BYTES:
        raise ProtocolError(f"message {word!r} has {len(data)} bytes; a packet holds {MAX_PACKET_BYTES}")
    return data


def clip(text: str, nbytes: int) -> str:
    """Return the end of the text that takes at most ``nbytes`` in a packet.

    The end, because the last line of a traceback is the one that says what happened.
    """
    if _packed(text) <= nbytes:
        return text
    mark = "[...] "
    text = text[-nbytes:]  # a character takes a byte at least
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if _packed(text[middle:]) + len(mark) <= nbytes:
            high = middle
        else:
            low = middle + 1
    return mark + text[low:]


def _packed(text: str) -> int:
    return len(json.dumps(text)) - 2  # the quotes


def decode(data: bytes) -> Packet:
    """Return the packet that these bytes are.

    Unknown fields are dropped, an unknown word becomes :class:`Unknown`.

    Raises:
        ProtocolError: Not a packet of ours, or a protocol older than we understand.
    """
    body = _object(data)
    version: Any = body.get("v")
    seq, re, fds = body.get("seq", 0), body.get("re"), body.get("fds", 0)
    word = body.get("type")
    if not _fits(version, int) or not isinstance(word, str) or not _fits(seq, int):
        raise ProtocolError("packet without version, type or sequence number")
    if version < OLDEST_PROTOCOL:
        raise ProtocolError(
            f"the peer speaks protocol {version}, and the oldest understood here is {OLDEST_PROTOCOL}: "
            "install a newer quiesce on the older side (the release's virtualenv, or the supervisor's)"
        )
    if not (re is None or _fits(re, int)) or not _fits(fds, int) or not 0 <= fds <= MAX_FDS:
        raise ProtocolError(f"packet {word[:MAX_WORD_CHARS]!r} has a bad envelope")
    return Packet(_message(word, body), seq, re, fds, version)


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except Exception as exc:
        # ValueError or RecursionError.  But the C decoder imports `json.decoder` to complain with, and
        # in a worker that may be a json.py of the release by now, which raises whatever it likes.
        raise ProtocolError(f"packet of {len(data)} bytes is not JSON: {str(exc)[:200]}") from exc
    if not isinstance(body, dict):
        raise ProtocolError(f"packet is a {type(body).__name__}, not an object")
    return body


def _message(word: str, body: dict[str, Any]) -> Message:
    cls = WORDS.get(word)
    if cls is None:
        return Unknown(word[:MAX_WORD_CHARS])
    fields = {key: value for key, value in body.items() if key in cls._fields and key not in _ENVELOPE}
    missing = [name for name in cls._fields if name not in fields and name not in cls._field_defaults]
    if missing:
        raise ProtocolError(f"message {word!r} lacks {', '.join(missing)}")
    for name, value in fields.items():
        if not _fits(value, cls.__annotations__[name]):
            raise ProtocolError(f"message {word!r}: {name} cannot be {repr(value)[:100]}")
    return cast(Message, cls(**fields))


def _fits(value: Any, wanted: Any) -> bool:
    """Is this JSON value of the annotated type?  As deep as our messages are, and no deeper."""
    if wanted is float:
        # Python's json reads NaN, Infinity and 1e999; an integer of 400 digits overflows later.
        return (type(value) is float and -_INFINITY < value < _INFINITY) or _fits(value, int)
    if wanted is int:
        return type(value) is int and -_INT_LIMIT <= value < _INT_LIMIT  # not isinstance: bool is one
    if wanted in (str, bool):
        return type(value) is wanted
    if wanted == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if wanted == dict[str, float]:
        return isinstance(value, dict) and all(_fits(item, float) for item in value.values())
    if wanted == list[Any] | None:
        return value is None or isinstance(value, list)
    raise AssertionError(f"no message has a field of type {wanted!r}: teach it to encoding._fits")
