"""WSGI, PEP 3333."""

import os
import stat
import sys
from collections.abc import Callable, Iterable
from io import BytesIO
from types import TracebackType
from typing import IO, Any

from quiesce.worker.core.head_memo import SECRET
from quiesce.worker.core.rejected import REASONS
from quiesce.worker.core.request import Address, Header, Request, unquote
from quiesce.worker.core.response_head import BadResponse, Head, HeadMemo, encode
from quiesce.worker.net.exchange import Exchange
from quiesce.worker.net.parts import Parts

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
Environ = dict[str, Any]
_Kept = tuple[Address, str, bool, Environ]
"""Our address, the scheme and whether we run in the loop's thread, as they were, and what a head's environ was."""

_KEYS: dict[bytes, str] = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}
_MOST_KEYS = 1000
_LONGEST_KEY = 100
_LONGEST_VALUE = 256
_MOST_ENVIRONS = 250
_OWN_KEYS = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "QUERY_STRING",
    "RAW_URI",
    "REQUEST_URI",
    "REMOTE_ADDR",
    "wsgi.input",
    "wsgi.errors",
)
_ROOM = 5  # with these a dict takes the next size, and has not so many holes that a copy closes them
_JOIN_BELOW = 64 * 1024


class _Odd(Exception):
    """A field that must not become a variable."""


