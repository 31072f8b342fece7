"""One instance: which release serves, what changes, who is wanted.

The one place where rollouts, fleet and commands meet.  It decides nothing that a table in
`core/` could decide: it brings facts to them and carries their answers out.
"""

import os
import time
from collections import deque
from collections.abc import Callable

from quiesce.shared.errors import ConfigError
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import Field, Scoreboard
from quiesce.supervisor.admission import Admission
from quiesce.supervisor.config import Loaded, Settings
from quiesce.supervisor.core.lanes import Why
from quiesce.supervisor.core.lifecycle import GOING
from quiesce.supervisor.core.lifecycle import Event as WorkerEvent
from quiesce.supervisor.core.lifecycle import State as WorkerState
from quiesce.supervisor.core.releases import (
    Release,
    choose_rollback,
    next_id,
)
from quiesce.supervisor.core.verify import Sample
from quiesce.supervisor.crew import Crew, Generation, Recipe
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.history import History
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.memory import Saving
from quiesce.supervisor.recipes import recipe as recipe_for
from quiesce.supervisor.release_dir import exists, resolve
from quiesce.supervisor.render import plural
from quiesce.supervisor.rollouts import Outcome, Plan, RolloutRun
from quiesce.supervisor.upkeep import Upkeep
from quiesce.supervisor.watching import Ended, Stopping, Waiters, Watch
from quiesce.supervisor.worker_link import Worker


