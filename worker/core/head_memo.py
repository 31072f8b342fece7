"""Lines of heads that were judged before: a client that repeats itself costs a look-up for each line.  Pure.

A request line, and a field but those that decide about the message, mean the same wherever they stand.  So a line that
was found to be good once is good; what is not known goes to the parser, and any doubt to its judgement of the whole
head, whose words are the ones that clients see.
"""

from collections.abc import Callable
from typing import Any

from quiesce.worker.core.limits import Limits
from quiesce.worker.core.request import Header, Request, split_target

Line = tuple[str, bytes, bytes, str, bytes]
"""Of an HTTP/1.1 request: method, target, its raw path, path, and query."""
Judged = tuple[list[Header], bool]
"""Fields, and whether the connection may be kept."""

_MOST = 1000
LONGEST = 256  # longer lines are not kept: a thousand as long as a head would be 32 MB
_MOST_NEW = 4  # of the lines of a head: with more of them, the whole is parsed at once
_SECRET = frozenset((b"authorization", b"cookie", b"proxy-authorization"))  # not to stay in memory


class HeadMemo:
    """Bounded: who invents lines makes it start again.

    Args:
        judge_line: A request line to its method, target and version; None if it is not good.
        judge_fields: Field lines, joined, and their number, to what they are; None if there is any doubt.
    """

    def __init__(
        self,
        limits: Limits,
        judge_line: Callable[[bytes], tuple[str, bytes, str] | None],
        judge_fields: Callable[[bytes, int], Judged | None],
    ) -> None:
        self._limits = limits
        self._judge_line = judge_line
        self._judge_fields = judge_fields
        self._heads: dict[bytes, tuple[Line, list[Header]]] = {}  # short ones, that came more than once
        self._lines: dict[bytes, Line] = {}
        self._hosts: dict[bytes, Header] = {}
        self._fields: dict[bytes, Header] = {}
        self._closing: dict[bytes, Header] = {}  # lines that say Connection: close

    def recall(self, head: bytes) -> Request | None:
        """The same for a head that is known as a whole; None: it is none, or not known."""
        whole = self._heads.get(head)
        return None if whole is None else _made(whole[0], whole[1].copy())

    def request(self, head: bytes) -> Request | None:
        """A request of HTTP/1.1 in origin-form that has no body, with Host as its first field and nothing
        unusual in it; None: look at it closely.
        """
        whole = self._heads.get(head)
        if whole is not None:
            return _made(whole[0], whole[1].copy())
        lines = head[:-4].split(b"\r\n")
        fields = len(lines) - 1
        if not fields or fields > self._limits.header_count or len(head) > self._limits.header_bytes:
            return None
        line = self._lines.get(lines[0]) or self._learn_line(lines[0])
        host = self._hosts.get(lines[1])
        if line is None or host is None:
            return None
        headers = [host]
        if fields > 1:
            headers += map(self._fields.get, lines[2:])  # type: ignore[arg-type]
            if not all(headers):
                keep = self._fill(lines, headers)
                if keep is None:
                    return None
                request = _made(line, headers)
                request.keep_alive = keep
                return request
        if len(head) <= LONGEST:  # nothing in it was new
            _make_room(self._heads)
            self._heads[head] = line, headers.copy()
        return _made(line, headers)

    def _learn_line(self, line: bytes) -> Line | None:
        judged = self._judge_line(line)
        if judged is None or judged[2] != "1.1" or judged[1][:1] != b"/":
            return None
        known = (judged[0], judged[1], *split_target(judged[1]))
        if len(line) <= LONGEST:
            _make_room(self._lines)
            self._lines[line] = known
        return known

    def _fill(self, lines: list[bytes], headers: list[Header]) -> bool | None:
        """Judge what is not known; may the connection be kept?  None: any doubt."""
        keep = True
        places: list[int] = []
        for place, header in enumerate(headers):
            if header:
                continue
            closing = self._closing.get(lines[place + 1])
            if closing is None:
                places.append(place)
            else:
                headers[place] = closing
                keep = False
        if not places:
            return keep
        if len(places) > _MOST_NEW:
            return None
        judged = self._judge_fields(b"\r\n".join([lines[place + 1] for place in places]), len(places))
        if judged is None:
            return None
        for place, header in zip(places, judged[0], strict=True):
            headers[place] = header
            self._keep(lines[place + 1], header)
        return keep and judged[1]

    def _keep(self, line: bytes, header: Header) -> None:
        name, value = header
        if name in _SECRET or len(line) > LONGEST:
            return
        known = self._fields
        if name == b"connection":
            value = value.lower()
            if value == b"close":
                known = self._closing
            elif value != b"keep-alive":  # which says only what goes without saying
                return
        _make_room(known)
        known[line] = header

    def learn(self, head: bytes, headers: list[Header]) -> None:
        """The whole of a head was good, and decides nothing but the one Host, its first field, and Connection."""
        lines = head[:-4].split(b"\r\n")
        if len(lines[1]) <= LONGEST:
            _make_room(self._hosts)
            self._hosts[lines[1]] = headers[0]
        for line, header in zip(lines[2:], headers[1:], strict=True):
            self._keep(line, header)


def _made(line: Line, headers: list[Header]) -> Request:
    request = Request(line[0], line[1], "1.1", headers)
    _, _, request._raw_path, request._path, request._query = line
    return request


def _make_room(known: dict[bytes, Any]) -> None:
    if len(known) >= _MOST:
        known.clear()
