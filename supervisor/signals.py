"""The supervisor's signals: handlers only wake the loop.

signal.set_wakeup_fd(3): the C handler writes the signal's number into a socket, so a signal
is a byte like any other; nothing of ours ever runs inside a handler.
"""

import signal
import socket
from collections.abc import Callable, Mapping

from quiesce.supervisor.loop import Loop


class Signals:
    """Installs handlers; gives each signal to its action in the loop, in order of arrival."""

    def __init__(self, loop: Loop, actions: Mapping[int, Callable[[], None]]) -> None:
        self._loop = loop
        self._actions = actions
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _nothing) for number in actions}
        # A child that leaves must not make every system call return early; pidfds tell us.
        self._old[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.watch(self._read.fileno(), self._on_bytes)
        # Whoever exec'd us blocked them (launch.py, keeper.py): none may come before its handler stands.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def _on_bytes(self, _events: int) -> None:
        try:
            numbers = self._read.recv(512)
        except BlockingIOError:
            return
        for number in numbers:
            action = self._actions.get(number)
            if action is not None:
                action()

    def close(self) -> None:
        """Give every signal back to whoever had it."""
        self._loop.unwatch(self._read.fileno())
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._read.close()
        self._write.close()


def reset_in_child() -> None:
    """In a forked child, all signals blocked: as after a plain exec, and nothing goes into *our* wakeup socket."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)


def _nothing(_number: int, _frame: object) -> None:
    """Only so that the signal neither kills nor is ignored; the wakeup descriptor says it all."""
