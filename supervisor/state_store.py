"""The memfd in which the next supervisor finds what this one was doing.

Two halves, written in turn, each with a sequence number and a checksum: whatever moment a
SIGKILL comes in, one of them is whole.  The memfd lies in the descriptor store (fdstore.py), so it
lives as long as systemd or the keeper do, and no disk is involved.
"""

import os
import struct
from zlib import crc32

from quiesce.shared.errors import QuiesceError

HALF_BYTES = 4 << 20  # sparse: what is not written takes no memory
_HEADER = struct.Struct("=8sQQI")  # magic, sequence number, length, checksum of all that and the payload
_MAGIC = b"QUIESCES"
MAX_BYTES = HALF_BYTES - _HEADER.size


class StateStore:
    """Owns its descriptor, ``fd`` (close-on-exec)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._seq = 0

    @classmethod
    def create(cls) -> "StateStore":
        """A new, empty one."""
        return cls(os.memfd_create("quiesce-state", os.MFD_CLOEXEC))

    @classmethod
    def adopt(cls, fd: int) -> tuple["StateStore", bytes | None]:
        """Take over what another supervisor wrote: the store, and its newest whole state (None: there is none).

        Takes the descriptor.
        """
        store = cls(fd)
        found = [half for half in (_read(fd, 0), _read(fd, 1)) if half is not None]
        if not found:
            return store, None
        store._seq, payload = max(found)
        return store, payload

    def write(self, payload: bytes) -> None:
        """Make this the state, wholly or not at all.

        Raises:
            QuiesceError: It is too long; the last one stays.
        """
        if len(payload) > MAX_BYTES:
            raise QuiesceError(f"a state of {len(payload)} bytes is longer than {MAX_BYTES}")
        seq = self._seq + 1
        at = seq % 2 * HALF_BYTES
        head = _HEADER.pack(_MAGIC, seq, len(payload), _checksum(seq, payload))
        # One call: a signal that kills us comes before it or after it, or leaves a checksum that is wrong.
        os.pwritev(self.fd, [head, payload], at)
        self._seq = seq

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _read(fd: int, half: int) -> tuple[int, bytes] | None:
    at = half * HALF_BYTES
    try:
        head = os.pread(fd, _HEADER.size, at)
        magic, seq, length, checksum = _HEADER.unpack(head)
        if magic != _MAGIC or length > MAX_BYTES:
            return None
        payload = os.pread(fd, length, at + _HEADER.size)
    except (OSError, struct.error):
        return None
    whole = len(payload) == length and checksum == _checksum(seq, payload)
    return (seq, payload) if whole else None


def _checksum(seq: int, payload: bytes) -> int:
    return crc32(payload, crc32(struct.pack("=QQ", seq, len(payload))))
