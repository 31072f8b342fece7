"""What is known of a worker's fault: the first reason, and the last lines that it wrote on trial."""

from collections.abc import Callable

from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.logs import Log
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.core.exits import Ended, describe
from quiesce.supervisor.core.lifecycle import State

MAX_START_OUTPUT_BYTES = 64 << 20
MAX_KEPT_DETAIL_CHARS = (
    2000  # of each worker's last words, in the state: its rollout has the first one's whole
)


class Evidence:
    """Owns the capture (None: the worker writes to the log by itself, or all of it is gone)."""

    def __init__(self, capture: Capture | None, log: Log) -> None:
        self.failure = ""  # why it was lost, if it was not asked to leave; one sentence
        self.detail = ""  # its last words: a traceback, or the last lines of its output
        self.on_trial = True  # its output goes to the capture, and its last lines are evidence
        self.capture = capture
        self._log = log

    def lost(self, why: str, detail: str = "") -> None:
        """Keep the first reason: what follows is its consequence."""
        self.copy_output()
        if not self.failure:
            self.failure = why
            self.detail = self._last_words(detail)

    def _last_words(self, detail: str) -> str:
        """What it wrote on trial and, unless it is in there, the traceback that it sent."""
        if self.capture is None or not self.on_trial:
            return detail
        lines = [line for line in self.capture.tail().splitlines() if line != f"quiesce: {self.failure}"]
        tail = "\n".join(lines)
        if detail.strip() in tail:
            return tail
        return f"{tail}\n{detail}" if tail else detail

    def copy_output(self) -> None:
        """Bring what it wrote into the log."""
        if self.capture is not None:
            self.capture.copy_to(self._log.raw)

    def wrote_too_much(self, worker: str) -> str:
        """A start that writes without end is a bad one, it would cost the machine's memory: why, or ""."""
        if self.capture is None or self.capture.written <= MAX_START_OUTPUT_BYTES:
            return ""
        limit = f"{MAX_START_OUTPUT_BYTES >> 20} MiB"
        return f"worker {worker} wrote more than {limit} of output before it served, and was killed"

    def why_it_ended(self, worker: str, state: State, ended: Ended) -> str:
        """A sentence for an end that nobody had asked for, and of which the worker has said nothing."""
        sentence = describe(worker, state, ended)
        if ended.status == WorkerExit.NO_EXEC and (said := self._stub_says()):
            sentence += f": {said}"  # the reason
        return sentence

    def _stub_says(self) -> str:
        """The stub's own words, for one whose interpreter could not be executed."""
        return self.capture.tail(1).removeprefix("quiesce: ") if self.capture is not None else ""

    def close(self, before: Callable[[], None]) -> None:
        """It is gone.  ``before``: called before the capture is closed, if there is one."""
        if self.capture is not None:
            before()
            self.capture.close()
            self.capture = None
