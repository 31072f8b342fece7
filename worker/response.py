"""What an application answers with, wherever its bytes come from.

One response may be on its way to many clients at once, in many threads.  It is counted as the manual of
libmicrohttpd tells it: its creator has one reference, each answer that is queued has one until it is sent or
its client has gone, and when the last reference goes, so does what the bytes came from.
"""

import os
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from enum import Flag

from quiesce.worker.core import response as core
from quiesce.worker.core.response import Headers
from quiesce.worker.core.response_fields import Fields, check_field
from quiesce.worker.core.response_head import BadResponse, Head, encode

Buffer = bytes | bytearray | memoryview
Reader = Callable[[int, int], bytes | None]
"""``reader(position, most)``: the next bytes, at most so many; ``None`` at the end; ``b""`` for "not now"; what it
raises cuts the connection, so that the client sees that the response is not whole."""


class Options(Flag):
    """How a response is framed, where the defaults are not wanted."""

    NONE = 0
    HTTP_1_0_STRICT = 1  # never in chunks, always the last on its connection
    HTTP_1_0_SERVER = 2  # the status line says HTTP/1.0: no chunks, kept only for a client that asks
    LENGTH_ALLOWED = 4  # Content-Length may be given as a header; it is checked against what is sent
    SAY_KEEP_ALIVE = 8  # "Connection: Keep-Alive" also where it is understood
    HEAD_ONLY = 16  # there is no body, whatever Content-Length says: for answers to HEAD only


ICY = 1 << 31
"""Added to a status: the status line says ICY in place of HTTP/1.1, as players of a SHOUTcast stream expect it."""


class Freed(ValueError):
    """The response has no reference left; it cannot be sent again."""


class Source:
    """Where bytes come from that are not a bytes object.  ``size`` is -1 where it is not known."""

    def __init__(self, size: int) -> None:
        self.size = size


class FromFile(Source):
    """A part of an open file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__(size)
        self.fd = fd
        self.offset = offset


class FromPipe(Source):
    """What can be read from a descriptor until its end.  For one client."""

    def __init__(self, fd: int) -> None:
        super().__init__(-1)
        self.fd = fd
        self.taken = False


class FromReader(Source):
    """What a function gives, piece by piece.  Never called by two threads at once."""

    def __init__(self, size: int, block: int, reader: Reader) -> None:
        super().__init__(size)
        self.block = block
        self.reader = reader
        self.lock = allocate_lock()


class FromBuffers(Source):
    """Several buffers, one after the other; only the list is copied."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        super().__init__(sum(map(len, self.buffers)))


class _More:
    """What few responses have: made when it is first asked for, so that the others do not pay."""

    def __init__(self, fields: Fields) -> None:
        self.lock = allocate_lock()
        self.references = 1
        self.fields = fields
        self.footers: list[tuple[bytes, bytes]] = []
        self.options = Options.NONE
        self.source: Source | None = None
        self.free: Callable[[], None] | None = None
        self.heads: dict[int, Head] = {}  # by status

    def drop(self) -> int:
        """One reference less; frees at none."""
        with self.lock:
            self.references -= 1
            left = self.references
            free = None
            if left <= 0:
                free, self.free = self.free, None
        if free is not None:
            free()
        return left

    def __del__(self) -> None:
        # A creator that never said close(): its reference goes with the object, as Python's users expect.
        free, self.free = self.free, None
        if free is not None:
            free()


_making = allocate_lock()


