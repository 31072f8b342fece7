"""Bodies come out as they went in, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quiesce.worker.core import body_framing
from quiesce.worker.core.body_framing import ChunkedDecoder, LengthDecoder, body_length, decoder
from quiesce.worker.core.rejected import Rejected


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(c % (len(data) + 1) for c in cuts)
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def _feed(made: LengthDecoder | ChunkedDecoder, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """(payload, what is left over); feeds like a connection does, which keeps what comes after the end."""
    payload, rest = b"", b""
    for piece in pieces:
        if made.done:
            rest += piece
            continue
        payload += made.feed(piece)
        if made.done:
            rest = made.rest
    return payload, rest


@given(st.binary(max_size=300), st.binary(max_size=50), st.lists(st.integers(0, 1000), max_size=6))
def test_length(body: bytes, tail: bytes, cuts: list[int]) -> None:
    assert _feed(decoder(len(body), 0, 100), _cut(body + tail, cuts)) == (body, tail)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.sampled_from([b"", b";a", b";a=b", b';a="b c"']),
    st.lists(st.sampled_from([b"X: y", b"Z:"]), max_size=3),
    st.binary(max_size=50),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_chunked(
    chunks: list[bytes], ext: bytes, trailers: list[bytes], tail: bytes, cuts: list[int]
) -> None:
    data = b"".join(b"%x%s\r\n%s\r\n" % (len(c), ext, c) for c in chunks) + b"0%s\r\n" % ext
    data += b"".join(line + b"\r\n" for line in trailers) + b"\r\n"
    assert _feed(decoder(-1, 0, 100), _cut(data + tail, cuts)) == (b"".join(chunks), tail)


@given(st.binary(max_size=60), st.lists(st.integers(0, 1000), max_size=4))
def test_any_bytes_get_the_same_verdict_in_any_cut(data: bytes, cuts: list[int]) -> None:
    verdicts: list[object] = []
    for pieces in ([data], _cut(data, cuts)):
        try:
            verdicts.append(_feed(ChunkedDecoder(30, 20), pieces))
        except Rejected as rejected:
            verdicts.append(rejected.status)
    assert verdicts[0] == verdicts[1]


@given(
    st.lists(
        st.sampled_from(
            [b"3\r\nabc\r\n", b"03\r\nabc\r\n", b"1\r\n\r\r\n", b"3;x\r\nabc\r\n", b"3\r\nabc\r", b"+3\r\n", b"0_3\r\n",
             b"0\r\n\r\n", b"0\r\n", b"\r\n", b"a", b"00000000000003\r\nabc\r\n", b"0000000000000003\r\nabc\r\n",
             b"1e\r\n"]
        ),
        max_size=12,
    )
)  # fmt: skip
def test_chunks_that_are_all_there_are_judged_like_their_bytes_one_by_one(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    verdicts: list[object] = []
    for cut in ([data], [data[at : at + 1] for at in range(len(data))]):
        made = ChunkedDecoder(7, 20)
        try:
            verdicts.append((*_feed(made, cut), made.done))
        except Rejected as rejected:
            verdicts.append(str(rejected))
    assert verdicts[0] == verdicts[1]


@given(st.integers(0, 10**30), st.integers(0, 5000))
@example(10**18 - 1, 0)
@example(10**18, 0)
@example(2**64 + 3, 20)
def test_lengths_are_what_they_say_or_refused(length: int, zeros: int) -> None:
    value = b"0" * zeros + b"%d" % length
    if length < 10**18:
        assert body_length("1.1", [], [value], 0) == length
    else:
        with pytest.raises(Rejected, match="larger than anything"):
            body_length("1.1", [], [value], 0)


def test_chunks_may_not_be_mostly_wrapping() -> None:
    """Extensions of one byte's chunks are bounded together (RFC 9112 §7.1.1), and those of large ones are not."""
    made = ChunkedDecoder(0, 100)
    with pytest.raises(Rejected, match="extensions"):
        for _ in range(100):
            made.feed(b"1;x=" + b"y" * 240 + b"\r\na\r\n")
    made = ChunkedDecoder(0, 100)
    for _ in range(1000):  # signed chunks, as storage clients send them
        made.feed(b"2000;chunk-signature=" + b"f" * 64 + b"\r\n" + b"x" * 0x2000 + b"\r\n")
    for _ in range(10_000):
        made.feed(b"1\r\na\r\n")
    made.feed(b"0\r\n\r\n")
    assert made.done


@given(
    st.lists(
        st.sampled_from([b"3", b"a", b"\r\n", b"\r", b"\n", b";", b"0", b"abc", b"x: y", b" "]), max_size=14
    )
)
def test_nothing_but_crlf_ends_a_line(pieces: list[bytes]) -> None:
    """Whatever is decoded completely can be read by the letter of RFC 9112 §7.1."""
    data = b"".join(pieces)
    made = ChunkedDecoder(0, 1000)
    try:
        payload = made.feed(data)
    except Rejected:
        return
    if not made.done:
        return
    used = data[: len(data) - len(made.rest)]
    want = b""
    while True:
        line, _, used = used.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        want += used[:size]
        assert used[size : size + 2] == b"\r\n"
        used = used[size + 2 :]
    assert payload == want and used.endswith(b"\r\n")


def test_a_trailer_that_comes_byte_by_byte_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    check = body_framing._check_text

    def counting(part: bytes) -> None:
        nonlocal looked_at
        looked_at += len(part)
        check(part)

    monkeypatch.setattr(body_framing, "_check_text", counting)
    body = b"1;a=b\r\nx\r\n0\r\nX: " + b"y" * 30_000 + b"\r\nZ: z\r\n\r\n"
    chunked = ChunkedDecoder(0, 32_768)
    payload = b"".join(chunked.feed(body[at : at + 1]) for at in range(len(body)))
    assert payload == b"x" and chunked.trailers == [(b"x", b"y" * 30_000), (b"z", b"z")]
    assert looked_at < len(body)


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\n"])
def test_a_fault_in_a_trailer_is_found_wherever_the_cut_is(octet: bytes) -> None:
    body = b"0\r\nX: " + b"y" * 20 + octet + b"z" * 20
    for cut in range(1, len(body)):
        chunked = ChunkedDecoder(0, 32_768)
        with pytest.raises(Rejected) as refused:
            chunked.feed(body[:cut])
            chunked.feed(body[cut:])
        assert refused.value.status == 400
