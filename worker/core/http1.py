"""A request's head: bytes to Request.  The only file that knows httptools.

llhttp reads the fields and nothing else.  The request line is ours (llhttp refuses methods that it does
not know), so are the framing (body_framing.py) and the checks on bytes that no field may hold.  So
whatever llhttp's version is lenient about, we are not; and one parser serves all connections, because it
only ever sees whole heads: an idle connection costs no parser.

Source: RFC 9112 §2.2, §3, §5; RFC 9110 §5.5, §7.2.  docs/http1.md has every rule and its test.
"""

import re
from collections.abc import Iterable

import httptools

from quiesce.worker.core.body_framing import TOKEN, body_length
from quiesce.worker.core.head_memo import DECIDING, HeadMemo
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Header, Request

_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
}
_VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])  # no CTL but HTAB, CR, LF
# For translate(): what has no place in a target becomes something else.  A fragment is the client's affair: never sent.
_TARGET = bytes(i if 0x21 <= i < 0x7F and i != ord("#") else i ^ 0x80 for i in range(256))
# uri-host [ ":" port ] of RFC 3986 §3.2.2.  User information is no part of it, and passes for a host elsewhere.
_HOST = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*|v[0-9A-Fa-f]+\.[-.\w~!$&'()*+,;=:]+)\]"
    rb"|(?:[-.\w~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?"
)
_LINE = b"GET / HTTP/1.1\r\n"
_REMEMBERED = 100  # longer names and hosts are not kept: a thousand as long as a head would be 32 MB
_LONGEST_METHOD = 64


class HeadParser:
    """Turns heads into requests, one after the other.  Not for two threads at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._names: dict[bytes, bytes] = {}  # as sent → lower case; bounded
        self._hosts: set[bytes] = set()  # found to be good; bounded
        self._headers: list[Header] = []
        self._deciding: list[Header] = []
        self.memo = HeadMemo(limits, self._names, request_line, self._settle)
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools' callback."""
        lower = self._names.get(name)
        if lower is None:
            lower = self._learn(name)
        header = (lower, value.rstrip(b" \t"))
        self._headers.append(header)
        if lower in DECIDING:
            self._deciding.append(header)

    def _learn(self, name: bytes) -> bytes:
        if name.translate(None, TOKEN):
            raise Rejected(400, "a field name is not a token")
        lower = name.lower()
        if len(name) <= _REMEMBERED:
            if len(self._names) > 1000:  # somebody invents names: start again
                self._names.clear()
            self._names[name] = lower
        return lower

    def _check_host(self, host: bytes) -> None:
        if not _HOST.fullmatch(host):
            raise Rejected(400, "Host is malformed")
        if len(host) <= _REMEMBERED:
            if len(self._hosts) > 1000:
                self._hosts.clear()
            self._hosts.add(host)

    def check_part(self, data: bytes, judged: int = 0) -> int:
        """Judge a head that is not complete, so that nonsense is answered at once.

        The first fault in the order of bytes decides: however a head is cut, the answer is the same.

        Args:
            data: It begins where the request line begins.
            judged: What was returned for the part that was shorter; 0 at first.  A client that sends byte by byte
                must not make us look at all of them each time.

        Raises:
            Rejected: It can never become a good one.
        """
        limits = self._limits
        head = data[: limits.header_bytes]
        if not judged:
            judged = self._check_line(head)
        if judged:
            fields = head[judged:].removesuffix(b"\r")
            _check_bytes(fields)
            judged += len(fields)
        if len(data) > limits.header_bytes:
            raise Rejected(431, f"the header section is larger than {limits.header_bytes} bytes")
        return judged

    def _check_line(self, head: bytes) -> int:
        """Judge a request line that may not be complete.  Returns where it ends, or 0."""
        limits = self._limits
        eol = head.find(b"\r\n")
        line = head[:eol] if eol >= 0 else head.removesuffix(b"\r")  # which may be half a line end
        if len(line) > limits.line_bytes:
            _check_bytes(line[: limits.line_bytes].removesuffix(b"\r"))
            raise Rejected(414, f"the request line is longer than {limits.line_bytes} bytes")
        _check_bytes(line)
        if eol >= 0:
            request_line(line)
        return max(eol, 0)

    def parse(self, head: bytes) -> Request:
        """Parse a head.

        Args:
            head: From the request line to the empty line, both included.

        Raises:
            Rejected: 400, 413, 414, 417, 431, 501 or 505.
        """
        memo = self.memo
        return memo.recall(head) or memo.by_lines(head) or self._parse(head)

    def _parse(self, head: bytes) -> Request:
        """Judge all of a head."""
        limits = self._limits
        eol = head.find(b"\r\n")
        newlines = head.count(b"\n")
        if (
            eol > limits.line_bytes
            or len(head) > limits.header_bytes
            or newlines != head.count(b"\r\n")
            or newlines != head.count(b"\r")
            or len(head.translate(None, _CONTROL)) != len(head)
        ):
            self.check_part(head)  # which says what it is
        method, target, version = request_line(head[:eol])
        fields = newlines - 2  # all lines but the first and the last
        if fields > limits.header_count:
            raise Rejected(431, f"more than {limits.header_count} fields")

        if head[eol + 2] in b" \t":
            raise Rejected(400, "white space before the first field")
        headers: list[Header] = []
        deciding: list[Header] = []
        self._headers, self._deciding = headers, deciding
        try:
            self._parser.feed_data(_LINE + head[eol + 2 :])
        except httptools.HttpParserUpgrade:
            pass  # an offer that we may decline (RFC 9110 §7.8)
        except httptools.HttpParserError as exc:
            self._renew()
            raise _refusal(head, exc) from None
        if len(headers) != fields:
            self._renew()
            raise Rejected(
                400, "a line of the header section is no field"
            )  # folded, in llhttp's lenient days
        request = Request(method, target, version, headers)
        if len(deciding) != 1 or deciding[0][0] != b"host":
            self._renew()  # what decides for us decided for llhttp as well: it may be waiting for a body
        self._settle(request, deciding)
        if target[:1] != b"/":
            _prefer_target_host(request)
        return request

    def _settle(self, request: Request, deciding: list[Header]) -> None:
        """Let the fields that decide about the message have their say."""
        if len(deciding) != 1 or deciding[0][0] != b"host":
            hosts = _decide(request, deciding, self._limits.body_bytes)
        else:
            hosts = [deciding[0][1]]
        for host in hosts:
            if host not in self._hosts:
                self._check_host(host)


