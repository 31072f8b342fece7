"""What a request carries besides its body: arguments and cookies.  Pure.

Source: application/x-www-form-urlencoded (WHATWG URL §5.1) for arguments; RFC 6265 §4.2.1, §5.4 for cookies.
"""

from collections.abc import Callable

from quiesce.worker.core.body_framing import TOKEN
from quiesce.worker.core.discipline import Cookies
from quiesce.worker.core.request import unquote

Value = tuple[str, str | None]
"""Name and value; None: there was no ``=``."""


def text(raw: bytes) -> str:
    """As UTF-8, or else as Latin-1, which knows every byte."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def unescape(escaped: str) -> str:
    """Percent-decode; what is no escape stays as it is."""
    return text(unquote(escaped.encode("latin-1")))


def arguments(query: bytes, decode: Callable[[str], str] = unescape) -> list[Value]:
    """The arguments of a query, in order: ``a=1&b=&c`` is a "1", b "", c None.  ``+`` is a space."""
    values: list[Value] = []
    for piece in query.split(b"&"):
        if not piece:
            continue
        name, equals, value = piece.replace(b"+", b" ").decode("latin-1").partition("=")
        values.append((decode(name), decode(value) if equals else None))
    return values


_VALUE = bytes(octet for octet in range(0x21, 0x7F) if octet not in b'",;\\')  # RFC 6265: cookie-octet


_LOOSE = Cookies()


def cookies(field: bytes, rules: Cookies = _LOOSE) -> list[Value]:
    """The cookies of one Cookie field: those before the first that is malformed, or none of them.

    A value may stand in quotes, which are taken off.
    """
    values: list[Value] = []
    for number, item in enumerate(field.split(b";")):
        if rules.loose_spacing:
            pair = item.strip(b" \t")
            if not pair:
                continue
        else:  # one space behind each semicolon, and nothing else
            pair = item[1:] if number and item[:1] == b" " else b"" if number else item
        value = _cookie(pair, rules)
        if value is None:
            return [] if rules.all_or_none else values
        values.append(value)
    return values


def _cookie(pair: bytes, rules: Cookies) -> Value | None:
    name, equals, value = pair.partition(b"=")
    if rules.spaces_round_equals:
        name, value = name.rstrip(b" \t"), value.lstrip(b" \t")
    allowed = _VALUE
    if len(value) > 1 and value[:1] == value[-1:] == b'"':
        value = value[1:-1]
        if rules.spaces_in_quotes:
            allowed += b" \t"
    if not equals or not name or name.translate(None, TOKEN) or value.translate(None, allowed):
        return None
    return text(name), text(value)
