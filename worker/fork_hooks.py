"""What a child that the application forks must let go of.

It inherits every descriptor: a listener or a channel that it held would stay open after this worker's death, and a
client would never see the end of its connection.  And it must never act as the worker: no turn of the
loop, no word to the supervisor, no mark on the scoreboard.
"""

import os
from collections.abc import Callable, Iterable

_descriptors: list[Callable[[], Iterable[int]]] = []
_callbacks: list[Callable[[], None]] = []
_registered = False
_owner = os.getpid()


def guard(descriptors: Callable[[], Iterable[int]], callback: Callable[[], None] | None = None) -> None:
    """Close in forked children what ``descriptors`` returns then; call ``callback`` there afterwards.

    Children made by exec (subprocess) need none of this: all our descriptors are close-on-exec.
    """
    global _registered
    _descriptors.append(descriptors)
    if callback is not None:
        _callbacks.append(callback)
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_after_in_child)


def is_worker() -> bool:
    """Is this the process that was started as the worker, not a fork of it?"""
    return os.getpid() == _owner


def _after_in_child() -> None:
    for provider in _descriptors:
        try:
            _blank(provider())
        except Exception:
            pass  # the others still have to go; nothing may break the application's fork
    for callback in _callbacks:
        try:
            callback()
        except Exception:
            pass


def _blank(fds: Iterable[int]) -> None:
    """Let go of what each descriptor refers to, but keep its number taken.

    The objects that own these numbers live on in the child and will close them some day; by then a mere
    os.close() would have let the application have the number for a file of its own.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        if fd >= 0 and fd != null:
            os.dup2(null, fd, inheritable=False)
    os.close(null)
