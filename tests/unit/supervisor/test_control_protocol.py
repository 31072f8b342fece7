"""The bytes on the control socket: what one end writes the other reads, and nothing else passes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.errors import ProtocolError
from quiesce.supervisor.control_protocol import (
    MAX_REQUEST_BYTES,
    Progress,
    Request,
    Result,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

ID = "0123456789abcdef0123456789abcdef"
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@given(st.text(min_size=1, max_size=20), OBJECTS)
def test_a_request_survives_the_wire_as_one_line(command: str, args: dict[str, Any]) -> None:
    line = encode_request(Request(ID, command, args))
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode_request(line) == Request(ID, command, args)


@given(st.text(max_size=50), st.text(max_size=50), OBJECTS, st.integers(0, 255))
def test_replies_survive_the_wire_as_one_line(
    text: str, detail: str, data: dict[str, Any], code: int
) -> None:
    for reply in (Progress(text, data), Result(code, text, detail, data)):
        line = encode_reply(ID, reply)
        assert line.count(b"\n") == 1
        assert decode_reply(line) == reply


def test_a_path_that_is_no_utf8_survives() -> None:
    path = b"/srv/\xff".decode("utf-8", "surrogateescape")
    assert decode_request(encode_request(Request(ID, "upgrade", {"release": path}))).args["release"] == path


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoders_raise_anything_else(line: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(line)
        except ProtocolError as exc:
            assert str(exc)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "one JSON object"),
        (b"[]", "one JSON object"),
        (b"{", "one JSON object"),
        (b"\xff\xfe", "one JSON object"),
        (b"[" * 100_000, "one JSON object"),
        (
            json.dumps({"v": 2, "id": ID, "command": "status"}).encode(),
            "version 1 of the control protocol, not 2",
        ),
        (json.dumps({"v": 1, "command": "status"}).encode(), "needs an id"),
        (json.dumps({"v": 1, "id": "x" * 65, "command": "status"}).encode(), "needs an id"),
        (json.dumps({"v": 1, "id": ID, "command": 5}).encode(), "needs a command"),
        (json.dumps({"v": 1, "id": ID, "command": "x", "args": []}).encode(), "needs a command"),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(line: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode_request(line)


def test_unknown_keys_and_kinds_of_a_newer_version_are_ignored() -> None:
    request = {"v": 1, "id": ID, "command": "status", "colour": "green"}
    assert decode_request(json.dumps(request).encode()).command == "status"
    assert decode_reply(b'{"v":1,"kind":"heartbeat"}') is None


def test_a_request_that_no_supervisor_would_read_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="longer than"):
        encode_request(Request(ID, "upgrade", {"label": "x" * MAX_REQUEST_BYTES}))


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"result","text":"x"}',
        b'{"kind":"result","code":true,"text":"x"}',
        b'{"kind":"progress","text":5}',
        b'{"kind":"progress","text":"","data":[]}',
    ],
)
def test_what_is_no_reply_is_an_error(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="needs"):
        decode_reply(line)
