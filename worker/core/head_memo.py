"""Lines of heads that were judged before: a client that repeats itself costs a look-up for each line.  Pure.

A request line, and a field but those that decide about the message, mean the same wherever they stand.  So a line that
was found to be good once is good.  A line that is not known is a field if what stands before its first colon has been
a field's name, and behind it is no control character but HTAB: nothing else is asked by RFC 9112 §5 and RFC 9110 §5.5.
Of what decides, Host, Connection and Content-Length are judged here as well, by the parser's own rules for them.  Any
doubt goes to the parser's judgement of the whole head, whose words are the ones that clients see.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quiesce.worker.core.limits import Limits
from quiesce.worker.core.rejected import Rejected
from quiesce.worker.core.request import Header, Request, TargetParts, split_target

Line = tuple[str, bytes, TargetParts]
"""Of an HTTP/1.1 request: method, target, and the target's parts."""
Known = tuple[str, bytes, TargetParts, list[Header], int, bool]
"""A whole head: its line and fields, the body's length, and whether the connection is kept."""

_MOST = 1000
_LONGEST = 256  # longer lines are not kept: a thousand as long as a head would be 32 MB
DECIDING = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"expect",
        b"upgrade",
        b"proxy-connection",
    )
)
SECRET = frozenset((b"authorization", b"cookie", b"proxy-authorization"))  # not to stay in memory
# translate() changes each control character but HTAB.  It is fastest so, and gives the same object if there is none.
_NO_CONTROL = bytes(i ^ 1 if (i < 32 and i != 9) or i == 127 else i for i in range(256))
_HTAB = 9
_new = Request.__new__


class _Doubt(Exception):
    """Let the parser see it."""


class _Fields(dict[bytes, Header]):
    """Field lines that decide nothing, as they are looked up.

    Attributes:
        deciding: Fields of the head at hand that do.
        is_new: One of its lines did not come before, or is not to be remembered.
    """

    __slots__ = ("_deciding", "_names", "deciding", "is_new")

    def __init__(self, names: Mapping[bytes, bytes]) -> None:
        self._names = names
        self._deciding: dict[bytes, Header] = {}  # lines that came before
        self.deciding: list[Header] = []
        self.is_new = False

    def __missing__(self, line: bytes) -> Header:
        """Judge it: the grammar of a field, whose name is one."""
        name, colon, value = line.partition(b":")
        lower = self._names.get(name)
        if lower is None or not colon or value.translate(_NO_CONTROL) != value:
            raise _Doubt
        header = lower, value.strip(b" \t")
        known: dict[bytes, Header] = self
        if lower in DECIDING:
            if _HTAB in value:  # llhttp takes none behind a coding
                raise _Doubt
            if lower != b"connection" or header[1].lower() != b"keep-alive":  # which goes without saying
                self.deciding.append(header)
                known = self._deciding
                if line in known:
                    return header
        elif lower in SECRET:
            self.is_new = True
            return header
        self.is_new = True
        if len(line) <= _LONGEST:
            _make_room(known)
            known[line] = header
        return header


class HeadMemo:
    """Bounded: who invents lines makes it start again.

    Args:
        names: Names of fields, as sent, to lower case: who is in it was found to be a token.
        judge_line: A request line to its method, target and version; raises Rejected.
        settle: Tells a request, of HTTP/1.1 and in origin-form, what its fields decide; raises Rejected.
    """

    def __init__(
        self,
        limits: Limits,
        names: Mapping[bytes, bytes],
        judge_line: Callable[[bytes], tuple[str, bytes, str]],
        settle: Callable[[Request, list[Header]], None],
    ) -> None:
        self._header_bytes = limits.header_bytes
        self._most_parts = limits.header_count + 3
        self._line_bytes = limits.line_bytes
        self._judge_line = judge_line
        self._settle = settle
        self._heads: dict[bytes, Known] = {}  # short ones, all of whose lines came before
        self._lines: dict[bytes, Line] = {}
        self._hosts: dict[bytes, Header] = {}
        self._fields = _Fields(names)
        self._field = self._fields.__getitem__  # which asks __missing__

    def recall(self, head: bytes) -> Request | None:
        """A request whose whole head came before; None: it did not, or is too long to be remembered, or no head."""
        if len(head) > _LONGEST:
            return None
        known = self._heads.get(head)
        if known is None:
            return None
        # As Request() would: a call less in what every second client's every request comes by.
        request = _new(Request)
        request.method, request.target, request._parts, headers, request.length, request.keep_alive = known
        request.headers = headers.copy()
        request.version = "1.1"
        request.scheme = "http"
        request.peer = request.local = request.content = request.opened = None
        request.expects_continue = request.offers_upgrade = False
        return request

    def by_lines(self, head: bytes) -> Request | None:
        """A request of HTTP/1.1 in origin-form of which there is no doubt.  None: look closely, it may be no head."""
        size = len(head)
        if size > self._header_bytes or head[-4:] != b"\r\n\r\n":
            return None
        lines = head.split(b"\r\n")  # the last two are empty; any other one that is gives rise to doubt
        if not 3 < len(lines) <= self._most_parts:
            return None
        fields = self._fields
        line = self._lines.get(lines[0])
        if line is None:
            line = self._learn_line(lines[0])
            if line is None:
                return None
            fields.is_new = True
        host = self._hosts.get(lines[1])
        try:
            if host is not None:
                headers = [host, *map(self._field, lines[2:-2])]
            else:
                headers = list(map(self._field, lines[1:-2]))
        except _Doubt:
            fields.deciding, fields.is_new = [], False
            return None
        request = Request(line[0], line[1], "1.1", headers)
        request._parts = line[2]
        if (host is None or fields.deciding) and not self._decided(request, lines[1], host):
            return None
        if fields.is_new:
            fields.is_new = False
        elif size <= _LONGEST and not (request.expects_continue or request.offers_upgrade):
            _make_room(self._heads)
            method, target, (raw_path, path, query, _) = line
            parts: TargetParts = raw_path, path, query, {}
            self._heads[head] = method, target, parts, headers.copy(), request.length, request.keep_alive
        return request

    def _decided(self, request: Request, first: bytes, host: Header | None) -> bool:
        """More than a known Host in front has its say about the message."""
        fields = self._fields
        deciding, fields.deciding = fields.deciding, []
        if host is not None:
            deciding.insert(0, host)
        try:
            self._settle(request, deciding)
        except Rejected:
            fields.is_new = False
            return False
        if request.headers[0][0] == b"host" and host is None and len(first) <= _LONGEST:
            _make_room(self._hosts)
            self._hosts[first] = request.headers[0]
        return True

    def _learn_line(self, line: bytes) -> Line | None:
        if len(line) > self._line_bytes:
            return None
        try:
            method, target, version = self._judge_line(line)  # with a control character in it, it is none
        except Rejected:
            return None
        if version != "1.1" or target[:1] != b"/":
            return None
        known = method, target, split_target(target)
        if len(line) <= _LONGEST:
            _make_room(self._lines)
            self._lines[line] = known
        return known


def _make_room(known: dict[bytes, Any] | set[bytes]) -> None:
    if len(known) >= _MOST:
        known.clear()
