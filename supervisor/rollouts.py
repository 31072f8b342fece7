"""Carry out one rollout: facts about workers become events, actions become orders to workers."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from quiesce.shared.errors import SpawnError
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import Field
from quiesce.supervisor.bake import Bake
from quiesce.supervisor.config import Loaded
from quiesce.supervisor.core import rollout as table
from quiesce.supervisor.core.adoption import AGAIN
from quiesce.supervisor.core.lanes import Why
from quiesce.supervisor.core.lifecycle import COMING, GOING, MAY_ACCEPT
from quiesce.supervisor.core.lifecycle import Event as WorkerEvent
from quiesce.supervisor.core.lifecycle import State as WorkerState
from quiesce.supervisor.core.releases import Release
from quiesce.supervisor.core.rollout import Action, Event, State
from quiesce.supervisor.core.snapshot import RunRecord
from quiesce.supervisor.core.verify import Sample
from quiesce.supervisor.crew import SPAWNS_A_TURN, Crew, Generation
from quiesce.supervisor.render import number, plural
from quiesce.supervisor.watching import Watch
from quiesce.supervisor.worker_link import Worker

_PROVEN_AND_ON: tuple[WorkerState, ...] = (WorkerState.PROVEN, WorkerState.ADMITTED, WorkerState.ACCEPTING)


class Outcome(NamedTuple):
    """How a rollout was decided."""

    done: bool
    aborted: bool = False
    reason: str = ""  # one sentence
    detail: str = ""  # last lines, traceback


class Plan(NamedTuple):
    """What this rollout is to do."""

    command: str  # start, upgrade, rollback
    wanted: int  # workers
    bake_s: float
    max_error_rate: float
    gate: bool = True  # False: `--force`
    by_manager: bool = False  # systemd's own reload job, which waits for its command and not for READY=1


class Boss(Protocol):
    """Who started the rollout and is told of it."""

    def rollout_progress(self, run: "RolloutRun", text: str) -> None: ...
    def rollout_commits(self, run: "RolloutRun") -> None: ...
    def rollout_decided(self, run: "RolloutRun", outcome: Outcome) -> None: ...
    def rollout_finished(self, run: "RolloutRun") -> None: ...
    def recent_sample(self, generation: Generation) -> Sample: ...
    def is_held(self) -> bool: ...


class RolloutRun:
    """One change of release, being carried out."""

    def __init__(
        self,
        crew: Crew,
        boss: Boss,
        plan: Plan,
        loaded: Loaded,
        watch: Watch,
        new: Generation,
        old: Generation | None,
        uid: str,
    ) -> None:
        self.plan = plan
        self.loaded = loaded  # in force once this is committed
        self.watches = [watch]  # who waits
        self.new = new
        self.old = old
        self.uid = uid  # in the history
        self.requests = [watch.request] if watch.request else []  # ids of the commands that wait
        self.begun = False  # False: it waits for older generations to drain
        self.committed = False
        self.reported = False  # those who wait know how it was decided
        self.state = State.STARTING
        self.since = crew.loop.now()
        self.state_since = self.since
        self.reason = ""
        self.detail = ""
        self._crew = crew
        self._loop = crew.loop
        self._log: Log = crew.log
        self._boss = boss
        self._bake = Bake(crew.loop, new, plan.max_error_rate, self._bake_over, self._gate_failed)
        self._hushed: list[Worker] = []  # old workers that we told to quiesce, and nobody else
        self._moved_before = self._lost_before = 0  # connections of the old set
        self._aborted = False
        self._recalled: State | None = None
        self._acting = False
        self._shown = ""

    @property
    def release(self) -> Release:
        return self.new.release

    @property
    def deciding(self) -> bool:
        """Does it still stand open?  Then a second change is refused."""
        return self.state in table.DECIDING

    @property
    def is_baking(self) -> bool:
        return self.state is State.BAKING

    def begin(self) -> None:
        """Spawn the new set.  (An `abort` may come before it.)"""
        self.begun = True
        self._tell(f"starting {plural(self.plan.wanted, 'worker')} from {self.release.path}")
        self._spawn_missing()

    def _spawn_missing(self) -> None:
        if self.state is not State.STARTING:
            return
        missing = self.plan.wanted - len(self.new.workers)
        if missing > SPAWNS_A_TURN:  # the loop has others to serve, the watchdog among them
            self._loop.call_at(self._loop.now(), self._spawn_missing)
        for _ in range(min(missing, SPAWNS_A_TURN)):
            try:
                self._crew.spawn(self.new)
            except SpawnError as exc:
                self._lost(str(exc), "")
                return

    # -- surviving the supervisor -------------------------------------------------------

    def record(self, new: int, old: int | None, settings: int) -> RunRecord:
        """What the next supervisor must know; generations and settings are given as indices."""
        return RunRecord(
            uid=self.uid,
            command=self.plan.command,
            new=new,
            old=old,
            state=self.state.value,
            settings=settings,
            wanted=self.plan.wanted,
            bake_s=self.plan.bake_s,
            max_error_rate=self.plan.max_error_rate,
            gate=self.plan.gate,
            by_manager=self.plan.by_manager,
            since=self.since,
            state_since=self.state_since,
            begun=self.begun,
            committed=self.committed,
            reported=self.reported,
            aborted=self._aborted,
            reason=self.reason,
            detail=self.detail,
            hushed=[worker.number for worker in self._hushed],
            bake_until=self._bake.until,
            baseline=(self._bake.baseline.responses, self._bake.baseline.errors),
            old_sample=(self._bake.before.responses, self._bake.before.errors),
            requests=self.requests,
            moved_before=self._moved_before,
            lost_before=self._lost_before,
        )

    def recall(self, record: RunRecord) -> None:
        """Stand where another supervisor stood."""
        self.state = State(record.state)
        self.since, self.state_since = record.since, record.state_since
        self.begun, self.committed, self._aborted = record.begun, record.committed, record.aborted
        self.reported, self._recalled = record.reported, self.state
        self.reason, self.detail = record.reason, record.detail
        old = self.old.workers if self.old is not None else {}
        self._hushed = [old[number] for number in record.hushed if number in old]
        self._bake.until = record.bake_until
        self._bake.baseline, self._bake.before = Sample(*record.baseline), Sample(*record.old_sample)
        self.requests = list(record.requests)
        self._moved_before, self._lost_before = record.moved_before, record.lost_before

    def take_over(self) -> None:
        """Do again what another supervisor was doing, and look whether it is done already."""
        if self.deciding:
            self._tell(f"{self.plan.command} goes on ({table.phase(self.state)}) under a new supervisor")
        if self.state is self._recalled:  # else a worker that died meanwhile has moved it on
            self._perform(AGAIN[self.state])
        self._loop.call_soon(self._look_at_facts)

    def abort(self, reason: str) -> None:
        """Go back, on somebody's word."""
        if table.expects(self.state, Event.ABORT):
            self._aborted = True
            self.reason = self.reason or reason
            self._event(Event.ABORT)

    def cancel(self) -> None:
        """The instance stops: nothing of this is decided any more."""
        self._disarm()
        self.state = State.UNDONE

    def promote(self) -> bool:
        """End the bake well, now.  False if there is no bake to end."""
        if self.state is not State.BAKING:
            return False
        self._event(Event.BAKE_OVER)
        return True

    def worker_changed(self, worker: Worker, ours: bool) -> None:
        """A worker of the new (``ours``) or the old set is in another state."""
        if ours and worker.failure and self.state is not State.ROLLING_BACK:
            self._lost(worker.failure, worker.detail)
            return
        if ours and self.state is State.PROBING and worker.state is WorkerState.READY:
            worker.ask(WorkerEvent.PROBE_ASKED)
            return
        self._look_at_facts()

    # -- facts become events ------------------------------------------------------------

    def _look_at_facts(self) -> None:
        if self._acting:
            return  # a worker answered our order at once; the end of the step looks again
        if self.state in (State.STARTING, State.PROBING):
            self._tell_count()
        fact = self._fact()
        if fact is not None:
            self._event(fact)

    def _fact(self) -> Event | None:
        new = list(self.new)
        there = len(new) >= self.plan.wanted  # they are spawned some at a time
        if self.state is State.STARTING and there and _all_in(new, WorkerState.READY):
            return Event.ALL_READY if self.plan.gate else Event.ALL_READY_FORCED
        if self.state is State.PROBING and _all_in(new, WorkerState.PROVEN):
            return Event.ALL_PROVEN
        if self.state is State.ADMITTING:
            wanted = WorkerState.QUIESCED if self._boss.is_held() else WorkerState.ACCEPTING
            return Event.ALL_ACCEPTING if _all_in(new, wanted) else None
        if self.state is State.HUSHING and not any(_may_still_accept(w) or w.moving for w in self._old()):
            return Event.OLD_HUSHED
        if self.state is State.ROLLING_BACK and self._is_back():
            return Event.OLD_BACK
        if self.state is State.DRAINING and not self._old():
            return Event.OLD_GONE
        return None

    def _is_back(self) -> bool:
        """Accept all those again that we had quiesced, and no new one?"""
        if any(_may_still_accept(worker) for worker in self.new):
            return False
        resumed = WorkerState.QUIESCED if self._boss.is_held() else WorkerState.ACCEPTING
        return all(worker.state is resumed or worker.state in GOING for worker in self._hushed)

    def _old(self) -> list[Worker]:
        return list(self.old) if self.old is not None else []

    def _lost(self, why: str, detail: str) -> None:
        if not self.reason:
            self.reason, self.detail = why, detail
        self._event(Event.NEW_LOST)

    # -- events become actions ----------------------------------------------------------

    def _event(self, event: Event) -> None:
        if not table.expects(self.state, event):
            return
        before = self.state
        self.state, actions = table.step(before, event)
        if self.state is not before:
            self.state_since = self._loop.now()
            self._log.debug("rollout", release=self.release.id, was=before.value, now=self.state.value)
            self._crew.save()
        self._perform(actions)
        if self.state is not before:
            # The next fact may be there already (no old workers; a bake of no time at all).
            self._loop.call_soon(self._look_at_facts)

    def _perform(self, actions: Iterable[Action]) -> None:
        self._acting = True
        try:
            for action in actions:
                _PERFORM[action](self)
        finally:
            self._acting = False

    def _probe_new(self) -> None:
        self._tell(f"probing: {self.new.recipe.terms.rule.text}")
        for worker in self.new:
            if worker.state is WorkerState.READY:
                worker.ask(WorkerEvent.PROBE_ASKED)

    def _admit_new(self) -> None:
        self._tell("accepting")
        self._bake.baseline = self.new.sample()
        if self.old is not None:
            self._bake.before = self._boss.recent_sample(self.old)
            self._moved_before, self._lost_before = self.old.total(Field.HANDED_OUT), self.old.lost
        # `quiesce all` is in force: they take what the old set hands over, and accept after `resume all`.
        order = WorkerEvent.QUIESCE_ASKED if self._boss.is_held() else WorkerEvent.ACCEPT_ASKED
        self._crew.save()
        for worker in self.new:
            if worker.state in (WorkerState.READY, WorkerState.PROVEN):
                worker.ask(order)

    def _hush_old(self) -> None:
        for worker in self._old():
            if worker.state in COMING:
                worker.ask(WorkerEvent.LEAVE_ASKED)
            elif worker.state is WorkerState.QUIESCED:  # by a command: it stays so, and lets go what it has
                self._crew.hand_over.redirect(worker, Why.HUSHED, self.new)
            elif worker.state not in GOING:
                if worker not in self._hushed:
                    self._hushed.append(worker)
                self._crew.hand_over.aim(worker, Why.HUSHED, self.new)
                worker.ask(WorkerEvent.QUIESCE_ASKED)

    def _arm_bake(self) -> None:
        if self.plan.bake_s <= 0 or not self.plan.gate or self.old is None:
            self._loop.call_soon(self._bake_over)
            return
        if self._bake.until is None:
            self._tell(f"baking for {self.plan.bake_s:g} s; {self._old_id()} is quiesced and can be resumed")
            self._bake.until = self._loop.now() + self.plan.bake_s
            self._crew.save()
        self._bake.begin()

    def _bake_over(self) -> None:
        self._event(Event.BAKE_OVER)

    def doubts(self) -> str:
        """What the bake saw and could not judge: for the last line of a command that went well."""
        return self._bake.doubts() if self.old is not None else ""

    def moved(self) -> str:
        """What became of the old set's connections: for the last line of a command that went well."""
        if self.old is None:
            return ""
        # Counters are a moment old; what the workers have said is not.
        said = [worker.lanes.said for worker in self.old]
        kept = max(
            self.old.total(Field.HANDED_OUT) - self._moved_before, sum(each.moved for each in said if each)
        )
        left = sum(
            min(worker.counter(Field.CONN_OPEN), each.left) if each else worker.counter(Field.CONN_OPEN)
            for worker, each in zip(self.old, said, strict=True)
        )
        noun = "connection" if kept == 1 else "connections"
        text = f"; {number(kept)} {noun} kept, {number(self.old.lost - self._lost_before)} closed"
        return text + (f", {number(left)} still on {self.old.release.id}" if left else "")

    def _gate_failed(self, why: str) -> None:
        self.reason = self.reason or why
        self._event(Event.GATE_FAILED)

    def _disarm(self) -> None:
        self._bake.stop()

    def _commit(self) -> None:
        if not self.committed:
            self._boss.rollout_commits(self)

    def _drain_old(self) -> None:
        if self.old is None:
            return
        hand_over = self._crew.hand_over
        for worker in self.old:
            if worker.state in GOING:  # scaled down just before
                hand_over.redirect(worker, Why.OUTDATED, self.new)
            else:
                hand_over.aim(worker, Why.OUTDATED, self.new)
                worker.ask(WorkerEvent.DRAIN_ASKED)
        # And those of generations before it, who handed over to it.
        hand_over.redirect_writers(self.old, Why.OUTDATED, self.new)
        hand_over.end(self.old)
        hand_over.rescue(self.old)

    def _resume_old(self) -> None:
        self._tell(f"going back to {self._old_id()}: {self.reason}")
        for worker in self._hushed:
            if worker.state not in GOING and not self._boss.is_held():
                self._crew.hand_over.aim(worker, Why.RESUMED)
                if self.new.lane is not None:
                    worker.lanes.give(self.new.lane.key)  # what it had handed over may still lie there
                worker.ask(WorkerEvent.RESUME_ASKED)

    def _discard_new(self) -> None:
        hand_over = self._crew.hand_over
        if self.old is None:
            hand_over.end(self.new)
        else:
            hand_over.redirect_writers(self.new, Why.SET_ASIDE, None)
        for worker in self.new:
            if worker.state in MAY_ACCEPT or worker.state is WorkerState.QUIESCED:
                hand_over.aim(worker, Why.DISCARDED, self.old)
                worker.ask(WorkerEvent.DRAIN_ASKED)  # it has clients
            elif worker.state not in GOING:
                worker.ask(WorkerEvent.LEAVE_ASKED)

    def _report_done(self) -> None:
        if not self.reported:
            self._boss.rollout_decided(self, Outcome(True))

    def _report_undone(self) -> None:
        self._crew.hand_over.end(self.new)  # those who sent into it have resumed
        self._boss.rollout_decided(self, Outcome(False, self._aborted, self.reason, self.detail))

    def _finish(self) -> None:
        self._boss.rollout_finished(self)

    # -- words --------------------------------------------------------------------------

    def _old_id(self) -> str:
        return self.old.release.id if self.old is not None else "nothing"

    def _tell(self, text: str) -> None:
        self._boss.rollout_progress(self, f"{self.release.id}: {text}")

    def _tell_count(self) -> None:
        word, states = "proven", _PROVEN_AND_ON
        if self.state is State.STARTING:
            word, states = "ready", (WorkerState.READY, *_PROVEN_AND_ON)
        count = sum(worker.state in states for worker in self.new)
        text = f"{count}/{self.plan.wanted} {word}"
        if text != self._shown and count:
            self._shown = text
            self._tell(text)


