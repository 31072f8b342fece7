"""The answer to a health probe: is it complete, and is it good?  Pure."""

from enum import Enum
from typing import NamedTuple

MAX_REPLY_BYTES = 1 << 20


class Rule(Enum):
    """What counts as healthy."""

    HEALTH_PATH = "health path"  # configured: 2xx and 3xx
    ANY_ANSWER = "any answer"  # GET / of an application that names no health path: below 500


class Verdict(NamedTuple):
    passed: bool
    text: str  # "GET /healthz answered 503 Service Unavailable"


def request(path: str, host: str, headers: dict[str, str]) -> bytes:
    """The probe's request.  `Connection: close`, so that EOF frames the answer."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", "User-Agent: quiesce-probe"]
    given = {name.lower() for name in headers}
    lines = [line for line in lines if line.split(":")[0].lower() not in given or line.startswith("GET ")]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def judge(path: str, reply: bytes, rule: Rule) -> Verdict:
    """Judge a whole answer (everything up to EOF)."""
    line, _, rest = reply.partition(b"\r\n")
    parts = line.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        what = "closed the connection without an answer" if not reply else f"answered {line[:60]!r}"
        return Verdict(False, f"GET {path} {what}")
    if b"\r\n\r\n" not in reply:
        return Verdict(False, f"GET {path} was cut off in the middle of the answer's head")
    status = int(parts[1])
    if 100 <= status < 200:
        return judge(path, rest.partition(b"\r\n\r\n")[2] if b"\r\n" in rest else b"", rule)
    text = f"GET {path} answered {status} {parts[2].decode('latin-1') if len(parts) > 2 else ''}".rstrip()
    limit = 400 if rule is Rule.HEALTH_PATH else 500
    return Verdict(200 <= status < limit, text)