class FileWrapper:
    """``wsgi.file_wrapper``: sent by the kernel if it is a regular file, read in blocks if not."""

    def __init__(self, file: IO[bytes], block_size: int = 64 * 1024) -> None:
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        data = self.file.read(self.block_size)
        if data:
            return data
        raise StopIteration

    def rest_of_file(self) -> tuple[int, int, int] | None:
        """(descriptor of ours, offset, count) of what is left to read, or None if the kernel cannot send it."""
        try:
            fd = self.file.fileno()
            status = os.fstat(fd)
            offset = self.file.tell()
        except (AttributeError, OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return os.dup(fd), offset, max(0, status.st_size - offset)


class _Variables(dict[Header, tuple[str, str]]):
    """Fields to what they are in an environ.  Bounded."""

    def __missing__(self, field: Header) -> tuple[str, str]:
        name, value = field
        key = _KEYS.get(name)
        if key is None:
            key = _learn(name)
            if not key:
                raise _Odd
        variable = key, value.decode("latin-1")
        if name not in SECRET and len(value) <= _LONGEST_VALUE and len(name) <= _LONGEST_KEY:
            if len(self) >= _MOST_KEYS:
                self.clear()
            self[field] = variable
        return variable


class WsgiApp:
    """See :class:`quiesce.worker.apps.base.App`."""

    interface = "wsgi"
    streams_body = False
    blocking = True

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._bases: dict[tuple[Address, str, bool], Environ] = {}
        self._targets: dict[bytes, tuple[str, str, str]] = {}  # PATH_INFO, QUERY_STRING, REQUEST_URI
        self._variables = _Variables()
        self._places: list[dict[str, Any]] = []  # that hold an environ of ours

    def handle(self, exchange: Exchange) -> None:
        call = _Call()
        call.exchange = exchange
        result = self._application(self._environ(exchange), call.start_response)
        if type(result) is list and not call.wrote:
            call.send_whole(result)  # the usual case, and a list has no close()
        else:
            call.send(result, getattr(result, "close", None))

    def _environ(self, exchange: Exchange) -> Environ:
        request = exchange.request
        local, scheme = request.local, request.scheme
        is_inline = exchange._connection.daemon.is_inline
        place = None if request._parts is None else request._parts[3]
        kept: _Kept | None = place.get("environ") if place else None
        if kept is not None and kept[0] == local and kept[1] == scheme and kept[2] == is_inline:
            environ = kept[3].copy()  # the application's own
        else:
            environ = self._made(request, self._base_of(local, scheme, is_inline))
            if place is not None and kept is None:  # of two listeners with the same heads one has it quicker
                self._keep(place, (local, scheme, is_inline, environ.copy()))
        environ["wsgi.input"] = request.opened or BytesIO(request.content or b"")  # which shares the bytes
        environ["wsgi.errors"] = sys.stderr
        peer = request.peer
        if peer is None:
            environ["REMOTE_ADDR"] = ""
        else:
            environ["REMOTE_ADDR"] = peer[0]
            environ["REMOTE_PORT"] = str(peer[1])
        return environ

    def _made(self, request: Request, base: Environ) -> Environ:
        """All that the head says."""
        environ = base.copy()
        environ["REQUEST_METHOD"] = request.method
        target = self._targets.get(request.target) or self._learn_target(request)
        environ["PATH_INFO"], environ["QUERY_STRING"], uri = target
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri
        if request.version != "1.1":
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        variables = self._variables
        try:
            for field in request.headers:
                key, text = variables[field]
                environ[key] = text
        except _Odd:
            _add_one_by_one(environ, request)
        else:
            if len(environ) != len(base) + len(request.headers):  # a name came twice
                _add_one_by_one(environ, request)
        if request.local is None:
            _name_from_host(environ, request)
        return environ

    def _keep(self, place: dict[str, Any], kept: _Kept) -> None:
        if len(self._places) >= _MOST_ENVIRONS:
            for other in self._places:
                other.clear()
            self._places.clear()
        self._places.append(place)
        place["environ"] = kept

    def _base_of(self, local: Address, scheme: str, is_inline: bool) -> Environ:
        """What the requests of a listener have in common."""
        known = self._bases.get((local, scheme, is_inline))
        if known is not None:
            return known
        base: Environ = {
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
            "SERVER_SOFTWARE": "quiesce",
            "wsgi.url_scheme": scheme,
            "wsgi.multithread": not is_inline,
            "SERVER_PROTOCOL": "HTTP/1.1",
        }
        if local is not None:
            base |= {"SERVER_NAME": local[0], "SERVER_PORT": str(local[1])}
        # What each request sets has its key here already, and there is room for its fields: a copy is as roomy as what
        # it was copied from, and to grow would cost it more than all else that we do.
        base |= dict.fromkeys(_OWN_KEYS)
        room = [str(number) for number in range(_ROOM)]
        base |= dict.fromkeys(room)
        for key in room:
            del base[key]
        if len(self._bases) >= _MOST_KEYS:
            self._bases.clear()
        self._bases[(local, scheme, is_inline)] = base
        return base

    def _learn_target(self, request: Request) -> tuple[str, str, str]:
        path = unquote(request.raw_path).decode("latin-1")
        target = path, request.query.decode("latin-1"), request.target.decode("latin-1")
        if len(request.target) <= _LONGEST_KEY:
            if len(self._targets) >= _MOST_KEYS:
                self._targets.clear()
            self._targets[request.target] = target
        return target


def _learn(name: bytes) -> str:
    """The environ key of a header; "" for one that another could be taken for."""
    if b"_" in name:
        return ""  # X_Forwarded_For would pass for X-Forwarded-For, which a proxy has checked
    if len(_KEYS) > _MOST_KEYS or len(name) > _LONGEST_KEY:
        return "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    key = _KEYS[name] = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    return key


def _add_one_by_one(environ: Environ, request: Request) -> None:
    """The fields of a head that has names twice, or odd ones."""
    for name, _ in request.headers:
        environ.pop(_KEYS.get(name) or _learn(name), None)
    for name, value in request.headers:
        key = _KEYS.get(name) or _learn(name)
        if not key:
            continue
        text = value.decode("latin-1")
        if key in environ:
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{text}"
        environ[key] = text


def _name_from_host(environ: Environ, request: Request) -> None:
    """On a unix socket only Host can say who we are; PEP 3333 wants a name and a port that are not empty."""
    host, _, port = str(environ.get("HTTP_HOST", "")).rpartition(":")
    if not port.isdigit():
        host, port = str(environ.get("HTTP_HOST", "")), "443" if request.scheme == "https" else "80"
    environ["SERVER_NAME"], environ["SERVER_PORT"] = host or "localhost", port


_heads = HeadMemo()


class _Call:
    """One call of the application: what start_response and write do."""

    exchange: Exchange  # set by who makes it: an __init__ costs a call
    wrote = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        exchange = self.exchange
        if exc_info:
            try:
                if exchange.started:
                    assert exc_info[1] is not None
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle through the frame
        elif exchange.status:
            raise AssertionError("start_response was called twice without exc_info")
        if type(headers) is not list:
            headers = list(headers)
        try:
            head = _heads.get((status, *headers))
        except TypeError:  # pairs that are lists
            head = None
        exchange.start_head(head or self._encoded(status, headers))
        return self.write

    def _encoded(self, status: str, headers: list[tuple[str, str]]) -> Head:
        code, _, reason = status.partition(" ")
        if len(code) != 3 or not code.isdigit():
            raise BadResponse(f"the status {status!r} does not begin with three digits")
        head = encode(int(code), _encode(headers), _reason(int(code), reason))
        if all(type(pair) is tuple for pair in headers):
            _heads.keep((status, *headers), head)
        return head

    def write(self, data: bytes) -> None:
        """The callable that start_response returns.  Older than iterables; it sends at once."""
        exchange = self.exchange
        self.wrote = True
        if exchange.write(data) > exchange.high_water and exchange.may_wait:
            exchange.wait_writable(exchange.low_water)

    def send(self, result: Iterable[bytes], close: Callable[[], None] | None) -> None:
        """Send what the application returned, then close it."""
        exchange = self.exchange
        if not isinstance(result, (list, tuple, FileWrapper)) or self.wrote:
            Parts(exchange, result, close).run()
            return
        try:
            piece = result.rest_of_file() if isinstance(result, FileWrapper) else None
            if piece is not None:
                self._send_file(*piece)
            elif isinstance(result, FileWrapper):
                Parts(exchange, result, None).run()
            else:
                self.send_whole(result)
        finally:
            if close is not None:
                close()

    def send_whole(self, parts: list[bytes] | tuple[bytes, ...]) -> None:
        """It is all there: it is queued at once, and a client that reads slowly holds no thread."""
        exchange = self.exchange
        if not exchange.status:
            raise AssertionError("the application returned without calling start_response")
        if len(parts) == 1 and type(parts[0]) is bytes:
            exchange.finish(parts[0])
            return
        size = sum(map(len, parts))
        if size <= _JOIN_BELOW or len(parts) == 1:
            exchange.finish(b"".join(parts))
            return
        exchange.expect(size)
        for part in parts:
            exchange.write(part)
        exchange.finish()

    def _send_file(self, fd: int, offset: int, count: int) -> None:
        if not self.exchange.status:
            os.close(fd)
            raise AssertionError("the application returned without calling start_response")
        self.exchange.send_file(fd, offset, count)
        self.exchange.finish()


def _encode(headers: list[tuple[str, str]]) -> list[Header]:
    try:
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    except UnicodeEncodeError as exc:
        raise BadResponse(f"header {exc.object!r} is not Latin-1") from None


def _reason(code: int, reason: str) -> bytes:
    """b"" for the usual one, whose line is kept ready."""
    return b"" if not reason or REASONS.get(code) == reason else reason.encode("latin-1", "replace")
