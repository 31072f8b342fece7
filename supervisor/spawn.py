"""Start one worker process: fork, drop rights, exec the release's own interpreter.

The fork's child is the stub that drops rights *before* that interpreter runs, because the
`.pth` files of a release are its code too.  The supervisor has one thread, so the child may
run Python between fork and exec.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

from quiesce.shared.errors import SpawnError
from quiesce.shared.exitcodes import WorkerExit
from quiesce.supervisor.signals import reset_in_child

_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
_OOM_ABOVE_US = 100  # a tenth of all memory: whatever the supervisor has grown to, a worker goes first


class Identity(NamedTuple):
    """As whom a worker runs."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


class Spec(NamedTuple):
    """What the child needs; complete before the fork, so that little can fail after it."""

    python: str  # absolute, symlinks kept: a virtualenv is found by the link's own folder
    cwd: str
    env: Mapping[str, str]
    channel: int  # the worker's end
    output: int  # becomes 1 and 2
    umask: int
    identity: Identity | None = None  # None: as the supervisor


class _InstallationClosed(Exception):
    """The worker's user may not read our own files."""


class Spawned(NamedTuple):
    pid: int  # for people; signals go through the pidfd
    pidfd: int  # the caller owns it


def _package_folder() -> Path:
    # Not resolved: in a checkout quiesce/worker is a link, and quiesce/ is what must be importable.
    return Path(str(sys.modules["quiesce"].__file__)).absolute().parent


def _borrowed_roots() -> str:
    """Folders in which a release without quiesce finds ours and what it needs, as one argument."""
    roots = [str(_package_folder().parent)]
    for library in ("httptools", "setproctitle"):
        spec = find_spec(library)
        if spec is not None and spec.origin:
            roots.append(str(Path(spec.origin).parent.parent))
    return os.pathsep.join(dict.fromkeys(roots))


class Spawner:
    """Spawns workers.  Made at start, so that replacing the installed package later mixes nothing."""

    def __init__(self) -> None:
        self._bootstrap = str(_package_folder() / "worker" / "bootstrap.py")
        self._version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        self._roots = _borrowed_roots()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def spawn(self, spec: Spec) -> Spawned:
        """Start a worker.  Keeps no descriptor; the caller closes the worker's ends afterwards.

        What goes wrong in the child (no such interpreter, no right to a directory) is written to
        ``spec.output`` and shows as exit status 77.

        Raises:
            SpawnError: No process could be made at all.
        """
        argv = [spec.python, "-P", self._bootstrap, str(spec.channel), self._version, self._roots]
        # A signal that came between fork and the child's own setup would be written into *our*
        # wakeup socket by the child: a Ctrl-C counted twice.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._child(spec, argv)
            return Spawned(pid, _pidfd_of(pid))
        except OSError as exc:
            raise SpawnError(
                f"cannot start a process: {exc.strerror}; look at TasksMax= of the unit, `ulimit -u` and memory"
            ) from exc
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _child(self, spec: Spec, argv: list[str]) -> NoReturn:
        try:
            reset_in_child()
            os.setsid()  # only the foreground process hears the terminal
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(spec.output, 1)
            os.dup2(spec.output, 2)
            os.set_inheritable(spec.channel, True)
            os.umask(spec.umask)
            _offer_to_the_oom_killer()
            if spec.identity is not None:
                self._become(spec.identity)
            os.chdir(spec.cwd)  # as the user, who may not be allowed to
            if not os.access(self._bootstrap, os.R_OK):
                raise _InstallationClosed(_closed(self._bootstrap))
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(spec.python, argv, spec.env)
        except BaseException as exc:
            os.write(2, f"quiesce: {_explain(exc, spec)}\n".encode("utf-8", "replace"))
        finally:
            os._exit(WorkerExit.NO_EXEC)

    def _become(self, who: Identity) -> None:
        # Groups while we still may; the uid last, with all three set, so that there is no way back.
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


def _offer_to_the_oom_killer() -> None:
    """Out of memory, a worker is replaced within a second; without the supervisor nobody is.

    Before rights are dropped: afterwards these files are root's.  Where it cannot be (no /proc) the service
    runs all the same, so nothing is said.
    """
    try:
        fd = os.open(_OOM_SCORE_ADJ, os.O_RDWR | os.O_CLOEXEC)
        try:
            ours = int(os.read(fd, 16))
            os.pwrite(fd, b"%d" % min(1000, ours + _OOM_ABOVE_US), 0)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass


def _pidfd_of(pid: int) -> int:
    """A pidfd of our child; without one (no descriptor left) the child is ended and reaped here."""
    try:
        return os.pidfd_open(pid)  # our child, not reaped yet: the number is its own
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _explain(exc: BaseException, spec: Spec) -> str:
    if isinstance(exc, FileNotFoundError):
        if not Path(spec.cwd).is_dir():
            return f"the directory {spec.cwd} is not there"
        return f"the interpreter {spec.python} is not there; make the release's virtualenv, or set `python`"
    if isinstance(exc, _InstallationClosed):
        user = spec.identity.name if spec.identity else "this user"
        return f"{user} may not read quiesce itself: {exc}"
    if isinstance(exc, PermissionError):
        user = spec.identity.name if spec.identity else "this user"
        why = _closed(spec.cwd) or _closed(spec.python) or exc
        return f"{user} may not run {spec.python} in {spec.cwd}: {why}"
    return f"cannot start {spec.python}: {exc}"


def _closed(target: str) -> str:
    """The first thing on the way to it that we, who are the user already, may not pass; links are followed."""
    real = Path(os.path.realpath(target))
    for folder in [*reversed(real.parents), real]:
        if not os.access(folder, os.R_OK if folder == real and real.is_file() else os.X_OK):
            link = f" (behind the link {target})" if str(real) != target else ""
            return f"{folder}{link} is closed to that user; `chmod a+x` it, or put it elsewhere"
    return ""
