"""A worker's one deadline: until when it is waited for, and what its passing means."""

from collections.abc import Callable
from pathlib import Path

from quiesce.shared.deadlines import Timer
from quiesce.supervisor.core.lifecycle import State
from quiesce.supervisor.loop import Loop

QUIESCE_ANSWER_S = 1.0  # design: an old worker that does not answer `quiesce` in this time is killed
ANSWER_S = 5.0  # for words whose lateness costs nothing
DRAIN_GRACE_S = 2.0  # beyond drain_timeout, in which the worker itself ends what is left
EXIT_GRACE_S = 1.0  # beyond exit_timeout, which the worker bounds itself
STARVED_S = 5.0  # longer than its deadline for one that is runnable and simply gets no processor
LOOK_AGAIN_S = 0.25

_ORDER = {State.ADMITTED: "accept", State.QUIESCING: "quiesce", State.RESUMING: "resume"}


class Deadline:
    """One at a time; a new one takes the place of the last.

    Attributes:
        at: CLOCK_MONOTONIC; None: nothing is waited for.
        waited_since: When the wait for it began.
    """

    def __init__(self, loop: Loop, on_due: Callable[[], None]) -> None:
        self.at: float | None = None
        self.waited_since = loop.now()
        self._loop = loop
        self._on_due = on_due
        self._timer: Timer | None = None

    @property
    def waited_s(self) -> float:
        return self._loop.now() - self.waited_since

    def arm(self, seconds: float) -> None:
        self.waited_since = self._loop.now()
        self._arm_until(self.waited_since + seconds)

    def arm_rest(self, seconds: float) -> None:
        """Go on with the deadline that another supervisor has set, or begin one."""
        if self.at is None:
            self.arm(seconds)
        else:
            self._arm_until(self.at)

    def look_again(self) -> None:
        """It has passed, and is not meant yet."""
        self._timer = self._loop.call_at(self._loop.now() + LOOK_AGAIN_S, self._due)

    def disarm(self) -> None:
        self.at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def recall(self, at: float | None, waited_since: float) -> None:
        """Another supervisor's; :meth:`arm_rest` makes it run."""
        self.at, self.waited_since = at, waited_since

    def rest(self, grace_s: float) -> float | None:
        """Seconds until it, less ``grace_s``; None: there is none."""
        return None if self.at is None else max(0.0, self.at - grace_s - self._loop.now())

    def _arm_until(self, when: float) -> None:
        self.disarm()
        self.at = when
        self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self._on_due()


def answer_s(state: State) -> float:
    """How long the answer to its last order may take."""
    return QUIESCE_ANSWER_S if state is State.QUIESCING else ANSWER_S


def is_excused(state: State, waited_s: float, *, in_request: bool, drain_timeout_s: float, pid: int) -> bool:
    """Is a worker that did not answer an order silent for a reason that is not its fault?"""
    if state not in _ORDER:
        return False
    # Its one thread is inside a request: killing it would fail that request, and the answer
    # to our word comes right after it.
    if in_request and waited_s < drain_timeout_s:
        return True
    # It would answer if the machine let it run.
    return waited_s < STARVED_S and _wants_processor(pid)


def overdue(worker: str, state: State, waited_s: float, path: str) -> str:
    """Why a deadline that has passed is a fault; "" where it only ends somebody's patience.

    ``path``: what a probe has asked for and got no answer to.
    """
    waited = f"{waited_s:.0f} s"
    if state in (State.SPAWNED, State.LOADING):
        return f"worker {worker} was not ready within start_timeout ({waited}) and was killed"
    if state is State.PROBING:
        return f"worker {worker} did not answer GET {path} within {waited} and was killed"
    if state in _ORDER:
        return f"worker {worker} did not answer `{_ORDER[state]}` within {waited} and was killed"
    return ""


def _wants_processor(pid: int) -> bool:
    """Is the process runnable (or in the kernel), so that only the machine keeps it from answering?

    A hint only; the pid cannot be another's, since it is our child and not reaped.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("R", "D")
