"""What a request carries besides its body: arguments and cookies.  Pure.

Source: application/x-www-form-urlencoded (WHATWG URL §5.1) for arguments; RFC 6265 §4.2.1, §5.4 for cookies.
"""

from collections.abc import Callable

from quiesce.worker.core.body_framing import TOKEN
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


def cookies(field: bytes) -> list[Value]:
    """The cookies of one Cookie field: those before the first that is malformed.

    White space round a pair is forgiven, an empty item too; a value may stand in quotes, which are taken off.
    """
    values: list[Value] = []
    for item in field.split(b";"):
        pair = item.strip(b" \t")
        if not pair:
            continue
        name, equals, value = pair.partition(b"=")
        if len(value) > 1 and value[:1] == value[-1:] == b'"':
            value = value[1:-1]
        if not equals or not name or name.translate(None, TOKEN) or value.translate(None, _VALUE):
            break
        values.append((text(name), text(value)))
    return values
