"""What a packet may hold, what is refused, and what later versions must go on reading."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest

from quiesce.shared import encoding, messages
from quiesce.shared.encoding import MAX_FDS, MAX_PACKET_BYTES, Packet, clip, decode, encode
from quiesce.shared.errors import ProtocolError
from quiesce.shared.messages import (
    MAX_DETAIL_BYTES,
    WORD_OF,
    WORDS,
    Accept,
    Configure,
    Drain,
    Drained,
    Failed,
    Hello,
    Listen,
    Message,
    Probe,
    Quiesce,
    Ready,
    Unknown,
    Unlisten,
    descriptors,
)

# Packets as version 0.1.0 wrote them.  Never edit one; a new protocol adds its own list, and the
# lists of protocol N and N-1 stay.
PROTOCOL_1: list[tuple[bytes, Packet]] = [
    (
        b'{"v":1,"type":"hello","seq":1,"protocol":1,"oldest_protocol":1,"version":"0.1.0",'
        b'"python":"3.11.7","pid":811,"worker":"","release":"","state":"starting"}',
        Packet(Hello(1, 1, "0.1.0", "3.11.7", 811), 1, None, 0, 1),
    ),
    (
        b'{"v":1,"type":"hello","seq":9,"re":4,"protocol":1,"oldest_protocol":1,"version":"0.1.0",'
        b'"python":"3.11.7","pid":811,"worker":"r42/1","release":"r42","state":"accepting"}',
        Packet(Hello(1, 1, "0.1.0", "3.11.7", 811, "r42/1", "r42", "accepting"), 9, 4, 0, 1),
    ),
    (
        b'{"v":1,"type":"ready","seq":2,"interface":"wsgi","after_s":0.41,"threads":4}',
        Packet(messages.Ready("wsgi", 0.41, 4), 2, None, 0, 1),
    ),
    (b'{"v":1,"type":"accepting","seq":3,"re":5}', Packet(messages.Accepting(), 3, 5, 0, 1)),
    (b'{"v":1,"type":"quiesced","seq":4,"re":6,"connections":17}', Packet(messages.Quiesced(17), 4, 6, 0, 1)),
    (b'{"v":1,"type":"resumed","seq":5,"re":7}', Packet(messages.Resumed(), 5, 7, 0, 1)),
    (b'{"v":1,"type":"drained","seq":6,"cut":2}', Packet(Drained(2), 6, None, 0, 1)),
    (
        b'{"v":1,"type":"failed","seq":2,"reason":"cannot import shop.wsgi","detail":"Traceback\\n  \\u00e9"}',
        Packet(Failed("cannot import shop.wsgi", "Traceback\n  é"), 2, None, 0, 1),
    ),
    (b'{"v":1,"type":"identify","seq":1}', Packet(messages.Identify(), 1, None, 0, 1)),
    (
        b'{"v":1,"type":"configure","seq":4,"name":"shop","release":"r42","label":"v2","worker":"r42/1",'
        b'"app":"shop.wsgi:app","interface":"auto","app_dir":"/srv/\\udcff","threads":4,"start_timeout_s":30,'
        b'"exit_timeout_s":5.0,"request_timeout_s":0.0,"limits":{"max_body":1048576,"idle_timeout":75.0},'
        b'"log_level":"info"}',
        Packet(
            Configure(
                "shop", "r42", "v2", "r42/1", "shop.wsgi:app", "auto", "/srv/\udcff", 4, 30, 5.0, 0.0,
                {"max_body": 1048576, "idle_timeout": 75.0}, "info",
            ),
            4, None, 0, 1,
        ),
    ),
    (
        b'{"v":1,"type":"listen","seq":2,"fds":2,"names":["http","admin"]}',
        Packet(Listen(["http", "admin"]), 2, None, 2, 1),
    ),
    (b'{"v":1,"type":"unlisten","seq":8,"names":["admin"]}', Packet(Unlisten(["admin"]), 8, None, 0, 1)),
    (b'{"v":1,"type":"scoreboard","seq":3,"fds":1,"slot":7}', Packet(messages.UseScoreboard(7), 3, None, 1, 1)),
    (b'{"v":1,"type":"log","seq":11,"fds":1}', Packet(messages.UseLog(), 11, None, 1, 1)),
    (
        b'{"v":1,"type":"probe","seq":5,"fds":1,"peer":["127.0.0.1",0],"local":["shop.example",443],'
        b'"scheme":"https"}',
        Packet(Probe(["127.0.0.1", 0], ["shop.example", 443], "https"), 5, None, 1, 1),
    ),
    (
        b'{"v":1,"type":"probe","seq":5,"fds":1,"peer":null,"local":null,"scheme":"http"}',
        Packet(Probe(), 5, None, 1, 1),
    ),
    (b'{"v":1,"type":"accept","seq":6}', Packet(Accept(), 6, None, 0, 1)),
    (b'{"v":1,"type":"quiesce","seq":7}', Packet(Quiesce(), 7, None, 0, 1)),
    (b'{"v":1,"type":"resume","seq":8}', Packet(messages.Resume(), 8, None, 0, 1)),
    (b'{"v":1,"type":"drain","seq":9,"timeout_s":30.0}', Packet(Drain(30.0), 9, None, 0, 1)),
    (b'{"v":1,"type":"lane","seq":12,"fds":1,"names":["r42"]}', Packet(messages.UseLane(["r42"]), 12, None, 1, 1)),
    (
        b'{"v":1,"type":"quiesce","seq":13,"fds":2,"lane":"r43","lane_version":2,"readers":4}',
        Packet(Quiesce("r43", 2, 4), 13, None, 2, 1),
    ),
    (
        b'{"v":1,"type":"shed","seq":14,"fds":2,"most":32,"lane":"r42","lane_version":1,"readers":4}',
        Packet(messages.Shed(32, "r42", 1, 4), 14, None, 2, 1),
    ),
    (
        b'{"v":1,"type":"handed-over","seq":15,"moved":500,"left":3}',
        Packet(messages.HandedOver(500, 3), 15, None, 0, 1),
    ),
    (
        b'{"v":1,"type":"replace-me","seq":16,"why":"SIGTERM"}',
        Packet(messages.ReplaceMe("SIGTERM"), 16, None, 0, 1),
    ),
    (b'{"v":1,"type":"replacing","seq":17}', Packet(messages.Replacing(), 17, None, 0, 1)),
    (b'{"v":1,"type":"shutdown","seq":10}', Packet(messages.Shutdown(), 10, None, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "packet"), PROTOCOL_1, ids=lambda value: None)
def test_packets_of_protocol_1_are_read_for_ever(data: bytes, packet: Packet) -> None:
    read = decode(data)
    assert type(read.message) is type(packet.message)
    assert read == packet  # a field that was added since has its default, here and there


def test_what_was_added_to_protocol_1_since() -> None:
    hello = Hello(1, 1, "0.2.0", "3.11.7", 811, "r42/1", "r42", "accepting", "wsgi", 4)
    assert decode(encode(Packet(hello, 9, 4))).message == hello
    conf = Configure("shop", "r42", "v2", "r42/1", "shop", "auto", "/srv", 4, 30, 5.0, ready_path="/ready")
    assert decode(encode(Packet(conf, 4))).message == conf
    drain = Drain(30.0, idle_s=1.0)
    assert decode(encode(Packet(drain, 5))).message == drain


def test_every_word_of_protocol_1_is_among_them() -> None:
    assert {json.loads(data)["type"] for data, _ in PROTOCOL_1} >= set(WORDS)


def test_what_this_version_writes() -> None:
    """The very bytes: what an older peer finds in a packet is not left to chance."""
    assert encode(Packet(Listen(["a", "é"]), 7, 6, 2)) == (
        b'{"v":1,"type":"listen","seq":7,"re":6,"fds":2,"names":["a","\\u00e9"]}'
    )
    assert encode(Packet(Accept(), 1)) == b'{"v":1,"type":"accept","seq":1}'


# -- what is not known ------------------------------------------------------------------


def test_an_unknown_word() -> None:
    packet = decode(b'{"v":1,"type":"unheard-of","seq":4,"re":2,"fds":3,"excess":10}')
    assert packet == Packet(Unknown("unheard-of"), 4, 2, 3, 1)
    assert descriptors(packet.message) is None


def test_an_unknown_word_is_only_kept_as_far_as_it_can_be_logged() -> None:
    assert decode(json.dumps({"v": 1, "type": "x" * 60_000, "seq": 1}).encode()).message == Unknown("x" * 64)


def test_unknown_fields_are_dropped() -> None:
    packet = decode(b'{"v":1,"type":"drain","seq":4,"timeout_s":2,"politely":true,"cookie":"x"}')
    assert packet.message == Drain(2)


def test_a_missing_field_with_a_default_has_it() -> None:
    assert decode(b'{"v":1,"type":"ready","seq":1,"interface":"asgi"}').message == Ready("asgi", 0.0, 1)


def test_a_missing_field_without_one() -> None:
    with pytest.raises(ProtocolError, match="'configure' lacks release, label"):
        decode(b'{"v":1,"type":"configure","seq":1,"name":"shop"}')


@pytest.mark.parametrize(
    "body",
    [
        {"type": "drain", "timeout_s": "30"},
        {"type": "drain", "timeout_s": None},
        {"type": "drain", "timeout_s": True},
        {"type": "drain", "timeout_s": [1]},
        {"type": "drain", "timeout_s": float("inf")},
        {"type": "drain", "timeout_s": float("nan")},
        {"type": "drain", "timeout_s": 10**400},
        {"type": "drained", "cut": 1.5},
        {"type": "drained", "cut": True},
        {"type": "drained", "cut": 2**63},
        {"type": "listen", "names": "http"},
        {"type": "listen", "names": ["http", 7]},
        {"type": "listen", "names": {"http": 1}},
        {"type": "failed", "reason": 5},
        {"type": "failed", "reason": ["x" * 5000]},
        {"type": "probe", "peer": "127.0.0.1"},
        {"type": "probe", "peer": 0},
        {
            "type": "configure", "name": "", "release": "", "label": "", "worker": "", "app": "", "interface": "",
            "app_dir": "", "threads": 1, "start_timeout_s": 1, "exit_timeout_s": 1, "limits": {"max_body": "1M"},
        },
    ],
    ids=lambda body: f"{body['type']}-{list(body.values())[-1]!r:.12}",
)  # fmt: skip
def test_a_field_of_the_wrong_type(body: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=f"message '{body['type']}'") as caught:
        decode(json.dumps({"v": 1, "seq": 1, **body}).encode())
    assert len(str(caught.value)) < 200


def test_a_number_that_is_written_with_an_exponent() -> None:
    with pytest.raises(ProtocolError, match="timeout_s"):
        decode(b'{"v":1,"type":"drain","seq":1,"timeout_s":1e999}')


@pytest.mark.parametrize(
    "data",
    [
        b"", b"nonsense", b"\xff\xfe", b"[]", b'"accept"', b"null", b"1", b"{}", b"[" * 60_000,
        b"1" * 60_000,
        b'{"v":1,"type":"accept"', b'{"v":1,"type":"accept","seq":"1"}', b'{"v":1,"type":"accept","seq":true}',
        b'{"v":"1","type":"accept","seq":1}', b'{"v":true,"type":"accept","seq":1}', b'{"type":"accept","seq":1}',
        b'{"v":1,"seq":1}', b'{"v":1,"type":["accept"],"seq":1}', b'{"v":1,"type":"accept","seq":1.5}',
        b'{"v":1,"type":"accept","seq":1,"re":"1"}', b'{"v":1,"type":"accept","seq":1,"fds":-1}',
        b'{"v":1,"type":"accept","seq":1,"fds":254}', b'{"v":1,"type":"accept","seq":1,"fds":true}',
        b'{"v":1,"type":"accept","seq":1,"fds":null}', b'{"v":1,"type":"accept","seq":99999999999999999999}',
    ],
    ids=lambda data: repr(data[:60]),
)  # fmt: skip
def test_not_a_packet_of_ours(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert len(str(caught.value)) < 300


def test_a_json_py_in_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's is in sys.modules by then, and the C decoder looks its exception up there."""
    monkeypatch.setitem(sys.modules, "json", ModuleType("json"))
    monkeypatch.setitem(sys.modules, "json.decoder", ModuleType("json.decoder"))
    with pytest.raises(ProtocolError, match="is not JSON"):
        decode(b'{"v')
    assert decode(encode(Packet(Drain(1.5)))).message == Drain(1.5)


