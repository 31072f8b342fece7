"""Watch the keeper above us, and replace it when it dies.

A new keeper is no parent of ours: it learns by pidfd how we end (`keeper.py --watch`), and is given
everything again that the last one had stored.  Until then a crash of ours would end the service, so
nothing here waits for a person.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence

from quiesce.shared.deadlines import Timer
from quiesce.shared.logs import Log
from quiesce.supervisor.core.backoff import Backoff, after_death
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.launch import WATCHDOG_S, adopt_orphans, keeper_command
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier

COMM = "quiesce-keeper"  # what a keeper calls itself in /proc/PID/comm


class KeeperLink:
    """The keeper, as its supervisor sees it.  Owns a pidfd of it."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        store: FdStore,
        notifier: Notifier,
        argv: Sequence[str],
        keeper_pid: int,
        watchdog_s: float = WATCHDOG_S,
        on_change: Callable[[], None] = lambda: None,
        sockets: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Begin to watch.

        Args:
            argv: The command line with which a keeper starts the supervisor after us.
            keeper_pid: $QUIESCE_KEEPER.
            watchdog_s: What a new keeper is told; 0: it does not watch us.
            on_change: Called when there is another keeper, and what we want kept is with it (or cannot be).
            sockets: (name, descriptor) of what the user passed to the first keeper: it is not in our store, and the
                next keeper needs it all the same.  They stay the caller's.
        """
        self._loop = loop
        self._log = log
        self._store = store
        self._notifier = notifier
        self._argv = list(argv)
        self._watchdog_s = watchdog_s
        self._on_change = on_change
        self._sockets = sockets
        self._backoff = Backoff()
        self._timer: Timer | None = None
        self._stopped = False
        self._since = loop.now()
        self._pidfd: int | None = None
        self.pid: int | None = keeper_pid  # for `status`; None: there is none just now
        self.address: str | None = None  # of a keeper that we started ($NOTIFY_SOCKET, for `reexec`)
        self._watch(keeper_pid, known=False)

    def stop_watching(self) -> None:
        """We are leaving: a keeper that dies now is not missed."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unwatch()

    def close(self) -> None:
        self.stop_watching()

    def environment(self) -> dict[str, str]:
        """What of the environment that our first keeper gave us is not true any more."""
        if self.address is None or self.pid is None:
            return {}
        return {"NOTIFY_SOCKET": self.address, "QUIESCE_KEEPER": str(self.pid)}

    # -- watching ------------------------------------------------------------------------

    def _watch(self, pid: int, known: bool) -> None:
        """``known``: we have just started it, and it has not had time to call itself a keeper."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._lost)
            return
        # Read after it was opened, so that both speak of one process: numbers are used again.
        if not known and os.getppid() != pid and not _is_keeper(pid):
            os.close(pidfd)
            self._loop.call_soon(self._lost)
            return
        self._pidfd = pidfd
        self._loop.watch(pidfd, lambda _events: self._lost())

    def _unwatch(self) -> None:
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)

    def _lost(self) -> None:
        self._unwatch()
        if self._stopped:
            return
        now = self._loop.now()
        self._backoff, delay_s, _ = after_death(self._backoff, now, now - self._since)
        self._log.warning("keeper lost; starting another", pid=self.pid, delay_s=delay_s)
        self._store.lost_its_manager(f"the keeper (pid {self.pid}) died, and another one is started")
        self.pid = None
        self._on_change()
        self._again(delay_s)

    def _again(self, delay_s: float) -> None:
        self._timer = self._loop.call_at(self._loop.now() + delay_s, self._replace)

    # -- replacing -----------------------------------------------------------------------

    def _replace(self) -> None:
        self._timer = None
        self._since = self._loop.now()
        try:
            self._start()
        except OSError as exc:
            self._backoff, delay_s, _ = after_death(self._backoff, self._since, 0.0)
            self._log.error("no keeper can be started", why=exc, again_in_s=delay_s)
            self._store.lost_its_manager(f"the keeper died, and no other one can be started: {exc}")
            self._again(delay_s)
            return
        # The socket was bound before the keeper began: what is said from here on waits in it.
        self._notifier.move_to(self.address)
        self._store.put_all_again()
        pid = self.pid
        self._store.measure(1, lambda _works: self._store.sync(lambda stored: self._replaced(pid, stored)))

    def _start(self) -> None:
        """Start a keeper that takes over; raises OSError.  The notify socket is its own afterwards."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # Before anything can be sent: a message without credentials would be nobody's.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            sock.bind("")
            ourselves = os.pidfd_open(os.getpid())
            try:
                pid = self._spawn(sock.fileno(), ourselves)
            finally:
                os.close(ourselves)
            self.address = "@" + sock.getsockname()[1:].decode()
        self.pid = pid
        self._watch(pid, known=True)

    def _spawn(self, notify: int, ourselves: int) -> int:
        options = ["--watch", str(os.getpid()), "--pidfd", str(ourselves), "--socket", str(notify)]
        options += ["--watchdog", f"{self._watchdog_s:g}"]
        for name, fd in self._sockets:
            options += ["--keep", f"{name}={fd}"]
        passed = (notify, ourselves, *(fd for _, fd in self._sockets))
        return spawn_orphan(keeper_command(self._argv, options), passed)

    def _replaced(self, pid: int | None, stored: bool) -> None:
        if self.pid != pid or self._stopped:
            return  # it has died meanwhile, and its successor is told all again
        if stored:
            self._log.info("keeper replaced", pid=self.pid)
        else:
            self._log.warning(
                "keeper replaced, but it has not everything", pid=self.pid, why=self._store.reason
            )
        self._on_change()


def _is_keeper(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as file:
            return file.read().strip() == COMM
    except (OSError, ValueError):
        return False


def spawn_orphan(argv: Sequence[str], passed: Sequence[int]) -> int:
    """Run a program that is nobody's child of ours, in a session of its own; returns its pid.

    It begins with all signals blocked.  Blocks until it has been executed, a few milliseconds.

    Args:
        passed: Descriptors that it inherits under their numbers; the caller keeps them.

    Raises:
        OSError: No process, or it cannot be executed.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    # Our handlers write to a descriptor that a child shares: none may run there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = os.fork()
        if child == 0:
            _fork_again(argv, passed, write)  # never returns
    except OSError:
        os.close(read)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write)
    with os.fdopen(read, "rb") as file:
        told = file.read()  # ends when the program has been executed, or could not be
    os.waitpid(child, 0)
    numbers = [int(word) for word in told.split()]  # a pid; an errno with a minus; in either order
    failed = [-number for number in numbers if number < 0]
    if failed or not numbers:
        number = failed[0] if failed else errno.ECHILD
        raise OSError(number, os.strerror(number), argv[0])
    return numbers[0]


def _fork_again(argv: Sequence[str], passed: Sequence[int], told: int) -> None:
    """In the child.  The grandchild executes the program; whoever reaps orphans becomes its parent."""
    try:
        pid = os.fork()
        if pid:
            os.write(told, b"%d " % pid)
            os._exit(0)
        os.setsid()
        adopt_orphans()
        for fd in passed:
            os.set_inheritable(fd, True)
        os.execv(argv[0], list(argv))
    except OSError as exc:
        os.write(told, b"%d " % -(exc.errno or errno.EINVAL))
    finally:
        os._exit(127)
