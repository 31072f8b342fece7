"""Whatever a message holds goes through; whatever comes in is a message or a ProtocolError."""

import json
import math
from collections.abc import Iterator
from typing import Any, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.shared.encoding import MAX_FDS, MAX_PACKET_BYTES, Packet, clip, decode, encode
from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import PROTOCOL, WORDS, Failed, Message, Unknown

TEXT = st.text(st.characters(), max_size=40)  # lone surrogates too: paths that are not UTF-8
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: NUMBER,
    str: TEXT,
    list[str]: st.lists(TEXT, max_size=5),
    dict[str, float]: st.dictionaries(TEXT, NUMBER, max_size=5),
    list[Any] | None: st.none() | st.tuples(TEXT, st.integers(0, 65535)).map(list),
}


def message_of(cls: type[Any]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(cls)
    return st.builds(cls, *(BY_TYPE[hints[name]] for name in cls._fields))


MESSAGES = st.sampled_from(list(WORDS.values())).flatmap(message_of)
PACKETS = st.builds(
    Packet,
    MESSAGES,
    st.integers(0, 2**62),
    st.none() | st.integers(0, 2**62),
    st.integers(0, MAX_FDS),
    st.just(PROTOCOL),
)


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from numbers_in(item)


@settings(max_examples=100, deadline=None)
@given(PACKETS)
def test_a_packet_comes_back_as_it_was(packet: Packet) -> None:
    data = encode(packet)
    assert data.isascii() and len(data) <= MAX_PACKET_BYTES
    assert decode(data) == packet
    assert type(decode(data).message) is type(packet.message)


@settings(max_examples=100, deadline=None)
@given(PACKETS, st.dictionaries(TEXT.map(lambda name: "x_" + name), JSON, max_size=3))
def test_what_a_later_version_adds_changes_nothing(packet: Packet, more: dict[str, Any]) -> None:
    body = json.loads(encode(packet)) | more
    assert decode(json.dumps(body).encode()) == packet


def bounded(packet: Packet) -> bool:
    if isinstance(packet.message, Unknown):
        return len(packet.message.type) <= 64
    hints = get_type_hints(type(packet.message))
    return all(
        math.isfinite(number) and (isinstance(number, float) or abs(number) <= 2**63)
        for name, value in zip(packet.message._fields, packet.message, strict=True)
        if hints[name] in (int, float, dict[str, float])
        for number in numbers_in(value)
    )


@settings(max_examples=150, deadline=None)
@given(MESSAGES, st.data())
def test_a_damaged_packet_is_refused_or_harmless(message: Message, data: st.DataObject) -> None:
    body = json.loads(encode(Packet(message, 1)))
    name = data.draw(st.sampled_from(sorted(body)))
    body[name] = data.draw(JSON)
    try:
        packet = decode(json.dumps(body).encode())
    except ProtocolError as exc:
        assert 0 < len(str(exc)) < 300
    else:
        assert bounded(packet) and 0 <= packet.fds <= MAX_FDS


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.integers(10, 200))
def test_clip_keeps_as_much_of_the_end_as_fits(text: str, nbytes: int) -> None:
    clipped = clip(text, nbytes)
    assert len(json.dumps(clipped)) - 2 <= nbytes
    if clipped != text:
        assert clipped.startswith("[...] ") and text.endswith(clipped[6:])
        longer = "[...] " + text[len(text) - len(clipped) + 5 :]
        assert len(json.dumps(longer)) - 2 > nbytes


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=20), st.integers(1, 20_000))
def test_a_failure_always_fits(text: str, times: int) -> None:
    assert isinstance(decode(encode(Packet(Failed(text * times, text * times)))).message, Failed)
