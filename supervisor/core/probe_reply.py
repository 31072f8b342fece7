"""The answer to a health probe: is it complete, and is it good?  Pure."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

MAX_REPLY_BYTES = 1 << 20  # whoever reads stops here; what came so far is judged


class Rule(Enum):
    """What counts as healthy."""

    HEALTH_PATH = "health path"  # configured: 2xx and 3xx
    ANY_ANSWER = "any answer"  # GET / of an application that names no health path: below 500


class Verdict(NamedTuple):
    passed: bool
    text: str  # "GET /healthz answered 503 Service Unavailable"


_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: (.*))?")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


def request(path: str, host: str, headers: Mapping[str, str]) -> bytes:
    """The probe's request.

    `Connection: close`, whatever ``headers`` say, because the end of the stream is the end of the
    answer to us; other headers of theirs replace ours.
    """
    given = {name.lower() for name in headers}
    ours = {"Host": host, "User-Agent": "quiesce-probe"}
    fields = [(name, value) for name, value in ours.items() if name.lower() not in given]
    fields += [(name, value) for name, value in headers.items() if name.lower() != "connection"]
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def judge(path: str, reply: bytes, rule: Rule) -> Verdict:
    """Judge a whole answer.

    Args:
        path: What was asked for.
        reply: Everything up to the end of the stream, or more than MAX_REPLY_BYTES of it.
        rule: What is good.

    An answer that ends before its own framing says is not one: the worker died, or the application
    broke off in the middle (RFC 9112 section 8).
    """
    head, body = _final_answer(reply)
    line = head.partition(b"\r\n")[0]
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        return Verdict(False, f"GET {path} {_instead(line)}")
    if body is None:
        return Verdict(False, f"GET {path} was cut off in the middle of the answer's head")
    status = int(match[1])
    text = f"GET {path} answered {status} {_printable(match[2] or b'')}".rstrip()
    limit = 400 if rule is Rule.HEALTH_PATH else 500
    if not 200 <= status < limit:
        return Verdict(False, text)
    if len(reply) <= MAX_REPLY_BYTES and not _is_whole(status, head, body):
        return Verdict(False, f"{text}, and was cut off in the middle of the body")
    return Verdict(True, text)


def _final_answer(reply: bytes) -> tuple[bytes, bytes | None]:
    """Head and body of the first answer that is not 1xx (RFC 9110 section 15.2); body None: the head has no end."""
    while True:
        head, blank, rest = reply.partition(b"\r\n\r\n")
        if not blank:
            return head, None
        match = _STATUS_LINE.fullmatch(head.partition(b"\r\n")[0])
        if match is None or not match[1].startswith(b"1"):
            return head, rest
        reply = rest


def _is_whole(status: int, head: bytes, body: bytes) -> bool:
    """Is all of the body there, as far as its framing tells?  RFC 9112 section 6.3."""
    if status in (204, 304):
        return True
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip()
    if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
        return _has_last_chunk(body)
    length = fields.get(b"content-length", b"")
    return not length.isdigit() or len(body) >= int(length[:18])


def _has_last_chunk(body: bytes) -> bool:
    """RFC 9112 section 7.1.  By position: cutting the body down chunk by chunk would take minutes for small ones."""
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        match = _CHUNK_SIZE.fullmatch(body, at, end)
        if match is None:
            return False
        size = int(match[1], 16)
        at = end + 2
        if size == 0:
            return body.startswith(b"\r\n", at) or body.find(b"\r\n\r\n", at) >= 0  # trailers may follow
        at += size
        if not body.startswith(b"\r\n", at):
            return False
        at += 2
    return False


def _instead(line: bytes) -> str:
    if not line:
        return "closed the connection without an answer"
    return f"answered {_printable(line[:60])!r}, which is not HTTP"


def _printable(raw: bytes) -> str:
    """An application chooses these bytes, and they are shown on terminals."""
    return "".join(c if c.isprintable() else "?" for c in raw.decode("latin-1"))
