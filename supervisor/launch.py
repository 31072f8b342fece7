"""Put a keeper above the supervisor: command lines, and the step from `quiesce run` to a keeper."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import quiesce
from quiesce.shared.errors import ControlError
from quiesce.shared.fdpass import WANTED_FILES

KEEPER_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
WATCHDOG_S = 30.0  # a supervisor that has not pinged for so long is aborted; it turns within milliseconds

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_MODULE = "quiesce.supervisor.cli"


def is_supervisor(environ: Mapping[str, str], pid: int) -> bool:
    """Was this process started by a keeper, or has it replaced its own code (`reexec`)?

    Not judged by the parent: the keeper may have died meanwhile, or been replaced.  Not by
    QUIESCE_KEEPER alone: what was inherited from a supervisor is not meant for us.
    """
    if environ.get("QUIESCE_KEPT", "").partition(";")[0] == str(pid):
        return True
    return bool(environ.get("QUIESCE_KEEPER")) and environ.get("LISTEN_PID") == str(pid)


def wants_keeper(environ: Mapping[str, str], pid: int, no_keeper: bool) -> bool:
    """Shall `run` or `start` become a keeper?  Not below a manager that has a store, and not below itself."""
    return not (no_keeper or environ.get("NOTIFY_SOCKET") or is_supervisor(environ, pid))


def supervisor_command(argv: Sequence[str], python: str | None = None) -> list[str]:
    """The command line of a supervisor.

    Args:
        argv: What stands behind `quiesce`.
        python: Another interpreter, which has quiesce installed; None: ours, with our flags, and with
            this very package, even if it is found only because of the directory that we were started in.
    """
    if python is not None:
        return [python, "-P", "-m", _MODULE, *argv]
    if not sys.executable:
        raise ControlError("this Python does not know its own path, so it cannot start a supervisor")
    root = os.path.dirname(os.path.dirname(os.path.abspath(quiesce.__file__ or "")))
    command = [sys.executable, *(flag for flag in _flags() if flag != "-P"), "-P"]
    # -P leaves out the directory of the script or the working directory, which is the first entry.
    found = sys.path if sys.flags.safe_path else sys.path[1:]
    if root in found:
        return [*command, "-m", _MODULE, *argv]
    program = f"import sys; sys.path.insert(0, {root!r}); from {_MODULE} import main; sys.exit(main())"
    return [*command, "-c", program, *argv]


def _flags() -> list[str]:
    """-s, -X, -W and their like: whoever wrote the first line of our script meant the supervisor too."""
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    return list(_args_from_interpreter_flags())


def keeper_command(command: Sequence[str], options: Iterable[str]) -> list[str]:
    """The command line of a keeper of this supervisor command."""
    return [sys.executable, "-I", "-S", KEEPER_FILE, *options, "--", *command]


def become_keeper(
    command: Sequence[str], keep: Sequence[tuple[str, int]] = (), watchdog_s: float = WATCHDOG_S
) -> NoReturn:
    """Replace this process by the keeper of a supervisor.

    Signals are blocked from here until the keeper's handlers stand: none is lost, and none kills.

    Args:
        command: :func:`supervisor_command`.
        keep: (name, descriptor) of what the supervisor finds among its stored descriptors; they go over
            to the keeper.

    Raises:
        ControlError: It cannot be executed; nothing has changed but limits.
    """
    raise_file_limit()
    adopt_orphans()
    options = ["--watchdog", f"{watchdog_s:g}"]
    for fd in (0, 1, 2):  # python-daemon opens /dev/null for itself only
        os.set_inheritable(fd, True)
    for name, fd in keep:
        os.set_inheritable(fd, True)
        options += ["--keep", f"{name}={fd}"]
    argv = keeper_command(command, options)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        os.execve(argv[0], argv, os.environ)
    except OSError as exc:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise ControlError(f"cannot start the keeper, {argv[0]}: {exc.strerror}") from exc


def raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as we may have.  Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def adopt_orphans() -> None:
    """Become a child subreaper: workers of a dead supervisor come to the keeper, not to process 1.

    The attribute survives exec, and the keeper, which has no ctypes, could not set it.  Without it all
    still works; somebody else reaps.
    """
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
