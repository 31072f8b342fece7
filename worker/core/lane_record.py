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
import json.encoder
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import LANE_VERSION, OLDEST_LANE_VERSION
from quiesce.worker.core.request import Address

MAX_CONNECTIONS = 253  # descriptors that a packet carries
MAX_PACKET_BYTES = 64 * 1024
ENVELOPE_BYTES = 32
MAX_INPUT_BYTES = 16 * 1024  # a connection with more stays where it is

STATES = ("fresh", "idle", "head")
_MOST_REQUESTS = 2**63
_INFINITY = float("inf")

# UTF-8 and not ASCII: a byte above 127 takes two then, and not six.
_string: Callable[[str], str] = json.encoder.encode_basestring


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


def write(record: Record, version: int = LANE_VERSION) -> bytes:
    """One record, for :func:`packet`."""
    # Not json.dumps: ten thousand of these are written in a breath, and this takes a third of the time.
    state, since, peer, local, scheme, listener, input_, requests, digests = record
    text = (
        f'["{state}",{since:.6f},{_written(peer)},{_written(local)},{_string(scheme)},{_string(listener)},'
        f"{_string(input_.decode('latin-1')) if input_ else _EMPTY}"
    )
    if version >= 2:
        text += f",{requests},{json.dumps(digests) if digests else _NONE}"
    return (text + "]").encode("utf-8", "surrogatepass")  # as json reads it


_EMPTY, _NONE = '""', "{}"


def _written(address: Address) -> str:
    return "null" if address is None else f"[{_string(address[0])},{address[1]}]"


def packet(written: Sequence[bytes], version: int = LANE_VERSION) -> bytes:
    """The packet of these: at most :data:`MAX_CONNECTIONS`, and :data:`ENVELOPE_BYTES` more than they have, with
    a comma for each."""
    return b'{"v":%d,"c":[%s]}' % (version, b",".join(written))


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
    return [_record(given, version) for given in records]


def _record(given: Any, version: int) -> Record:
    try:
        if version == 1:
            given = [*given[:7], 0, {}]
        # What a newer version adds is behind these.
        state, since, peer, local, scheme, listener, text, requests, digests = given[:9]
        if (
            state in STATES
            and (type(since) is float or type(since) is int)
            and -_INFINITY < since < _INFINITY
            and type(scheme) is type(listener) is type(text) is str
            and len(text) <= MAX_INPUT_BYTES
            and type(requests) is int
            and 0 <= requests < _MOST_REQUESTS
            and type(digests) is dict
        ):
            input_ = text.encode("latin-1") if text else b""
            return Record(
                state,
                float(since),
                _address(peer),
                _address(local),
                scheme,
                listener,
                input_,
                requests,
                digests,
            )
    except (ValueError, TypeError, OverflowError):
        # Too few items, or none at all; a character that is no byte; an integer of 400 digits.
        pass
    raise ProtocolError(f"a record is not understood: {repr(given)[:100]}")


def _address(given: Any) -> Address:
    if given is None:
        return None
    host, port = given
    if type(given) is not list or type(host) is not str or type(port) is not int:
        raise ValueError("an address is a host and a port")
    return host, port