# -- versions ---------------------------------------------------------------------------


def test_an_older_protocol_is_refused_with_a_sentence_that_says_what_to_do() -> None:
    with pytest.raises(ProtocolError, match=r"protocol 0, and the oldest .* is 1: install a newer quiesce"):
        decode(b'{"v":0,"type":"accept","seq":1}')


def test_the_protocol_before_this_one_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "OLDEST_PROTOCOL", 4)  # this would be 5
    assert decode(b'{"v":4,"type":"accept","seq":1}').version == 4
    with pytest.raises(ProtocolError, match="protocol 3, and the oldest understood here is 4"):
        decode(b'{"v":3,"type":"accept","seq":1}')


def test_a_newer_protocol_is_understood_as_far_as_it_goes() -> None:
    """Whether the newer side still speaks ours, it says itself: `oldest_protocol` in its hello."""
    assert decode(b'{"v":2,"type":"accept","seq":1,"gently":1}') == Packet(Accept(), 1, None, 0, 2)


def test_one_version_back_is_kept() -> None:
    assert messages.PROTOCOL - 1 <= messages.OLDEST_PROTOCOL <= messages.PROTOCOL


# -- limits -----------------------------------------------------------------------------


def test_the_largest_packet() -> None:
    frame = len(encode(Packet(Unlisten([""]))))
    assert len(encode(Packet(Unlisten(["x" * (MAX_PACKET_BYTES - frame)])))) == MAX_PACKET_BYTES
    with pytest.raises(ProtocolError, match=f"'unlisten' has {MAX_PACKET_BYTES + 1} bytes"):
        encode(Packet(Unlisten(["x" * (MAX_PACKET_BYTES - frame + 1)])))


