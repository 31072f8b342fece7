"""Shared memory in which every worker shows its state.

A memfd mapped by the supervisor and all workers, sized once and sealed against shrinking
and growing, so that no peer can make another one die of SIGBUS.  A header, then 1,024 slots
of 32 fields, all of them unsigned 64-bit numbers.  Each field is stored whole by the one worker that has the slot;
whoever reads treats it as a hint and never as an index or a size.

Fields are append-only: a worker of another version reads and writes the ones it knows.
"""

import errno
import fcntl
import mmap
import os
from enum import IntEnum

from quiesce.shared.errors import ProtocolError

SLOTS = 1024
SLOT_FIELDS = 32  # room for later ones
_HEADER_FIELDS = 512  # one page: magic, slots, fields of a slot, the flag below; the rest is zero
_UNREADY = 3  # a later version may use the fields behind it, and no bit of this one but the whole
_MAGIC = 0x5155_4945_5343_4531  # "QUIESCE1"
_BYTES = 8 * (_HEADER_FIELDS + SLOTS * SLOT_FIELDS)

# linux/fcntl.h and linux/memfd.h: fcntl and os have them only where Python was built with new headers
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3; with vm.memfd_noexec=2 a memfd is to be had no other way


class Field(IntEnum):
    """What a slot holds.  Counters never go back while a worker lives."""

    TURN_NS = 0  # CLOCK_MONOTONIC of the last turn of the serving loop: the heartbeat
    IN_REQUEST_SINCE_NS = 1  # a handler runs inline in the loop since then; 0 = none
    CONN_OPEN = 2
    CONN_IDLE = 3  # this and the next: when the loop's turn is over; see reading()
    CONN_BUSY = 4
    REQUESTS = 5  # whose head was complete
    RESP_1XX = 6
    RESP_2XX = 7
    RESP_3XX = 8
    RESP_4XX = 9
    RESP_5XX = 10
    BYTES_IN = 11
    BYTES_OUT = 12
    ACCEPTED = 13  # connections
    REFUSED = 14  # connections answered 503 because of a limit
    TIMEOUTS = 15  # connections ended by one of our timeouts
    ERRORS = 16  # responses that could not be completed
    HANDED_OUT = 17
    HANDED_IN = 18
    OLDEST_REQUEST_NS = 19  # the oldest request that runs in the thread pool began then; 0 = none
    ACCEPTING = 20  # 1: it takes connections, so it counts for the mean of those that do
    # What cannot be handed over, by its reason, while the worker quiesces or drains
    CONN_TLS = 21
    CONN_UPGRADED = 22
    CONN_BODY = 23  # half-read bodies
    CONN_CLOSING = 24  # its last answer is said, or was
    CONN_SUSPENDED = 25


COUNTERS = (
    Field.REQUESTS, Field.RESP_1XX, Field.RESP_2XX, Field.RESP_3XX, Field.RESP_4XX, Field.RESP_5XX,
    Field.BYTES_IN, Field.BYTES_OUT, Field.ACCEPTED, Field.REFUSED, Field.TIMEOUTS, Field.ERRORS,
    Field.HANDED_OUT, Field.HANDED_IN,
)  # fmt: skip


class Scoreboard:
    """The mapping.  Owns its descriptor.

    ``fd`` is the memfd, to be sent to others; -1 after :meth:`close`.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> "Scoreboard":
        """A new, empty, sealed scoreboard; its descriptor is close-on-exec.

        Raises:
            OSError: No memory, or no descriptor.
        """
        fd = _memfd()
        try:
            os.ftruncate(fd, _BYTES)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            board = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        board._view[0], board._view[1], board._view[2] = _MAGIC, SLOTS, SLOT_FIELDS
        return board

    @classmethod
    def attach(cls, fd: int) -> "Scoreboard":
        """Map a scoreboard that somebody sent us.  Takes the descriptor, also on failure.

        Raises:
            ProtocolError: It is not a sealed scoreboard of this layout.
        """
        try:
            # Seals first: what is not sealed may change its size after we have looked at it.
            sealed = fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS == _SEALS
            if not sealed or os.fstat(fd).st_size != _BYTES:
                raise ProtocolError("this is not a sealed scoreboard of the size that this version knows")
            board = cls(fd)
        except OSError as exc:
            os.close(fd)
            raise ProtocolError(f"this descriptor cannot be mapped as a scoreboard: {exc.strerror}") from exc
        except BaseException:
            os.close(fd)
            raise
        if tuple(board._view[:3]) != (_MAGIC, SLOTS, SLOT_FIELDS):
            board.close()
            raise ProtocolError("this memory is not a scoreboard of the layout that this version knows")
        return board

    def slot(self, number: int) -> memoryview:
        """The slot's fields, as a view of unsigned 64-bit integers indexed by :class:`Field`.

        Raises:
            ProtocolError: There is no such slot.
        """
        if not 0 <= number < SLOTS:
            raise ProtocolError(f"slot {number} is outside the scoreboard's {SLOTS}")
        start = _HEADER_FIELDS + number * SLOT_FIELDS
        return self._view[start : start + SLOT_FIELDS]

    def reading(self, number: int, field: Field) -> int:
        """What a slot says of a field: a hint.

        A worker whose application runs in its loop writes the figures of its requests when a turn is over.  The one
        that runs now is in none of them yet, and is known by IN_REQUEST_SINCE_NS.
        """
        slot = self.slot(number)
        value = int(slot[field])
        shown = slot[Field.CONN_BUSY] or not slot[Field.CONN_OPEN] or not slot[Field.IN_REQUEST_SINCE_NS]
        if shown or field not in (Field.CONN_BUSY, Field.CONN_IDLE):
            return value
        return 1 if field is Field.CONN_BUSY else max(0, value - 1)

    def column(self, field: int) -> memoryview:
        """One field of all slots, indexed by slot: a view with strides of unsigned 64-bit integers.

        For whoever looks at all the others: ``.tolist()`` of a part of it reads that part in one call.
        """
        if not 0 <= field < SLOT_FIELDS:
            raise IndexError(f"field {field} is outside a slot's {SLOT_FIELDS}")
        return self._view[_HEADER_FIELDS + field :: SLOT_FIELDS]

    @property
    def unready(self) -> bool:
        """`ready_path` is to answer 503: the instance is about to leave its load balancer (`quiesce drain`).

        The supervisor alone sets it.  Workers read it with each request instead of being told, so that
        none has to be reached, also a busy one, and a worker that starts meanwhile knows it as well.
        """
        return self._view[_UNREADY] != 0

    @unready.setter
    def unready(self, value: bool) -> None:
        self._view[_UNREADY] = int(value)

    def clear(self, number: int) -> None:
        """Make the slot empty, for its next worker."""
        slot = self.slot(number)
        for field in range(SLOT_FIELDS):
            slot[field] = 0

    def close(self) -> None:
        """Unmap (unless a slot is still in use somewhere) and close the descriptor.

        Closing twice is allowed.
        """
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            pass  # a slot view lives; the mapping, and its own duplicate of fd, go with it
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("quiesce-scoreboard", flags | _MFD_NOEXEC_SEAL)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return os.memfd_create("quiesce-scoreboard", flags)  # an older kernel
