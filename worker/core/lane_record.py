"""What travels with a live connection: one packet of a lane, as bytes and back.  Pure.

A packet is the JSON text ``{"v": 2, "c": [[...], ...]}`` with one list for each descriptor beside it, in order:

    [state, since, peer, local, scheme, listener, input]                        version 1
    [state, since, peer, local, scheme, listener, input, requests, digests]     version 2

``since`` is in seconds of CLOCK_MONOTONIC, which all processes of a machine share: when it was accepted (fresh), fell
idle (idle), or when its head began (head).  ``input`` is what was read and not parsed, one character a byte (latin-1).

A rollback means that the older release reads what the newer one wrote, so items are only ever added at
the end; a reader ignores those that it does not know, and whoever writes is told which version all readers know.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import LANE_VERSION, OLDEST_LANE_VERSION
from quiesce.worker.core.request import Address

MAX_CONNECTIONS = 253  # descriptors that a packet carries
MAX_PACKET_BYTES = 64 * 1024
MAX_INPUT_BYTES = 16 * 1024  # a connection with more stays where it is

STATES = ("fresh", "idle", "head")
_ITEMS = {1: 7, 2: 9}  # of a record, by version
_FIXED_BYTES = 128  # of a record without its text: state, numbers at their longest, brackets, quotes
_MOST_REQUESTS = 2**63
_INFINITY = float("inf")

# UTF-8 and not ASCII: a byte above 127 takes two then, and not six.
_encode = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False, allow_nan=False
).encode


class Record(NamedTuple):
    """One connection."""

    state: str  # of STATES
    since: float
    peer: Address
    local: Address
    scheme: str = "http"
    listener: str = ""  # by which it was accepted; "": it came by another way
    input: bytes = b""
    requests: int = 0  # that were answered on it; unknown in version 1
    digests: dict[str, Any] = {}  # counters of digest authentication; nobody may mutate it


def version_for(readers: int) -> int:
    """The version to write for readers of whom the oldest knows this one; 0: they know none that we can write."""
    return min(readers, LANE_VERSION) if readers >= OLDEST_LANE_VERSION else 0


def size(record: Record) -> int:
    """So many bytes of a packet it takes at most."""
    text = record.listener + record.scheme
    for address in (record.peer, record.local):
        if address is not None:
            text += address[0]
    taken = _FIXED_BYTES + len(text) * (2 if text.isascii() and text.isprintable() else 6)
    if record.input:
        taken += len(_encode(record.input.decode("latin-1")).encode())
    if record.digests:
        taken += 6 * len(_encode(record.digests))
    return taken


def encode(records: Sequence[Record], version: int = LANE_VERSION) -> bytes:
    """The packet for these: at most :data:`MAX_CONNECTIONS`, and :data:`MAX_PACKET_BYTES` by :func:`size`."""
    items = _ITEMS[version]
    text = _encode({"v": version, "c": [_positional(record)[:items] for record in records]})
    return text.encode("utf-8", "surrogatepass")  # as json reads it


def _positional(record: Record) -> list[Any]:
    items = list(record)
    items[6] = record.input.decode("latin-1")
    return items


def decode(data: bytes, count: int) -> list[Record]:
    """The connections of a packet that came with ``count`` descriptors.

    A version that is newer than ours is read as far as we know it.

    Raises:
        ProtocolError: It is damaged: nobody can tell which descriptor is whose.
    """
    try:
        body = json.loads(data)
    except Exception as exc:  # see shared/encoding.py: also what is not of the library's tree
        raise ProtocolError(f"a packet of {len(data)} bytes is not JSON: {str(exc)[:200]}") from exc
    if not isinstance(body, dict):
        raise ProtocolError(f"a packet is a {type(body).__name__}, not an object")
    version, records = body.get("v"), body.get("c")
    if type(version) is not int or version < OLDEST_LANE_VERSION:
        raise ProtocolError(f"a packet of version {repr(version)[:20]} cannot be read")
    if not isinstance(records, list) or len(records) != count:
        there = len(records) if isinstance(records, list) else "no"
        raise ProtocolError(f"a packet brings {count} descriptors and {there} records")
    items = _ITEMS[min(version, LANE_VERSION)]
    return [_record(given, items) for given in records]


def _record(given: Any, items: int) -> Record:
    if not isinstance(given, list) or len(given) < items:
        raise ProtocolError(f"a record of {items} items is {repr(given)[:100]}")
    state, since, peer, local, scheme, listener, text, *more = given[:items]
    if (
        state in STATES
        and type(since) in (float, int)
        and -_INFINITY < since < _INFINITY
        and type(scheme) is type(listener) is type(text) is str
        and len(text) <= MAX_INPUT_BYTES
        and (not more or (type(more[0]) is int and 0 <= more[0] < _MOST_REQUESTS and type(more[1]) is dict))
    ):
        try:
            input_ = text.encode("latin-1")
            return Record(
                state, float(since), _address(peer), _address(local), scheme, listener, input_, *more
            )
        except (OverflowError, UnicodeError):
            pass  # an integer of 400 digits; a character that is no byte
    raise ProtocolError(f"a record is not understood: {repr(given)[:100]}")


def _address(given: Any) -> Address:
    if given is None:
        return None
    if type(given) is not list or len(given) != 2 or type(given[0]) is not str or type(given[1]) is not int:
        raise ProtocolError(f"an address is {repr(given)[:100]}")
    return given[0], given[1]