def _all_in(workers: list[Worker], *states: WorkerState) -> bool:
    return bool(workers) and all(worker.state in states for worker in workers)


def _may_still_accept(worker: Worker) -> bool:
    """Until a killed worker is reaped it may be inside accept()."""
    return worker.state in MAY_ACCEPT or worker.state in (WorkerState.KILLED, WorkerState.TERMINATED)


_PERFORM: dict[Action, Callable[[RolloutRun], None]] = {
    Action.SPAWN_MISSING: RolloutRun._spawn_missing,
    Action.PROBE_NEW: RolloutRun._probe_new,
    Action.ADMIT_NEW: RolloutRun._admit_new,
    Action.HUSH_OLD: RolloutRun._hush_old,
    Action.ARM_BAKE: RolloutRun._arm_bake,
    Action.DISARM: RolloutRun._disarm,
    Action.COMMIT: RolloutRun._commit,
    Action.DRAIN_OLD: RolloutRun._drain_old,
    Action.RESUME_OLD: RolloutRun._resume_old,
    Action.DISCARD_NEW: RolloutRun._discard_new,
    Action.REPORT_DONE: RolloutRun._report_done,
    Action.REPORT_UNDONE: RolloutRun._report_undone,
    Action.FINISH: RolloutRun._finish,
}