class Service:
    """The instance.  Everything happens in the loop's one thread."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        loaded: Loaded,
        listeners: Listeners,
        history: History,
        log_fd: int,
        store: FdStore,
        saving: Saving = Saving(),  # noqa: B008  (immutable)
        scoreboard: Scoreboard | None = None,
    ) -> None:
        """Args as the parts they are; further:

        saving: Writes down how things are, for the next supervisor.
        scoreboard: The one that another supervisor has left.
        """
        self.loop = loop
        self.log = log
        self.loaded = loaded
        self.listeners = listeners
        self.history = history
        self.store = store
        self.save = saving.now
        self.crew = Crew(loop, log, listeners, store, saving, self._worker_changed, scoreboard)
        self.crew.hand_over.heir = lambda: self.serving
        self.started_at = time.time()  # of the instance; a supervisor that takes over is told
        self.process_since = self.started_at
        self.serving: Generation | None = None
        self.runs: list[RolloutRun] = []  # the one that is decided, and those that still drain
        self.stopping = Stopping.NO
        self.notices: list[str] = []
        self.last_cut = 0  # requests that the last drain had to end
        self.losses: deque[Worker] = deque(maxlen=64)  # workers that nobody had asked to leave
        self.on_change: Callable[[], None] = lambda: None  # title, STATUS=
        self.on_gone: Callable[[], None] = lambda: None  # the last worker is reaped while stopping
        self.on_rollout: Callable[[], None] = lambda: None  # one begins or is decided
        self.keeper: Callable[[], int | None] = lambda: None  # the pid of who keeps us
        self.on_commit: Callable[[], None] = lambda: None  # the configuration of an upgrade is in force
        self.on_decided: Callable[[RolloutRun, Ended], None] = lambda run, ended: None
        self.leaving: list[str] = []  # listeners that workers are being told to let go
        self.log_fd = log_fd
        self.log_file: str | None = None  # for people who ask where it is
        self.candidates: list[
            Release
        ] = []  # of a cold start (cold_start.py): what is tried if this one fails
        self.ids = history.used_ids()
        self._waiters = Waiters()
        self.admission = Admission(self)
        self.upkeep = Upkeep(self.crew, self, loaded.settings.service.workers)
        self.crew.on_wish = self.upkeep.replace_at_its_wish

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def run(self) -> RolloutRun | None:
        """The rollout that is still being decided."""
        return next((run for run in self.runs if run.deciding), None)

    # -- changes ------------------------------------------------------------------------

    def upgrade(
        self, options: dict[str, str], label: str | None, plan: dict[str, object], watch: Watch
    ) -> RolloutRun | None:
        """Read the configuration again, look at the disk, roll out what is there.

        Args:
            options: `release`, `python`, `app` of the command, for this once: the next upgrade
                without them does what the configuration says.
            label: The deployer's word for it.
            plan: `bake` (seconds); `force`, `if_changed` and `by_manager` (bool).
            watch: Who waits; SILENT if nobody does.

        Returns:
            The rollout; None if nothing had changed (`if_changed`).

        Raises:
            Busy: A change is being decided.
            ConfigError: What is asked for cannot be meant; nothing was touched.
        """
        self.admission.refuse_if_busy()
        again = self.loaded.reload()
        named = {f"service.{key}": value for key, value in options.items()}
        loaded = self.loaded.reload(named) if named else again
        release = resolve(loaded.settings, self.new_id(), label)
        if plan.get("if_changed") and self.serving is not None and release.same_as(self.serving.release):
            return None
        recipe = recipe_for(loaded.settings, release)
        if again.settings.listen != self.settings.listen:
            self.notice(
                "the listeners of the configuration have changed: `quiesce reconfigure` opens and closes them"
            )
        wanted = self.upkeep.wanted
        if again.settings.service.workers != self.settings.service.workers:
            wanted = again.settings.service.workers  # else `scale` stays in force
        self.admission.refuse_without_room(wanted, lanes=1)
        self.ids.append(release.id)
        return self.roll_out("upgrade", release, recipe, {**plan, "wanted": wanted}, watch, again)

    def rollback(self, which: str | None, watch: Watch, bake_s: float | None = None) -> RolloutRun:
        """Back to the previous good release, or to the one that is named.  ``bake_s``: for this once.

        Raises:
            Busy, ConfigError: As :meth:`upgrade`.
        """
        self.admission.refuse_if_busy()
        if self.serving is None:
            raise ConfigError("nothing serves, so there is nothing to roll back from; use `quiesce upgrade`")
        outcomes = self.history.outcomes()
        on_disk = [entry.release.path for entry in outcomes if exists(entry.release)]
        release = choose_rollback(which, self.serving.release, outcomes, on_disk)
        recipe = recipe_for(self.settings, release)
        self.admission.refuse_without_room(self.upkeep.wanted, lanes=1)
        return self.roll_out("rollback", release, recipe, {"bake": bake_s}, watch)

    def new_id(self) -> str:
        """A release id that was never used."""
        return next_id(self.ids)

    def roll_out(
        self,
        command: str,
        release: Release,
        recipe: Recipe,
        plan: dict[str, object],
        watch: Watch,
        loaded: Loaded | None = None,
    ) -> RolloutRun:
        """Begin a rollout.  ``loaded`` is put in force when it is committed, and not before."""
        loaded = loaded or self.loaded
        rollout = loaded.settings.rollout
        wanted = plan.get("wanted")
        bake = plan.get("bake")
        old = self.serving
        todo = Plan(
            command=command,
            wanted=wanted if isinstance(wanted, int) else self.upkeep.wanted,
            bake_s=float(bake) if isinstance(bake, (int, float)) else rollout.bake,
            max_error_rate=rollout.max_error_rate,
            gate=not plan.get("force"),
            by_manager=bool(plan.get("by_manager")),
        )
        uid = os.urandom(8).hex()
        run = RolloutRun(self.crew, self, todo, loaded, watch, self.crew.begin(release, recipe), old, uid)
        self.runs.append(run)
        self.save()
        self.on_rollout()
        self.log.info(
            f"{command} begins",
            release=release.id,
            label=release.label,
            path=release.path,
            was=_id(old) or None,
        )
        if old is not None and release.same_code(old.release):
            self.rollout_progress(
                run,
                f"{release.id} and {old.release.id} share {release.path}: rollback works only during the bake",
            )
        self.admission.begin(run)
        self.changed()
        return run

    # -- what a rollout says (Boss) --------------------------------------------------------

    def rollout_progress(self, run: RolloutRun, text: str) -> None:
        self.log.info(text)
        for watch in run.watches:
            watch.progress(text)
        self.changed()

    def rollout_commits(self, run: RolloutRun) -> None:
        self.serving = run.new
        self.loaded = run.loaded
        self.upkeep.wanted = run.plan.wanted
        if run.plan.command != "start":
            self.notices.clear()  # what was loud is mended, or was about what served before
        self.on_commit()
        if not self.upkeep.held:
            self.upkeep.unhold()  # nobody of them may be left behind without having been told to accept
        for worker in run.new:
            worker.use_log(self.log_fd)
        self._record(run, "done", "")
        warning = self.history.save_last_good(run.release)
        if warning:
            self.log.error("cannot keep the last good release", why=warning)
        # Last: a supervisor that takes over before that does all of it again, and it is the same then.
        run.committed = True
        self.save()

    def rollout_decided(self, run: RolloutRun, outcome: Outcome) -> None:
        took = self.loop.now() - run.since
        if outcome.done:
            was = f" (was {run.old.release.id})" if run.old is not None else ""
            how = f"serves with {plural(run.new.accepting(), 'worker')}"
            if self.upkeep.held:
                how = "is in place, quiesced like its predecessor (`quiesce resume all`)"
            ended = Ended(0, f"{run.release.id} {how}{was}; took {took:.1f} s{run.moved()}{run.doubts()}")
            if run.old is not None and run.old.release.same_code(run.release):
                text = f"{ended.text}; both lie in {run.release.path}, so `quiesce rollback` cannot go back"
                ended = Ended(0, text)
        else:
            ended = self._undone(run, outcome)
        run.reported = True
        self.on_decided(run, ended)
        for watch in run.watches:
            watch.decided(ended)
        self._after(run, outcome)
        self.on_rollout()

    def _undone(self, run: RolloutRun, outcome: Outcome) -> Ended:
        self._record(
            run, "aborted" if outcome.aborted else ("rolled_back" if run.old else "failed"), outcome.reason
        )
        for worker in run.new:
            worker.copy_output()
        if outcome.aborted:
            self.log.info(f"{run.plan.command} aborted", release=run.release.id, reason=outcome.reason)
        else:
            self.log.error(f"{run.plan.command} failed", release=run.release.id, reason=outcome.reason)
        if run.plan.command == "start" and self.candidates:
            return Ended(3, f"{run.release.id} failed: {outcome.reason}", outcome.detail)
        serves = run.old is not None and (run.old.accepting() > 0 or self.upkeep.held)
        if not serves:
            return Ended(3, f"{run.release.id} failed and nothing serves: {outcome.reason}", outcome.detail)
        assert run.old is not None
        text = f"{run.release.id} failed, {run.old.release.id} serves on: {outcome.reason}"
        return Ended(1, text, outcome.detail)

    def _after(self, run: RolloutRun, outcome: Outcome) -> None:
        if not outcome.done:
            self._finish(run)
        self.upkeep.plan()
        self._waiters.look()
        self.changed()

    def rollout_finished(self, run: RolloutRun) -> None:
        self.last_cut = run.old.cut if run.old is not None else 0
        for watch in run.watches:
            watch.finished()
        if run.old is not None and run.old.cut:
            self.log.warning("drained", release=run.old.release.id, cut_at_drain_timeout=run.old.cut)
        elif run.old is not None:
            self.log.info("drained", release=run.old.release.id)
        self._finish(run)
        self.changed()

    def _finish(self, run: RolloutRun) -> None:
        if run in self.runs:
            self.runs.remove(run)
        run.watches = []
        for generation in (run.new, run.old):
            self._forget_if_empty(generation)
        self.save()
        self._waiters.look()

    def _forget_if_empty(self, generation: Generation | None) -> None:
        if generation is None or generation.workers or generation is self.serving:
            return
        if any(generation in (run.new, run.old) and run.deciding for run in self.runs):
            return
        if self.stopping is Stopping.NO and self.crew.hand_over.is_wanted(generation):
            self.crew.hand_over.rescue(generation)
        else:
            self.crew.forget(generation)

    def sweep(self) -> None:
        """Forget generations that were kept for what lay in their lanes, or see to it that it is read."""
        for generation in list(self.crew.generations):
            self._forget_if_empty(generation)

    def recent_sample(self, generation: Generation) -> Sample:
        return self.upkeep.recent_sample(generation)

    def is_held(self) -> bool:
        return self.upkeep.held

    def _record(self, run: RolloutRun, outcome: str, reason: str) -> None:
        warning = self.history.append(
            {
                "at": round(time.time(), 3),
                "uid": run.uid,
                "command": run.plan.command,
                "release": run.release.id,
                **{key: value for key, value in run.release.to_json().items() if key != "id"},
                "from": run.old.release.id if run.old is not None else None,
                "outcome": outcome,
                "duration_s": round(self.loop.now() - run.since, 3),
                "reason": reason or ("" if run.plan.gate else "forced: no gate, no bake"),
            }
        )
        if warning:
            self.log.error("cannot write the history", why=warning)

    # -- workers ------------------------------------------------------------------------

    def _worker_changed(
        self, generation: Generation, worker: Worker, old: WorkerState, new: WorkerState
    ) -> None:
        self.log.debug("worker", worker=worker.id, was=old.value, now=new.value, pid=worker.pid)
        if worker.failure and new in GOING and worker not in self.losses:
            self.losses.append(worker)
            self._say_lost(generation, worker)
        if new is WorkerState.DRAINING and old is not WorkerState.DRAINING:
            worker.copy_output()
        if self.stopping is Stopping.NO:
            self._tell_runs(generation, worker)
            self._tend(generation, worker, old, new)
        if new is WorkerState.REAPED:
            self.upkeep.replaced.discard(worker.id)
            self._forget_if_empty(generation)
        self._waiters.look()
        self.changed()
        if self.stopping is not Stopping.NO and self.crew.all_gone():
            self._all_gone()

    def _tell_runs(self, generation: Generation, worker: Worker) -> None:
        for run in list(self.runs):
            if generation is run.new or generation is run.old:
                run.worker_changed(worker, generation is run.new)

    def _tend(self, generation: Generation, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        """What upkeep does for a worker that no rollout cares for."""
        if generation is not self.serving:
            return
        run = self.run
        if run is None or generation is not run.new:
            self.upkeep.tend(worker, old, new)
        if new is WorkerState.REAPED:
            self.upkeep.buried(generation, worker)
        elif new is WorkerState.DRAINING:
            self.upkeep.leaves(generation, worker)

    def _say_lost(self, generation: Generation, worker: Worker) -> None:
        self.log.error("worker lost", worker=worker.id, pid=worker.pid, reason=worker.failure)
        run = self.run
        if run is not None and generation is run.old:
            self.rollout_progress(run, worker.failure)  # who waits for the rollout hears of it, too
        if worker.detail and generation is self.serving:
            self.log.multiline("error", "its last words", worker.detail, worker=worker.id)

    def scale(self, wanted: int) -> None:
        """Want so many workers, until the next reconfigure or cold start.

        Raises:
            Busy: A rollout is being decided.
            ConfigError: The descriptor store could not keep so many.
        """
        self.admission.refuse_if_busy()
        self.admission.refuse_without_room(max(0, wanted - self.upkeep.wanted))
        self.upkeep.wanted = wanted
        self.save()
        self.upkeep.plan()
        self.changed()

    def may_plan(self) -> bool:
        """May upkeep spawn and retire?  Not the old set of a rollout that has quiesced it."""
        run = self.run
        hushed = run is not None and run.state.value in ("hushing", "baking")
        return self.stopping is Stopping.NO and not hushed

    def is_calm(self) -> bool:
        """Does nothing go on that decides by itself who accepts?  Then workers may be recycled, and balanced."""
        return self.stopping is Stopping.NO and self.run is None and not self.upkeep.held

    def when(self, fact: Callable[[], bool], then: Callable[[], None]) -> None:
        """Call ``then`` once, as soon as ``fact`` holds (it is asked after every change of a worker)."""
        self._waiters.when(fact, then)

    def changed(self) -> None:
        self.on_change()

    # -- stopping --------------------------------------------------------------------------------

    def stop(self, *, now: bool) -> None:
        """Let every worker finish (``now``: as fast as is polite) and leave; then ``on_gone``.

        Requests under way have ``drain_timeout``; who asks nothing is not waited for.
        """
        wish = Stopping.FAST if now else Stopping.GRACEFUL
        if wish.value <= self.stopping.value:
            return
        first = self.stopping is Stopping.NO
        # After `drain` a load balancer sends nobody here: connections without a request need not be waited for.
        left = self.upkeep.held and self.crew.scoreboard.unready
        self.stopping = wish
        self.crew.scoreboard.unready = True  # a load balancer should know first
        run = self.run
        self.save()
        if first and run is not None:
            self._give_up(run)
        self.crew.hand_over.end_all()  # or those who read them would wait for what nobody sends
        for worker in list(self.crew):
            self.crew.hand_over.aim(worker, Why.STOPPED)
            fast = now or (left and not worker.counter(Field.CONN_BUSY))
            if fast:
                worker.ask(WorkerEvent.LEAVE_ASKED)
            else:
                worker.finish()
        self.changed()
        if self.crew.all_gone():
            self.loop.call_soon(self._all_gone)

    def _give_up(self, run: RolloutRun) -> None:
        """The instance stops in the middle of a rollout: it is not decided, and not recorded as good."""
        run.cancel()
        self._record(run, "aborted", "the instance was stopped")
        ended = Ended(3, f"{run.release.id}: the instance was stopped before it was decided")
        self.on_decided(run, ended)
        for watch in run.watches:
            watch.decided(ended)
        self._finish(run)

    def _all_gone(self) -> None:
        self.crew.hand_over.let_go()
        self.on_gone()

    def waiting_for(self) -> str:
        """What a stop waits for, in words."""
        workers = list(self.crew)
        connections = sum(worker.counter(Field.CONN_OPEN) for worker in workers)
        return f"{plural(connections, 'connection')} on {plural(len(workers), 'worker')}"

    def notice(self, text: str) -> None:
        """Something loud: in the log, and in `status` until the next good change."""
        self.log.error(text)
        self.notices.append(text)
        del self.notices[:-8]

    def use_log(self, fd: int) -> None:
        """The log is another descriptor now (`reopen`)."""
        self.log_fd = fd
        for worker in self.crew:
            worker.use_log_again(fd)


def _id(generation: Generation | None) -> str:
    return generation.release.id if generation is not None else ""
