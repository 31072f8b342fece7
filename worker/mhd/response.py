"""Responses by the manual's names."""

from collections.abc import Callable, Sequence
from typing import Any

from quiesce.worker.core.response_head import BadResponse
from quiesce.worker.mhd.constants import (
    MHD_CONTENT_READER_END_OF_STREAM,
    MHD_NO,
    MHD_SIZE_UNKNOWN,
    MHD_YES,
    MHD_ResponseMemoryMode,
)
from quiesce.worker.response import Freed, Options, Response

Buffer = bytes | bytearray | memoryview
ContentReaderCallback = Callable[[Any, int, bytearray, int], int]


def MHD_create_response_from_buffer(size: int, buffer: Buffer | None, mode: int) -> Response | None:
    """The first ``size`` bytes of a buffer."""
    return _from_buffer(size, buffer, mode == MHD_ResponseMemoryMode.MHD_RESPMEM_MUST_COPY, None)


def MHD_create_response_from_data(
    size: int, data: Buffer | None, must_free: int, must_copy: int
) -> Response | None:
    """The same by the name of old."""
    return _from_buffer(size, data, bool(must_copy), None)


def MHD_create_response_from_buffer_static(size: int, buffer: Buffer | None) -> Response | None:
    return _from_buffer(size, buffer, False, None)


def MHD_create_response_from_buffer_copy(size: int, buffer: Buffer | None) -> Response | None:
    return _from_buffer(size, buffer, True, None)


def MHD_create_response_from_buffer_with_free_callback(
    size: int, buffer: Buffer | None, crfc: Callable[[Any], object]
) -> Response | None:
    return _from_buffer(size, buffer, False, lambda: crfc(buffer))


def MHD_create_response_from_buffer_with_free_callback_cls(
    size: int, buffer: Buffer | None, crfc: Callable[[Any], object], crfc_cls: Any
) -> Response | None:
    return _from_buffer(size, buffer, False, lambda: crfc(crfc_cls))


def _from_buffer(
    size: int, buffer: Buffer | None, copy: bool, free: Callable[[], object] | None
) -> Response | None:
    data = b"" if buffer is None else buffer
    if size < 0 or size > len(data):  # a buffer that is not there, or MHD_SIZE_UNKNOWN
        return None
    view = data if size == len(data) else memoryview(data)[:size]
    return Response.from_buffer(view, copy=copy, free=None if free is None else lambda: void(free))


def void(call: Callable[[], object]) -> None:
    """Call, and forget what it returns."""
    call()


def MHD_create_response_from_fd(size: int, fd: int) -> Response | None:
    """``size`` bytes of a file; the descriptor is closed with the response."""
    return MHD_create_response_from_fd_at_offset64(size, fd, 0)


def MHD_create_response_from_fd64(size: int, fd: int) -> Response | None:
    return MHD_create_response_from_fd_at_offset64(size, fd, 0)


def MHD_create_response_from_fd_at_offset(size: int, fd: int, offset: int) -> Response | None:
    return MHD_create_response_from_fd_at_offset64(size, fd, offset)


def MHD_create_response_from_fd_at_offset64(size: int, fd: int, offset: int) -> Response | None:
    """The same from ``offset`` on; None (and the descriptor stays the caller's) for a range that no file has."""
    if size < 0 or fd < 0:
        return None
    try:
        return Response.from_fd(fd, size, offset)
    except (ValueError, OSError):
        return None


def MHD_create_response_from_pipe(fd: int) -> Response | None:
    """What a pipe gives until its end."""
    return None if fd < 0 else Response.from_pipe(fd)


def MHD_create_response_from_iovec(
    iov: Sequence[Buffer | None], iovcnt: int, free_cb: Callable[[Any], object] | None, cls: Any
) -> Response | None:
    """Several buffers, not copied."""
    parts = list(iov)[:iovcnt]
    if len(parts) != iovcnt or any(part is None for part in parts):
        return None
    free = None if free_cb is None else lambda: void(lambda: free_cb(cls))
    return Response.from_buffers([part for part in parts if part is not None], free=free)


def MHD_create_response_from_callback(
    size: int,
    block_size: int,
    crc: ContentReaderCallback | None,
    crc_cls: Any,
    crfc: Callable[[Any], object] | None,
) -> Response | None:
    """What ``crc(cls, pos, buf, max)`` writes into ``buf``: it returns how many bytes, 0 for "not now", or one of
    MHD_CONTENT_READER_END_…
    """
    if crc is None or block_size <= 0:
        return None
    reader = crc

    def read(position: int, most: int) -> bytes | None:
        buffer = bytearray(most)
        count = reader(crc_cls, position, buffer, most)
        if count == MHD_CONTENT_READER_END_OF_STREAM:
            return None
        if not 0 <= count <= most:
            raise OSError("the content reader ends with an error")
        return bytes(memoryview(buffer)[:count])

    known = -1 if size == MHD_SIZE_UNKNOWN else size
    free = None if crfc is None else lambda: void(lambda: crfc(crc_cls))
    return Response.from_reader(read, known, block=block_size, free=free)


def MHD_create_response_empty(flags: int) -> Response | None:
    """No body."""
    return Response.empty(200, options=Options(flags))


def MHD_destroy_response(response: Response | None) -> None:
    """Give the creator's reference up."""
    if response is not None:
        response.close()


def MHD_set_response_options(response: Response | None, flags: int, *options: Any) -> int:
    """Flags; the only option is the end of options (0)."""
    if response is None or options != (0,):
        return MHD_NO
    try:
        response.options = Options(flags)
    except ValueError:
        return MHD_NO
    return MHD_YES


def MHD_add_response_header(response: Response | None, header: str | None, content: str | None) -> int:
    return _add(response, header, content, lambda response, name, value: response.add_header(name, value))


def MHD_add_response_footer(response: Response | None, footer: str | None, content: str | None) -> int:
    return _add(response, footer, content, lambda response, name, value: response.add_footer(name, value))


def _add(
    response: Response | None,
    name: str | None,
    value: str | None,
    add: Callable[[Response, str, str], None],
) -> int:
    if response is None or name is None or value is None:
        return MHD_NO
    try:
        add(response, name, value)
    except (BadResponse, Freed):
        return MHD_NO
    return MHD_YES


def MHD_del_response_header(response: Response | None, header: str | None, content: str | None) -> int:
    if response is None or header is None or content is None:
        return MHD_NO
    return MHD_YES if response.remove_header(header, content) else MHD_NO


def MHD_get_response_header(response: Response | None, key: str | None) -> str | None:
    return None if response is None or key is None else response.header(key)


def MHD_get_response_headers(
    response: Response | None, iterator: Callable[[Any, int, str, str], int] | None, iterator_cls: Any
) -> int:
    """Visit headers and footers until the iterator returns MHD_NO; how many there are."""
    if response is None:
        return -1
    for name, value in response.headers if iterator is not None else ():
        if iterator is not None and iterator(iterator_cls, 1, name, value) == MHD_NO:
            break
    return len(response.headers)
