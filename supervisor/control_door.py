"""The control socket of this instance: the one that the last supervisor has left, or a new one."""

import os
import socket

from quiesce.supervisor import fdnames
from quiesce.supervisor.adoption import Inheritance
from quiesce.supervisor.control_server import open_control_socket, remove_own_socket
from quiesce.supervisor.core.snapshot import Snapshot
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.identity import group_id
from quiesce.supervisor.places import Places

Inode = tuple[int, int]


def open_door(
    places: Places, control_group: str, store: FdStore, legacy: Inheritance, snapshot: Snapshot | None
) -> tuple[socket.socket, int | None, Inode | None]:
    """Listen for commands.

    Returns:
        The listener, which is in the store and becomes the caller's; the group whose members may use every command,
        if there is one; and the file, by which the next supervisor knows that the path still leads to this socket.
    """
    gid = group_id(control_group) if control_group else None
    listener = _adopt(places, store, legacy, snapshot) or open_control_socket(places, gid)
    store.put(fdnames.CONTROL, listener.fileno())
    return listener, gid, _inode(places.control_sock)


def _adopt(
    places: Places, store: FdStore, legacy: Inheritance, snapshot: Snapshot | None
) -> socket.socket | None:
    """The last supervisor's: who connects meanwhile waits in its queue, and is answered."""
    fd = legacy.take(fdnames.CONTROL)
    if fd is None:
        return None
    inode = _inode(places.control_sock)
    if snapshot is not None and inode is not None and snapshot.control_inode == inode:
        return socket.socket(fileno=fd)
    # Its file is another one by now, or the last supervisor did not get far enough to say.  We hold the
    # lock, so nobody else's can be in the way; the store's copy would still be answering.
    store.drop(fdnames.CONTROL)
    os.close(fd)
    remove_own_socket(places.control_sock)
    return None


def _inode(path: str) -> Inode | None:
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return info.st_dev, info.st_ino
