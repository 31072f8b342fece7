"""Start a supervisor in the background and wait until it serves, or says why not.

python-daemon detaches; around it lies what it leaves to its caller: the launching process
does not return before the daemon has reported through a pipe, so that a failed start is an
exit code and a message in the shell that asked for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quiesce.shared.errors import ControlError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor.starting import StartReport

MAX_REPORT_BYTES = 1 << 20
LAST_LINES = 20  # of the log, when the daemon died without a word
_TAIL_BYTES = 16 * 1024

Serve = Callable[["Reporter"], int]


@dataclass(frozen=True)
class Surroundings:
    """What the daemon finds instead of a terminal."""

    log: str  # absolute; standard output and error go there, appended
    umask: int = 0o022


def start_in_background(serve: Serve, around: Surroundings) -> StartReport:
    """Run ``serve`` in a daemon; return its report.  In the daemon this never returns.

    Args:
        serve: Is given what to report with; its return value is the exit code.  It may exec another
            program that reports to the same descriptor instead.

    Returns:
        What was reported; code 3 with the log's last lines if the daemon died without.

    Raises:
        ControlError: The log cannot be opened; nothing was started.
    """
    import daemon  # here, not in the child: an import error is seen

    open_standard_streams()
    log_fd, log_size = _open_log(around.log)
    reading, writing = os.pipe()  # both close-on-exec: a worker must not hold the report open
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(daemon.DaemonContext, serve, around, log_fd, writing)  # never returns
    os.close(writing)
    try:
        os.waitpid(child, 0)  # the first of python-daemon's two forks leaves at once
        report = _read_report(reading)
    finally:
        os.close(reading)
        os.close(log_fd)
    return report or StartReport(
        int(Exit.DOWN),
        f"the supervisor died before it served; its log is {around.log}",
        _last_lines(around.log, log_size),
    )


def _open_log(path: str) -> tuple[int, int]:
    """Open for append, so that several writers never overwrite each other.  Returns its size as well."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise ControlError(
            f"cannot open the log {path}: {exc.strerror}; name another with --log-file"
        ) from exc
    return fd, os.fstat(fd).st_size


def _become_daemon(
    context: Callable[..., Any], serve: Serve, around: Surroundings, log_fd: int, writing: int
) -> None:
    """Detach, serve, exit.  No exception and no return gets back to the caller's stack."""
    code = int(Exit.DOWN)
    report = Reporter(writing)
    try:
        with os.fdopen(log_fd, "wb", buffering=0, closefd=False) as log:
            context(
                working_directory="/",  # every path of the configuration is absolute by now
                umask=around.umask,  # python-daemon's own would be 0
                prevent_core=False,  # RLIMIT_CORE is inherited by workers, whose cores are the user's
                signal_map={},  # the supervisor has its own; the default ignores SIGTTIN and SIGTTOU
                detach_process=True,  # the default guesses, and a child of PID 1 would stay attached
                files_preserve=[writing],
                stdout=log,
                stderr=log,
            ).open()
        os.close(log_fd)  # 1 and 2 are it now
        code = serve(report)
    except BaseException as exc:
        import traceback

        report(StartReport(int(Exit.DOWN), f"the supervisor failed: {exc!r}", traceback.format_exc()))
        with contextlib.suppress(OSError):  # python-daemon may have closed standard error and got no further
            traceback.print_exc()
    finally:
        report.close()
        _exit(code)


def open_standard_streams() -> None:
    """Open what `quiesce start <&- >&-` has closed, before a socket becomes "standard output"."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))


def _exit(code: int) -> None:
    """Leave without the atexit functions of the command line that we were forked from."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


class Reporter:
    """Says one report into the pipe.  Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    @property
    def fd(self) -> int:
        """For whoever reports in our place, after an exec."""
        assert self._fd is not None
        return self._fd

    def __call__(self, report: StartReport) -> None:
        if self._fd is None:
            return
        data = json.dumps(report.as_dict(), default=str).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            pass  # the shell that started us has gone; we serve all the same
        self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _read_report(fd: int) -> StartReport | None:
    """One line, or None at the end of the file: who died has not reported."""
    data = b""
    # Not until the end: a keeper may still hold the pipe, for the next supervisor.
    while not data.endswith(b"\n") and len(data) <= MAX_REPORT_BYTES and (chunk := os.read(fd, 1 << 16)):
        data += chunk
    try:
        fields = json.loads(data)
        return StartReport(fields["code"], fields["text"], fields["detail"], fields["data"])
    except (ValueError, TypeError, KeyError):
        return None


def _last_lines(path: str, since: int) -> str:
    """What the log got since ``since``, its last lines."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(since if since <= size else 0, size - _TAIL_BYTES)
            file.seek(start)
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LAST_LINES:])
