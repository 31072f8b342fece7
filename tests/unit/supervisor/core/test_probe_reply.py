"""Answers to a health probe: good, bad, cut off, and nonsense."""

from __future__ import annotations

import time

import pytest

from quiesce.supervisor.core.probe_reply import MAX_REPLY_BYTES, Rule, judge, request

HEALTH, ANY = Rule.HEALTH_PATH, Rule.ANY_ANSWER

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n\r\n"
TRAILERS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nDigest: x\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
TO_THE_END = b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("reply", [PLAIN, CHUNKED, TRAILERS, EMPTY, TO_THE_END])
@pytest.mark.parametrize("before", [b"", CONTINUE, EARLY, EARLY + CONTINUE])
def test_a_whole_answer_passes_and_no_beginning_of_it(reply: bytes, before: bytes) -> None:
    """Byte by byte: a worker that died in the middle of its answer has not answered."""
    whole = before + reply
    assert judge("/healthz", whole, HEALTH).passed
    for length in range(len(whole)):
        verdict = judge("/healthz", whole[:length], HEALTH)
        assert not verdict.passed, whole[:length]
        assert verdict.text.startswith("GET /healthz ")


@pytest.mark.parametrize("early", [EARLY, CONTINUE])
def test_an_early_answer_is_not_the_answer(early: bytes) -> None:
    verdict = judge("/", early + b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", ANY)
    assert verdict == (False, "GET / answered 503 Service Unavailable")
    assert judge("/", early, ANY).text == "GET / closed the connection without an answer"


GOOD_BY_PATH = [200, 204, 302, 399]
GOOD_BY_ANY_ANSWER = [*GOOD_BY_PATH, 400, 404, 499]
BAD = [99, 199, 500, 503, 600, 999]


@pytest.mark.parametrize("status", [*GOOD_BY_ANY_ANSWER, *BAD])
def test_which_status_is_good(status: int) -> None:
    reply = b"HTTP/1.1 %03d Word\r\nContent-Length: 0\r\n\r\n" % status
    assert judge("/", reply, HEALTH).passed is (status in GOOD_BY_PATH)
    assert judge("/", reply, ANY).passed is (status in GOOD_BY_ANY_ANSWER)


NONSENSE = [
    b"",
    b"\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 0200 OK\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
    bytes(999),
]


@pytest.mark.parametrize("reply", NONSENSE)
def test_nonsense_is_no_answer(reply: bytes) -> None:
    verdict = judge("/", reply, ANY)
    assert not verdict.passed
    assert verdict.text in ("GET / closed the connection without an answer",) or "not HTTP" in verdict.text


def test_what_the_application_says_cannot_move_the_terminal() -> None:
    for reply in (b"HTTP/1.1 500 \x1b[2J\x07\r\n\r\n", b"\x1b[2J\x9bnonsense\r\n\r\n"):
        assert judge("/", reply, ANY).text.isprintable()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_broken_chunks_are_a_broken_answer(reply: bytes) -> None:
    assert judge("/", reply, ANY).text == "GET / answered 200 OK, and was cut off in the middle of the body"


def test_a_body_that_is_too_large_to_read_is_judged_by_its_head() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"
    assert judge("/", head + bytes(MAX_REPLY_BYTES), ANY).passed
    assert not judge("/", head + bytes(1000), ANY).passed


def test_the_length_of_a_body_that_is_not_sent_is_not_waited_for() -> None:
    assert judge("/", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", HEALTH).passed


def test_many_small_chunks_are_judged_at_once() -> None:
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 170_000 + b"0\r\n\r\n"
    began = time.process_time()
    assert judge("/", reply, ANY).passed
    assert time.process_time() - began < 5.0


# -- the question ---------------------------------------------------------------------------


def lines_of(raw: bytes) -> list[str]:
    assert raw.endswith(b"\r\n\r\n")
    return raw.decode("latin-1").split("\r\n")[:-2]


def test_the_question() -> None:
    lines = lines_of(request("/healthz", "localhost", {"X-Forwarded-Proto": "https"}))
    assert lines[0] == "GET /healthz HTTP/1.1"
    assert sorted(lines[1:]) == [
        "Connection: close",
        "Host: localhost",
        "User-Agent: quiesce-probe",
        "X-Forwarded-Proto: https",
    ]


def test_configured_headers_replace_ours_but_never_keep_the_connection_open() -> None:
    lines = lines_of(request("/", "localhost", {"host": "shop.test", "connection": "keep-alive"}))
    assert [line for line in lines if line.lower().startswith("host:")] == ["host: shop.test"]
    assert [line for line in lines if line.lower().startswith("connection:")] == ["Connection: close"]


def test_a_header_whose_name_is_that_of_the_method_is_kept() -> None:
    assert "GET: x" in lines_of(request("/", "localhost", {"GET": "x"}))
