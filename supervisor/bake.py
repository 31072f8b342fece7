"""Watch a new release while it serves and can still be undone: its errors, its heartbeats, its health."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quiesce.shared.deadlines import Timer
from quiesce.shared.scoreboard import Field
from quiesce.supervisor.core.lifecycle import State
from quiesce.supervisor.core.probe_reply import Verdict
from quiesce.supervisor.core.verify import MIN_REQUESTS, Sample, too_many_errors
from quiesce.supervisor.health import Prober
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.render import plural
from quiesce.supervisor.worker_link import Worker

if TYPE_CHECKING:
    from quiesce.supervisor.crew import Generation

LOOK_S = 0.25  # how often errors and heartbeats are looked at
PROBE_S = 1.0  # how often every new worker is asked the health questions again
PATIENCE_S = 10.0  # for an answer; a bake does not end well before it
STALLED_S = 5.0  # a loop that stands still this long is a reason to go back
LAST_WORD_S = 0.05  # a worker that died answers nothing; its death says more than that


class Bake:
    """One release's.  Ends once: well, badly, or because it is stopped.

    Attributes:
        until: CLOCK_MONOTONIC; None: it has not begun.
        baseline: What the new release had answered when it was admitted: probes and nothing else.
        before: What the old one answered in the minute before that.
    """

    def __init__(
        self,
        loop: Loop,
        new: Generation,
        max_error_rate: float,
        on_over: Callable[[], None],
        on_bad: Callable[[str], None],
    ) -> None:
        self.until: float | None = None
        self.baseline = Sample()
        self.before = Sample()
        self._loop = loop
        self._new = new
        self._max_error_rate = max_error_rate
        self._on_over = on_over
        self._on_bad = on_bad
        self._runs = False
        self._is_late = False  # its time is up, and only a probe that is under way is waited for
        self._end: Timer | None = None
        self._look: Timer | None = None
        self._probers: list[Prober] = []
        self._next_probe = self._probed_at = 0.0

    def begin(self) -> None:
        """Watch until :attr:`until`."""
        assert self.until is not None
        now = self._loop.now()
        self._runs = True
        self._end = self._loop.call_at(self.until, self._time_is_up)
        self._next_probe = now + PROBE_S
        self._look = self._loop.call_at(now + LOOK_S, self._look_at_it)

    def stop(self) -> None:
        """Nothing is said of it any more."""
        self._runs = False
        for timer in (self._end, self._look):
            if timer is not None:
                timer.cancel()
        for prober in self._probers:
            prober.cancel()
        self._probers.clear()

    def doubts(self) -> str:
        """What was seen and could not be judged: for the last line of a command that went well."""
        sample = self._new.sample().since(self.baseline)
        if not sample.errors or sample.responses >= MIN_REQUESTS:
            return ""
        return (
            f"; {sample.errors} of its {plural(sample.responses, 'response')} were 5xx, "
            f"too few to judge (max_error_rate wants {MIN_REQUESTS})"
        )

    # -- how it ends ------------------------------------------------------------------------

    def _over(self) -> None:
        self.stop()
        self._on_over()

    def _bad(self, why: str) -> None:
        self.stop()
        self._on_bad(why)

    def _time_is_up(self) -> None:
        """Well, unless a probe is still without an answer."""
        self._is_late = True
        if not self._answers_badly() and not self._probers:
            self._over()

    # -- what is looked at -------------------------------------------------------------------

    def _look_at_it(self) -> None:
        self._look = None
        now = self._loop.now()
        if self._answers_badly() or self._stands_still(now):
            return
        patience = min(PATIENCE_S, self._new.recipe.terms.start_timeout_s)
        if self._probers and now - self._probed_at > patience:
            self._bad(f"a health probe during the bake was not answered within {patience:g} s")
            return
        if now >= self._next_probe and not self._probers and not self._is_late:
            self._next_probe, self._probed_at = now + PROBE_S, now
            for worker in self._new:
                if worker.state is State.ACCEPTING:
                    self._probe(worker)
        self._look = self._loop.call_at(now + LOOK_S, self._look_at_it)

    def _answers_badly(self) -> bool:
        sample = self._new.sample().since(self.baseline)
        errors = too_many_errors(sample, self.before, self._max_error_rate)
        if errors:
            self._bad(f"release {self._new.release.id} answers badly: {errors}")
        return bool(errors)

    def _stands_still(self, now: float) -> bool:
        for worker in self._new:
            worker.copy_output()
            turn, inside = worker.counter(Field.TURN_NS), worker.counter(Field.IN_REQUEST_SINCE_NS)
            if turn and not inside and now - turn / 1e9 > STALLED_S:
                self._bad(
                    f"the serving loop of worker {worker.id} stands still since {now - turn / 1e9:.0f} s"
                )
                return True
        return False

    def _probe(self, worker: Worker) -> None:
        def done(verdict: Verdict) -> None:
            if prober in self._probers:
                self._probers.remove(prober)
            if self._runs and self._is_late and not self._probers and verdict.passed:
                self._over()
            if not verdict.passed and worker.state is State.ACCEPTING:
                self._loop.call_at(self._loop.now() + LAST_WORD_S, lambda: self._judge(worker, verdict))

        prober = worker.probe_again(done)
        self._probers.append(prober)

    def _judge(self, worker: Worker, verdict: Verdict) -> None:
        if self._runs and worker.state is State.ACCEPTING:
            self._bad(f"health probe of worker {worker.id} failed during the bake: {verdict.text}")
