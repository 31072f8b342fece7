"""What a worker's end means, in words.  Pure."""

from typing import NamedTuple

from quiesce.shared.exitcodes import WorkerExit
from quiesce.supervisor.core.lifecycle import State

# The few that end workers; the core may not import the signal module.
_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 24: "SIGXCPU",
    25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip

_WHILE = {
    State.SPAWNED: "before its interpreter ran quiesce",
    State.LOADING: "while it imported the application",
    State.READY: "after it had loaded the application",
    State.PROBING: "while it answered the health probe",
    State.PROVEN: "after it had passed the health probe",
    State.ADMITTED: "when it began to accept",
    State.ACCEPTING: "while it served",
    State.QUIESCING: "while it served",
    State.QUIESCED: "while it was quiesced",
    State.RESUMING: "when it was resumed",
    State.DRAINING: "while it drained",
    State.TERMINATED: "after SIGTERM",
}


class Ended(NamedTuple):
    """How a process ended; both None: it was not our child, so nobody can know."""

    status: int | None = None  # exit status
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            name = _SIGNALS.get(self.signal, f"signal {self.signal}")
            return f"was killed by {name}"
        if self.status is None:
            return "ended"
        return f"exited with status {self.status}"


def describe(worker: str, state: State, ended: Ended, *, killed_for: str = "") -> str:
    """One sentence: who ended, how, and in the middle of what.

    Args:
        worker: ``r42/1``.
        state: The last state before the end; that in which the channel was lost, if it was, because
            a process that dies loses its channel first.
        ended: How the process ended.
        killed_for: Our reason, if it was we who killed it.
    """
    if killed_for:
        return f"worker {worker} {killed_for}"
    sentence = f"worker {worker} {ended} {_WHILE.get(state, '')}".rstrip()
    if ended.status is None and ended.signal is None:
        return sentence + " (how, only the supervisor that had started it could have seen)"
    if ended.signal == 9:
        return sentence + " (not by quiesce: the kernel's out-of-memory killer? see `journalctl -k`)"
    if ended.status == WorkerExit.CONFIG and state is State.SPAWNED:
        return f"worker {worker} could not run in the release's interpreter"
    if ended.status == WorkerExit.NO_EXEC and state is State.SPAWNED:
        return f"worker {worker} could not be started"
    if ended.status == 2 and state is State.SPAWNED:
        # CPython before 3.11 answers -P with its usage and status 2.
        return sentence + " (Python 3.11 or newer is needed)"
    return sentence
