"""How much of a client's carelessness is forgiven, by levels from -3 (most of it) to 3 (none).  Pure.

The levels are libmicrohttpd's, and so is the table, but for two things: what cannot harm is forgiven by all but
the strictest, and what lets one client's bytes become another one's request (RFC 9112 §11.2) is forgiven by no level
alone.  Forgiving is mending: what the strict reading has refused is put right, and read strictly again.  So the strict
reading stays the only one, and who sends no nonsense pays nothing.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from quiesce.worker.core.body_framing import TOKEN


class Leniency(Enum):
    """What may be forgiven."""

    BARE_LF = "a bare LF ends a line of the head"
    FOLDED = "a folded line is joined by a space"
    TAB = "a tab between the parts of the request line is a space"
    CONTROL_SPACE = "so are vertical tab and form feed"
    RUNS = "white space round the target may be longer"
    SPACE_IN_TARGET = "white space within the target is percent-encoded"
    REDIRECT = "who sends white space within the target is told to ask again, with it percent-encoded"
    INDENTED = "lines before the first field that begin with white space are skipped"
    # These need more than a level.
    BROKEN_LINE = "a line that is no field is skipped"
    SPACE_BEFORE_COLON = "white space between a name and its colon is dropped"
    BARE_CR = "a bare CR in a field is a space"
    BARE_CR_IN_LINE = "a bare CR in the request line is a space"
    NUL = "a NUL in a field is a space"
    LENGTH_AND_CHUNKS = "Content-Length beside Transfer-Encoding is dropped, and the answer is the last"
    LENGTHS = "of several Content-Length the first counts"
    NO_HOST = "HTTP/1.1 may leave Host out"


L = Leniency
GRANTED: Mapping[Leniency, int] = {
    L.BARE_LF: 0,
    L.FOLDED: 0,
    L.TAB: 0,
    L.CONTROL_SPACE: -1,
    L.RUNS: -1,
    L.SPACE_IN_TARGET: -2,
    L.REDIRECT: 0,
    L.INDENTED: -1,
    L.BROKEN_LINE: -2,
    L.SPACE_BEFORE_COLON: -3,
    L.BARE_CR: -1,
    L.BARE_CR_IN_LINE: -2,
    L.NUL: -1,
    L.LENGTH_AND_CHUNKS: 0,
    L.LENGTHS: 0,
    L.NO_HOST: -3,
}
"""The highest level that forgives it."""

SMUGGLING = frozenset(
    (
        L.BROKEN_LINE, L.SPACE_BEFORE_COLON, L.BARE_CR, L.BARE_CR_IN_LINE, L.NUL, L.LENGTH_AND_CHUNKS, L.LENGTHS,
        L.NO_HOST,
    )
)  # fmt: skip
"""A proxy in front may have read something else: forgiven only to who says in so many words that he wants it."""

LEVELS = range(-3, 4)
NO_EMPTY_LINES = 2  # from here on an empty line in front of a request is refused


class Cookies(NamedTuple):
    """How a Cookie field is read."""

    loose_spacing: bool = True  # no space, a tab, or more of them round a pair; empty items
    spaces_in_quotes: bool = False
    spaces_round_equals: bool = False
    all_or_none: bool = False  # a fault drops those before it, too


class Discipline(NamedTuple):
    """One level."""

    forgives: frozenset[Leniency] = frozenset()
    empty_lines: bool = True
    cookies: Cookies = Cookies()


STRICT = Discipline()
"""Where nobody has chosen a level: nothing that could be read in two ways, but cookies as browsers send them."""


def discipline(level: int | None, smuggling: bool = False) -> Discipline:
    """The table's column.

    Raises:
        ValueError: There is no such level.
    """
    if level is None:
        return STRICT
    if level not in LEVELS:
        raise ValueError(f"there is no discipline level {level}: it is -3 to 3")
    granted = frozenset(what for what, highest in GRANTED.items() if level <= highest)
    return Discipline(
        granted if smuggling else granted - SMUGGLING,
        level < NO_EMPTY_LINES,
        Cookies(level <= 0, level <= -2, level <= -3, level >= 2),
    )


# -- mending --------------------------------------------------------------------------------------

_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_END = re.compile(rb"\n\r?\n")
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))
_SPACES = b" \t"
_UNSAFE = re.compile(rb"[ \"<>\\^`{|}]")  # visible, and in no URI: a browser reads a backslash as a slash
_CONTROL = bytes([*range(9), *range(10, 32), 127])  # all but HTAB
Lines = list[bytes]


def mend(data: bytes, forgives: frozenset[Leniency], judged: int = 0) -> tuple[bytes, int]:
    """Put right what is forgiven in a head, or in the beginning of one; what is behind a whole head is left alone.

    Mending what was mended changes nothing, and a beginning is mended as it will be in the whole.  Whoever forgives
    anything forgives a bare LF: no level has less.

    Args:
        judged: So much of a beginning was found to be good: a client that has something mended with each line must
            not make us look at all of them each time.

    Returns:
        The text, and what ``judged`` is for it.
    """
    kept = data.rfind(b"\r\n", 0, judged) + 2 if judged else 0
    if not judged:
        empty = _EMPTY_LINES.match(data)
        if empty:
            data = data[empty.end() :]
    end = _END.search(data, max(0, kept - 1))
    if not end:
        return data[:kept] + _mend_beginning(data[kept:], forgives, bool(kept)), kept
    first, *fields, _, _ = [line.removesuffix(b"\r") for line in data[: end.end()].split(b"\n")]
    first = _mend_request_line(first, forgives)
    fields = _mend_fields(first, [_mend_field(line, forgives) for line in fields], forgives)
    return b"\r\n".join((first, *fields, b"", data[end.end() :])), 0


def _mend_beginning(data: bytes, forgives: frozenset[Leniency], fields_only: bool) -> bytes:
    *lines, tail = data.split(b"\n")
    half = tail[-1:] if tail[-1:] == b"\r" else b""  # of a line's end, maybe
    tail = tail.removesuffix(b"\r")
    if not lines and not fields_only:
        return tail.translate(_octets(forgives)[0]) + half
    mended = [line.removesuffix(b"\r") for line in lines]
    if not fields_only:
        mended[0] = _mend_request_line(mended[0], forgives)
    fields = [_mend_field(line, forgives) for line in (*mended[not fields_only :], tail)]
    return b"\r\n".join((*mended[: not fields_only], *fields)) + half


def _mend_field(line: bytes, forgives: frozenset[Leniency]) -> bytes:
    return line.translate(_octets(forgives)[1])


@lru_cache
def _octets(forgives: frozenset[Leniency]) -> tuple[bytes, bytes]:
    """Tables of the octets that become spaces in the request line, and in fields."""
    line = (b"\r" if L.BARE_CR_IN_LINE in forgives else b"") + (
        b"\v\f" if L.CONTROL_SPACE in forgives else b""
    )
    fields = (b"\r" if L.BARE_CR in forgives else b"") + (b"\0" if L.NUL in forgives else b"")
    return bytes.maketrans(line, b" " * len(line)), bytes.maketrans(fields, b" " * len(fields))


def _mend_request_line(line: bytes, forgives: frozenset[Leniency]) -> bytes:
    """Three parts with single spaces between them, if that is what it can be."""
    spaced = line.translate(_octets(forgives)[0])
    if L.TAB in forgives:
        spaced = spaced.replace(b"\t", b" ")
    if spaced[:1] == b" " or spaced[-1:] == b" ":
        return line
    parts = [part for part in spaced.split(b" ") if part or L.RUNS not in forgives]
    if len(parts) > 3 and L.SPACE_IN_TARGET in forgives:
        method, _, others = spaced.partition(b" ")
        target, _, version = others.rpartition(b" ")
        parts = [method, target.strip(b" ").replace(b" ", b"%20"), version]
    return b" ".join(parts) if len(parts) == 3 and all(parts) else line


def escaped(line: bytes, forgives: frozenset[Leniency]) -> bytes | None:
    """The request line that a client is told to send in place of this one (RFC 9112 §3.2); None: it is told nothing.

    Only for a path of ours.  "//" is another server's, and so is what a browser takes for it.
    """
    if L.REDIRECT not in forgives:
        return None
    method, _, others = line.translate(_octets(forgives)[0]).replace(b"\t", b" ").partition(b" ")
    target, _, version = others.rpartition(b" ")
    if L.RUNS in forgives:
        target = target.strip(b" ")
    if b" " not in target or target[:1] != b"/" or target[:2] == b"//" or target[-1:] == b" ":
        return None
    return b" ".join((method, _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], target), version))


def _mend_fields(request_line: bytes, lines: Lines, forgives: frozenset[Leniency]) -> Lines:
    """The fields of a whole head."""
    if L.INDENTED in forgives:
        while lines and lines[0][:1] in (b" ", b"\t") and _is_text(lines[0]):
            lines = lines[1:]
    if L.FOLDED in forgives:
        lines = _unfold(lines)
    for leniency, mends in _WHOLE.items():
        if leniency in forgives:
            lines = mends(request_line, lines)
    return lines


def _unfold(lines: Lines) -> Lines:
    """A folded field that decides where the message ends, or whose it is, stays folded, and is refused."""
    unfolded: Lines = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and unfolded and _name(unfolded[-1]) not in _FRAMING:
            unfolded[-1] = unfolded[-1].rstrip(_SPACES) + b" " + line.strip(_SPACES)
        else:
            unfolded.append(line)
    return unfolded


def _is_text(line: bytes) -> bool:
    """Only such lines are skipped: others were refused before anybody knew where they end."""
    return len(line.translate(None, _CONTROL)) == len(line)


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip(_SPACES).lower()


def _join_names(_: bytes, lines: Lines) -> Lines:
    joined = []
    for line in lines:
        name, colon, value = line.partition(b":")
        joined.append(name.rstrip(_SPACES) + colon + value if colon else line)
    return joined


def _skip_broken(_: bytes, lines: Lines) -> Lines:
    kept = []
    for line in lines:
        name, colon, _value = line.partition(b":")
        spaced = name.translate(None, _SPACES)
        broken = not colon or not name or (spaced != name and not spaced.translate(None, TOKEN))
        # White space that only stands before the colon is another leniency's affair.
        if not broken or not _is_text(line) or (colon and spaced and name.rstrip(_SPACES) == spaced):
            kept.append(line)
    return kept


def _chunks_win(_: bytes, lines: Lines) -> Lines:
    names = [_name(line) for line in lines]
    if b"transfer-encoding" not in names or b"content-length" not in names:
        return lines
    kept = [line for line in lines if _name(line) != b"content-length" or not _is_text(line)]
    return [*kept, b"Connection: close"] if len(kept) < len(lines) else lines


def _first_length_wins(_: bytes, lines: Lines) -> Lines:
    kept: Lines = []
    for line in lines:
        if (
            _name(line) != b"content-length"
            or b"content-length" not in map(_name, kept)
            or not _is_text(line)
        ):
            kept.append(line)
    return kept


def _add_host(request_line: bytes, lines: Lines) -> Lines:
    if request_line[-8:] == b"HTTP/1.1" and b"host" not in map(_name, lines):
        return [*lines, b"Host:"]
    return lines


_WHOLE: Mapping[Leniency, Callable[[bytes, Lines], Lines]] = {
    L.BROKEN_LINE: _skip_broken,
    L.SPACE_BEFORE_COLON: _join_names,
    L.LENGTH_AND_CHUNKS: _chunks_win,
    L.LENGTHS: _first_length_wins,
    L.NO_HOST: _add_host,
}
