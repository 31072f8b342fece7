"""What travels with a connection arrives as it was sent, in every version, and damage is noticed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import LANE_VERSION, OLDEST_LANE_VERSION
from quiesce.worker.core import lane_record
from quiesce.worker.core.lane_record import (
    ENVELOPE_BYTES,
    MAX_CONNECTIONS,
    MAX_INPUT_BYTES,
    MAX_PACKET_BYTES,
    STATES,
    Record,
    decode,
    packet,
    version_for,
    write,
)

# As the first release wrote them.  Never changed: a process of that release may be at the other end.
RECORDED = {
    1: (
        b'{"v":1,"c":[["idle",1234.500000,["192.0.2.7",40000],["192.0.2.1",80],"http","web",""],'
        b'["head",7.250000,null,null,"http","unix","GET /\\r\\nX: \xc3\xa9"]]}'
    ),
    2: (
        b'{"v":2,"c":[["idle",1234.500000,["192.0.2.7",40000],["192.0.2.1",80],"http","web","",12,{}],'
        b'["head",7.250000,null,null,"http","unix","GET /\\r\\nX: \xc3\xa9",0,{}]]}'
    ),
}
MEANT = [
    Record("idle", 1234.5, ("192.0.2.7", 40000), ("192.0.2.1", 80), "http", "web", b"", 12),
    Record("head", 7.25, None, None, "http", "unix", b"GET /\r\nX: \xe9", 0),
]


def encode(given: list[Record], version: int = LANE_VERSION) -> bytes:
    return packet([write(record, version) for record in given], version)


addresses = st.none() | st.tuples(st.text(max_size=45), st.integers(0, 65535))
records = st.builds(
    Record,
    st.sampled_from(STATES),
    st.floats(0, 1e9).map(lambda since: round(since, 6)),
    addresses,
    addresses,
    st.sampled_from(("http", "https")),
    st.text(max_size=60),
    st.binary(max_size=200) | st.binary(min_size=MAX_INPUT_BYTES, max_size=MAX_INPUT_BYTES),
    st.integers(0, 2**63 - 1),
    st.just({}),
)


def known_to(version: int, record: Record) -> Record:
    return record._replace(requests=0) if version == 1 else record


@pytest.mark.parametrize("version", RECORDED)
def test_recorded_bytes_are_read_and_written_for_ever(version: int) -> None:
    assert decode(RECORDED[version], 2) == [known_to(version, record) for record in MEANT]
    assert encode(MEANT, version) == RECORDED[version]


def test_every_version_has_its_recorded_bytes() -> None:
    assert set(RECORDED) == set(range(OLDEST_LANE_VERSION, LANE_VERSION + 1))


@given(st.lists(records, min_size=1, max_size=20), st.sampled_from(sorted(RECORDED)))
def test_what_is_written_is_read(given_: list[Record], version: int) -> None:
    assert decode(encode(given_, version), len(given_)) == [known_to(version, record) for record in given_]


@given(st.lists(records, max_size=5), st.sampled_from(sorted(RECORDED)))
def test_a_packet_is_as_large_as_its_parts(given_: list[Record], version: int) -> None:
    parts = [write(record, version) for record in given_]
    assert len(packet(parts, version)) <= ENVELOPE_BYTES + sum(len(part) + 1 for part in parts)


def test_a_full_packet_of_usual_connections_has_room_for_all() -> None:
    usual = Record(
        "idle", 123456.789, ("fe80::1234:5678:9abc:def0", 40000), ("192.168.100.200", 443), "https"
    )
    assert MAX_CONNECTIONS * (len(write(usual)) + 1) + ENVELOPE_BYTES <= MAX_PACKET_BYTES


@given(st.integers(-3, 2000))
def test_the_version_is_one_that_all_know(readers: int) -> None:
    version = version_for(readers)
    assert (version == 0) == (readers < OLDEST_LANE_VERSION)
    assert version <= LANE_VERSION
    assert version <= max(readers, 0)


def test_what_a_newer_version_adds_is_ignored() -> None:
    body = json.loads(RECORDED[2])
    for record in body["c"]:
        record.append({"newer": True})
    assert decode(json.dumps(body).encode(), 2) == MEANT
    body["v"] = 7
    assert decode(json.dumps(body).encode(), 2) == MEANT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(STATES),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from("vcx"), inner, max_size=3),
    max_leaves=30,
)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()), st.integers(0, 3))
def test_nonsense_is_refused_with_one_kind_of_error(data: bytes, count: int) -> None:
    try:
        found = decode(data, count)
    except ProtocolError:
        return
    assert len(found) == count


@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_a_damaged_packet_is_refused_or_is_a_whole_one(version: int, data: st.DataObject) -> None:
    packet = bytearray(RECORDED[version])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packet) - 1))
        packet[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        found = decode(bytes(packet), 2)
    except ProtocolError:
        return
    assert len(found) == 2
    for record in found:
        encode([record])  # whatever it is now, it can go on to others
        assert record.state in STATES and len(record.input) <= MAX_INPUT_BYTES


@given(json_values, st.integers(0, 8))
def test_a_record_with_one_wrong_item_is_refused_or_fits(value: object, item: int) -> None:
    body = json.loads(RECORDED[2])
    body["c"][0][item] = value
    try:
        found = decode(json.dumps(body).encode(), 2)
    except ProtocolError:
        return
    assert encode([found[0]])


@pytest.mark.parametrize(
    "record",
    [
        ["idle", float("nan"), None, None, "http", "", "", 0, {}],
        ["idle", float("inf"), None, None, "http", "", "", 0, {}],
        ["idle", 10**400, None, None, "http", "", "", 0, {}],
        ["idle", True, None, None, "http", "", "", 0, {}],
        ["working", 1.0, None, None, "http", "", "", 0, {}],
        ["idle", 1.0, ["a"], None, "http", "", "", 0, {}],
        ["idle", 1.0, ["a", "b"], None, "http", "", "", 0, {}],
        ["idle", 1.0, None, None, "http", "", "\u0100", 0, {}],
        ["idle", 1.0, None, None, "http", "", "x" * (MAX_INPUT_BYTES + 1), 0, {}],
        ["idle", 1.0, None, None, "http", "", "", -1, {}],
        ["idle", 1.0, None, None, "http", "", "", 0, []],
        ["idle", 1.0, None, None, "http", ""],
    ],
)
def test_what_no_connection_can_be_is_refused(record: list[object]) -> None:
    with pytest.raises(ProtocolError):
        decode(json.dumps({"v": 2, "c": [record]}).encode(), 1)


def test_counts_must_agree() -> None:
    for count in (0, 1, 3):
        with pytest.raises(ProtocolError, match="descriptors"):
            decode(RECORDED[2], count)


def test_the_states_are_those_of_the_table() -> None:
    from quiesce.worker.core.connection import State

    assert {State(name).value for name in lane_record.STATES} == set(lane_record.STATES)
