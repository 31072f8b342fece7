"""The bytes on the control socket: newline-delimited JSON, one object a line.  Pure.

A client sends a request; the supervisor answers with any number of ``progress`` lines and
one ``result``, whose ``code`` is the exit code of the command.  Unknown keys are ignored,
so that a client and a supervisor of neighbouring versions understand each other.

A connection that ends before the result has lost its supervisor: the client sends the same line,
with the same ``id``, to the next one, which begins nothing that was begun and tells how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quiesce.shared.errors import ProtocolError

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024  # a line, its newline included
MAX_REPLY_BYTES = 16 * 1024 * 1024  # what a client is ready to read as one line
MAX_ID_CHARS = 64
_NOTHING: Mapping[str, Any] = MappingProxyType({})

# NamedTuples, not dataclasses: importing those would be a quarter of `quiesce status`.


class Peer(NamedTuple):
    """Who is at the other end of the socket: SO_PEERCRED, SO_PEERGROUPS."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


class Request(NamedTuple):
    """One command."""

    id: str  # uuid4, hex: the same id never starts a second change
    command: str
    args: Mapping[str, Any] = _NOTHING
    peer: Peer | None = None  # filled in by the server


class Progress(NamedTuple):
    """How a command is getting on."""

    text: str
    data: Mapping[str, Any] = _NOTHING


class Result(NamedTuple):
    """How a command ended."""

    code: int
    text: str
    detail: str = ""  # further lines, such as a traceback
    data: Mapping[str, Any] = _NOTHING


def encode_request(request: Request) -> bytes:
    """One line.

    Raises:
        ProtocolError: It is longer than a supervisor would read.
    """
    line = _line({"v": VERSION, "id": request.id, "command": request.command, "args": dict(request.args)})
    if len(line) > MAX_REQUEST_BYTES:
        raise ProtocolError(f"the arguments of {request.command} are longer than {MAX_REQUEST_BYTES} bytes")
    return line


def decode_request(line: bytes) -> Request:
    """Read one line, with or without its newline.

    Raises:
        ProtocolError: It is no request; the text is fit to be sent back.
    """
    message = _object(line)
    version, id_, command = message.get("v"), message.get("id"), message.get("command")
    args = message.get("args", {})
    if version != VERSION:
        raise ProtocolError(
            f"this supervisor speaks version {VERSION} of the control protocol, not {version!r}; "
            "use the `quiesce` command that it was started with"
        )
    if not isinstance(id_, str) or not 0 < len(id_) <= MAX_ID_CHARS:
        raise ProtocolError("a request needs an id of 1 to 64 characters")
    if not isinstance(command, str) or not isinstance(args, dict):
        raise ProtocolError("a request needs a command (text) and args (an object)")
    return Request(id_, command, args)


def encode_reply(id_: str, reply: Progress | Result) -> bytes:
    """One line."""
    common: dict[str, Any] = {"v": VERSION, "id": id_}
    if isinstance(reply, Progress):
        return _line({**common, "kind": "progress", "text": reply.text, "data": dict(reply.data)})
    rest = {"code": int(reply.code), "text": reply.text, "detail": reply.detail, "data": dict(reply.data)}
    return _line({**common, "kind": "result", **rest})


def decode_reply(line: bytes) -> Progress | Result | None:
    """Read one line of a supervisor; None for a kind that we do not know (a newer one's).

    Raises:
        ProtocolError: It is no reply.
    """
    message = _object(line)
    text, data, kind = message.get("text", ""), message.get("data", {}), message.get("kind")
    if not isinstance(text, str) or not isinstance(data, dict):
        raise ProtocolError("a reply needs text and data")
    if kind == "progress":
        return Progress(text, data)
    if kind != "result":
        return None
    code, detail = message.get("code"), message.get("detail", "")
    if not isinstance(code, int) or isinstance(code, bool) or not isinstance(detail, str):
        raise ProtocolError("a result needs a code and a detail")
    return Result(code, text, detail, data)


def _line(message: Mapping[str, Any]) -> bytes:
    # Pure ASCII: file names that are no UTF-8 hold lone surrogates, which only \\u can carry.
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise ProtocolError("a line on the control socket must be one JSON object") from exc
    if not isinstance(message, dict):
        raise ProtocolError("a line on the control socket must be one JSON object")
    return message