def _check_bytes(part: bytes) -> None:
    newlines = part.count(b"\n")
    if newlines != part.count(b"\r\n") or newlines != part.count(b"\r"):
        raise Rejected(400, "a line ends in a bare CR or LF")
    if len(part.translate(None, _CONTROL)) != len(part):
        raise Rejected(400, "control characters in the header section")


def request_line(line: bytes) -> tuple[str, bytes, str]:
    """Method, target and version.  RFC 9112 §3 allows for more white space, and §11.2 says what that is worth."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise Rejected(400, "the request line is not METHOD TARGET VERSION")
    target = parts[1]
    version = _VERSIONS.get(parts[2]) or _other_version(parts[2])
    method = _METHODS.get(parts[0]) or _other_method(parts[0])
    if target[:1] != b"/" or target.translate(_TARGET) != target:
        _check_target(method, target)
    return method, target, version


def _other_version(version: bytes) -> str:
    """Raise, or return "1.1": we answer any 1.x as such (RFC 9110 §2.5)."""
    digits = version[5:].split(b".")
    if version[:5] != b"HTTP/" or len(digits) != 2 or any(len(d) != 1 or not d.isdigit() for d in digits):
        raise Rejected(400, "the version is malformed")
    if digits[0] != b"1":
        raise Rejected(505, "this server speaks HTTP/1.1 and 1.0")
    return "1.1"


def _other_method(method: bytes) -> str:
    if not method or method.translate(None, TOKEN):
        raise Rejected(400, "the method is not a token")
    if len(method) > _LONGEST_METHOD:
        raise Rejected(501, "no method has so long a name")
    if method == b"CONNECT":
        raise Rejected(501, "this server is no proxy")
    return method.decode("ascii")


def _check_target(method: str, target: bytes) -> None:
    """RFC 9112 §3.2: origin-form, absolute-form, or the asterisk of OPTIONS."""
    if not target or target.translate(_TARGET) != target:
        raise Rejected(400, "the request target holds a fragment, or characters that must be percent-encoded")
    if target[:1] == b"/" or (target == b"*" and method == "OPTIONS"):
        return
    scheme, separator, rest = target.partition(b"://")
    authority = rest.replace(b"?", b"/").partition(b"/")[0]
    if scheme.lower() not in (b"http", b"https") or not separator or not authority or b"@" in authority:
        raise Rejected(400, "the request target is neither a path nor an http URI")
    if not _HOST.fullmatch(authority) or authority[:1] == b":":
        raise Rejected(400, "the request target's host is malformed")


def _prefer_target_host(request: Request) -> None:
    """With absolute-form, Host says what the target says, whatever was sent (RFC 9112 §3.2.2)."""
    if request.target == b"*":
        return
    authority = request.target.partition(b"://")[2].replace(b"?", b"/").partition(b"/")[0]
    others = [header for header in request.headers if header[0] != b"host"]
    request.headers[:] = [(b"host", authority), *others]


def _decide(request: Request, deciding: list[Header], body_limit: int) -> list[bytes]:
    """Everything that fields say about the message itself.  Returns the values of Host, at most one."""
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connections: list[bytes] = []
    expectations: list[bytes] = []
    for name, value in deciding:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"connection":
            connections.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"expect":
            expectations.append(value)
        elif name == b"upgrade":
            request.offers_upgrade = True
    if len(hosts) != 1 and (hosts or request.version == "1.1"):
        raise Rejected(400, "exactly one Host is needed")
    if lengths or codings:
        request.length = body_length(request.version, codings, lengths, body_limit)
    if connections == [b"close"]:
        request.keep_alive = False
    elif connections:
        connection = _elements(connections)
        request.keep_alive = b"close" not in connection and (
            request.version == "1.1" or b"keep-alive" in connection
        )
    if expectations:
        expected = _elements(expectations)
        if expected - {b"100-continue"}:
            raise Rejected(417, "the only expectation known here is 100-continue")
        request.expects_continue = bool(expected) and request.version == "1.1"
    return hosts


def _elements(values: Iterable[bytes]) -> set[bytes]:
    """The elements of a list, in lower case; empty ones are none (RFC 9110 §5.6.1.2)."""
    return {token.strip(b" \t").lower() for value in values for token in value.split(b",")} - {b""}


def _refusal(head: bytes, error: Exception) -> Rejected:
    """What llhttp refused, in our words.  It judges Transfer-Encoding before we see it: ours is the verdict."""
    codings = []
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            break
        if name.lower() == b"transfer-encoding":
            codings.append(value.strip(b" \t"))
    else:
        if codings and "Transfer-Encoding" in str(error) and b"HTTP/1.0\r\n" not in head:
            try:
                body_length("1.1", codings, [], 0)
            except Rejected as rejected:
                return rejected
    if "Content-Length overflow" in str(error):
        return Rejected(413, "Content-Length is larger than anything")
    return Rejected(400, f"the header section is malformed ({error})")
