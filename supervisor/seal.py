"""Keep new connections away from a listening socket that is to be closed.

close() resets whoever is still in a listener's queue, and while clients come there is always somebody.  So
nobody may come any more first; those who are in the queue are accepted by workers; then it can be closed.
"""

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # not in every Python's socket module
_FLAGS_OFFSET = 13  # in the TCP header, where a filter of a TCP socket begins to read
_SYN = 0x02

# Classic BPF, which every user may attach: (code, jump if true, jump if false, operand).
_DROP_SYN = (
    (0x30, 0, 0, _FLAGS_OFFSET),  # A = the byte of flags
    (0x54, 0, 0, _SYN),  # A &= SYN
    (0x15, 0, 1, _SYN),  # is it set?
    (0x06, 0, 0, 0),  # then the packet is dropped
    (0x06, 0, 0, 0xFFFFFFFF),  # else it is kept whole: the ACK that ends a handshake under way
)


def drop_new_connections(sock: socket.socket) -> None:
    """From now on a TCP listener ignores SYNs, as if they were lost on the way; there is no way back.

    A client sends its SYN again a second later, and meets whoever listens then: another listener of
    the same port, or none, and is refused.

    Raises:
        OSError: The kernel has no such filter; the listener is as it was.

    Source: socket(7) SO_ATTACH_FILTER, which applies to all who share the socket.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
    pointer = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