class Response(core.Response):
    """See :class:`quiesce.worker.core.response.Response` for the plain one, whose body is bytes, text or an iterable.

    The ``from_`` constructors take other sources.  ``free`` is called once, when nobody needs the source any more:
    after the last client has it all, or has gone, and after :meth:`close` (or when the object is garbage).
    """

    ICY = ICY  # to be added to the status that is queued
    __slots__ = ()
    _more: _More | None  # None until it is needed

    @classmethod
    def from_buffer(
        cls,
        data: Buffer,
        status: int = 200,
        headers: Headers = (),
        *,
        copy: bool = True,
        free: Callable[[], None] | None = None,
    ) -> "Response":
        """A buffer.  Without ``copy`` it must not change until ``free`` was called."""
        if copy or isinstance(data, bytes):
            return cls._make(status, headers, None, free, bytes(data))
        return cls._make(status, headers, FromBuffers([data]), free)

    @classmethod
    def from_buffers(
        cls,
        buffers: Sequence[Buffer],
        status: int = 200,
        headers: Headers = (),
        *,
        free: Callable[[], None] | None = None,
    ) -> "Response":
        """Several buffers, sent one after the other and not copied."""
        return cls._make(status, headers, FromBuffers(buffers), free)

    @classmethod
    def from_fd(
        cls, fd: int, size: int = -1, offset: int = 0, status: int = 200, headers: Headers = ()
    ) -> "Response":
        """``size`` bytes of a regular file from ``offset`` on (default: to its end), sent by the kernel.

        Owns the descriptor, whose position does not matter and is not changed; closed when the response is freed.

        Raises:
            ValueError: An offset or size that no file has; the descriptor stays the caller's.
        """
        if size < 0:
            size = os.fstat(fd).st_size - offset
        if offset < 0 or size < 0 or offset + size >= 1 << 63:
            raise ValueError(f"there is no range of {size} bytes at {offset}")
        return cls._make(status, headers, FromFile(fd, offset, size), lambda: os.close(fd))

    @classmethod
    def from_pipe(cls, fd: int, status: int = 200, headers: Headers = ()) -> "Response":
        """What a pipe (or socket) gives until its end, to one client.  Owns the descriptor, as :meth:`from_fd` does."""
        return cls._make(status, headers, FromPipe(fd), lambda: os.close(fd))

    @classmethod
    def from_reader(
        cls,
        reader: Reader,
        size: int = -1,
        status: int = 200,
        headers: Headers = (),
        *,
        block: int = 16 * 1024,
        free: Callable[[], None] | None = None,
    ) -> "Response":
        """What ``reader`` gives, at the client's pace, at most ``block`` bytes a call.  Unknown size: in chunks."""
        if block <= 0:
            raise ValueError("a block has at least one byte")
        return cls._make(status, headers, FromReader(size, block, reader), free)

    @classmethod
    def empty(cls, status: int = 204, headers: Headers = (), options: Options = Options.NONE) -> "Response":
        """No body."""
        response = cls._make(status, headers, None, None)
        response.options = options
        return response

    @classmethod
    def _make(
        cls,
        status: int,
        headers: Headers,
        source: Source | None,
        free: Callable[[], None] | None,
        body: bytes = b"",
    ) -> "Response":
        response = cls.__new__(cls)
        pairs = headers.items() if hasattr(headers, "items") else headers
        fields = Fields([])
        for name, value in pairs:
            fields.add(core.encode_text(name), core.encode_text(value), length_allowed=True)
        response.status = status
        response.body = body
        response.path = None
        response.head = encode(status, fields.pairs)
        response._cached = core.NOTHING_CACHED
        more = response._more = _More(fields)
        more.source = source
        more.free = free
        response._look()
        return response

    @property
    def more(self) -> _More:
        """What the plain response does not have."""
        more = self._more
        if more is None:
            with _making:
                more = self._more
                if more is None:
                    more = self._more = _More(Fields(self.head.fields()))
        return more

    @property
    def is_plain(self) -> bool:
        """Nothing but bytes under its own status: it is sent from its cache."""
        return type(self.body) is bytes and self.path is None

    def _look(self) -> None:
        """Is it still plain?  An empty path says no, so that the plain ones are asked for nothing else."""
        more = self.more
        special = more.source or more.options or more.fields.chunked or more.footers
        if not self.path:
            self.path = "" if special else None

    # -- references ---------------------------------------------------------------------------

    @property
    def references(self) -> int:
        """Its creator's, and one for each client that it is on its way to."""
        return 1 if self._more is None else self._more.references

    def retain(self) -> None:
        """One reference more.

        Raises:
            Freed: There is none left to add to.
        """
        more = self.more
        with more.lock:
            if more.references <= 0:
                raise Freed("the response was closed by everybody; make a new one")
            more.references += 1

    def release(self) -> None:
        """One reference less; with the last one what the bytes came from is freed, in this thread."""
        more = self.more
        if more.references <= 0:
            raise Freed("the response has no reference left to give up")
        more.drop()

    close = release
    """Its creator needs it no more.  Who has it queued still gets it."""

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- fields -------------------------------------------------------------------------------

    @property
    def options(self) -> Options:
        return self.more.options

    @options.setter
    def options(self, options: Options) -> None:
        """Raises:
        BadResponse: HEAD_ONLY with a body, or a Content-Length of the application's that would be forbidden.
        """
        more = self.more
        if options & Options.HEAD_ONLY and (more.source is not None or self.body or self.path):
            raise BadResponse("a response with a body is not for HEAD only")
        allowed = options & (Options.LENGTH_ALLOWED | Options.HEAD_ONLY)
        if self.head.length >= 0 and not allowed and more.options:
            raise BadResponse("the response has a Content-Length of its own")
        more.options = options
        self._look()

    def add_header(self, name: str, value: str) -> None:
        """Add a field; see :meth:`quiesce.worker.core.response_fields.Fields.add`.  Not while it is queued.

        Raises:
            BadResponse: It may not be said.
        """
        allowed = bool(self.more.options & (Options.LENGTH_ALLOWED | Options.HEAD_ONLY))
        self.more.fields.add(core.encode_text(name), core.encode_text(value), length_allowed=allowed)
        self._changed()

    def remove_header(self, name: str, value: str) -> bool:
        """Take away the field of exactly this name and value, or footer; False if there is none."""
        more = self.more
        pair = (core.encode_text(name), core.encode_text(value))
        if more.fields.remove(*pair):
            self._changed()
            return True
        if pair in more.footers:
            more.footers.remove(pair)
            return True
        return False

    def header(self, name: str) -> str | None:
        """The first value of that name."""
        value = self.more.fields.get(core.encode_text(name))
        return None if value is None else value.decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers, then footers."""
        more = self.more
        pairs = [*more.fields.all(), *more.footers]
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]

    def add_footer(self, name: str, value: str) -> None:
        """A field behind the body; only a response in chunks can say it.  Also while it is sent, from its reader."""
        pair = (core.encode_text(name), core.encode_text(value))
        check_field(*pair)
        self.more.footers.append(pair)
        self._look()

    def _changed(self) -> None:
        more = self.more
        self.head = encode(self.status, more.fields.pairs)
        more.heads.clear()
        self._look()
        self._cached = core.NOTHING_CACHED

    def head_for(self, status: int) -> Head:
        """The head under another status than its own, or with :data:`ICY`."""
        if status == self.status and not self.more.options & Options.HTTP_1_0_SERVER:
            return self.head
        more = self.more
        head = more.heads.get(status)
        if head is None:
            head = encode(status & ~ICY, more.fields.pairs)
            if status & ICY:
                head = _says(b"ICY", head)
            elif more.options & Options.HTTP_1_0_SERVER:
                head = _says(b"HTTP/1.0", head)
            more.heads[status] = head
        return head


def _says(protocol: bytes, head: Head) -> Head:
    lines = protocol + head.lines[len(b"HTTP/1.1") :]
    return Head(head.status, lines, head.length, head.close, head.dated)