def test_more_descriptors_than_a_packet_carries() -> None:
    encode(Packet(Listen([""] * MAX_FDS), 1, None, MAX_FDS))
    with pytest.raises(ProtocolError, match=f"254 descriptors; a packet carries {MAX_FDS}"):
        encode(Packet(Listen([""] * 254), 1, None, 254))


def test_a_number_that_json_does_not_have() -> None:
    with pytest.raises(ProtocolError, match="'drain' cannot be written"):
        encode(Packet(Drain(float("nan"))))


@pytest.mark.parametrize("char", ["x", "\x1b", "é", "漢", "\U0001f600", "\udcff", '"'])
def test_a_failure_can_always_be_told(char: str) -> None:
    """16 Ki characters of Chinese source in a traceback are 96 KiB in a packet."""
    data = encode(Packet(Failed(char * 20_000, char * 200_000 + "KeyError: 'DATABASE_URL'")))
    message = decode(data).message
    assert isinstance(message, Failed)
    assert message.detail.startswith("[...] " + char) and message.detail.endswith("KeyError: 'DATABASE_URL'")
    assert len(json.dumps(message.detail)) - 2 > MAX_DETAIL_BYTES - 30  # no more lost than must be


def test_clip_leaves_alone_what_fits() -> None:
    assert clip("", 10) == ""
    assert clip("0123456789", 10) == "0123456789"
    assert clip("0123456789a", 10) == "[...] 789a"


def test_a_path_that_is_not_utf_8_goes_through() -> None:
    name = b"/srv/caf\xe9".decode("utf-8", "surrogateescape")
    assert decode(encode(Packet(Unlisten([name])))).message == Unlisten([name])


# -- the table of messages --------------------------------------------------------------


def test_no_field_has_a_name_of_the_envelope() -> None:
    for cls in WORDS.values():
        assert not set(cls._fields) & encoding._ENVELOPE, cls


def test_every_type_of_field_is_checked() -> None:
    for cls in WORDS.values():
        for name in cls._fields:
            encoding._fits(None, cls.__annotations__[name])  # an AssertionError says what is missing


def test_every_message_has_one_word() -> None:
    assert set(Message.__args__) == {*WORDS.values(), Unknown}
    assert {cls: word for word, cls in WORDS.items()} == WORD_OF


def test_messages_are_told_apart_by_type_only() -> None:
    """The trap of named tuples, which the docstring of messages.py warns of."""
    assert Accept() == messages.Resume() and not Accept()
    assert type(Accept()) is not type(messages.Resume())
