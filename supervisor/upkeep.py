"""Keep the serving release at its wanted strength: respawn, scale, hold, watch heartbeats."""

import resource
from collections import deque
from pathlib import Path
from typing import Protocol

from quiesce.shared.errors import SpawnError
from quiesce.shared.messages import Replacing
from quiesce.shared.scoreboard import Field
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core import backoff, fleet, recycle
from quiesce.supervisor.core.fleet import Member
from quiesce.supervisor.core.lanes import Why
from quiesce.supervisor.core.lifecycle import COMING, GOING
from quiesce.supervisor.core.lifecycle import Event as WorkerEvent
from quiesce.supervisor.core.lifecycle import State as WorkerState
from quiesce.supervisor.core.verify import Sample
from quiesce.supervisor.crew import SPAWNS_A_TURN, Crew, Generation
from quiesce.supervisor.worker_link import Worker

TICK_S = 1.0  # heartbeats, sums for the error gate, what workers on trial wrote
MINUTE_S = 60.0
INLINE_REQUEST_S = 60.0  # request_timeout where a request runs in the loop and none is set
SPAWN_AGAIN_S = 30.0  # after the system refused us a process


class Owner(Protocol):
    """Whose upkeep it is."""

    serving: Generation | None

    log_fd: int

    @property
    def settings(self) -> Settings: ...
    def save(self) -> None: ...
    def may_plan(self) -> bool: ...
    def is_calm(self) -> bool: ...
    def sweep(self) -> None: ...
    def notice(self, text: str) -> None: ...
    def changed(self) -> None: ...


class Upkeep:
    """What nobody has to ask for.  ``wanted`` and ``held`` are what commands have asked for."""

    def __init__(self, crew: Crew, owner: Owner, wanted: int) -> None:
        self.wanted = wanted
        self.held = False  # `quiesce all`
        self.cannot_spawn = ""  # why the last attempt made no process
        self._crew = crew
        self._loop = crew.loop
        self._log = crew.log
        self._owner = owner
        self.replaced: set[str] = set()  # ids of workers that leave when their successors accept
        # By the release's id: a generation would be kept alive for a minute, with all that it was made from.
        self._samples: deque[tuple[float, str, Sample]] = deque(maxlen=int(MINUTE_S / TICK_S) + 1)
        self._respawn = self._loop.call_at(self._loop.now(), lambda: None)
        self._tick()

    # -- one worker ---------------------------------------------------------------------

    def tend(self, worker: Worker, old: WorkerState, new: WorkerState) -> None:
        """A worker of the serving release that no rollout brings up: through the probe, then to work."""
        if new is WorkerState.READY:
            worker.ask(WorkerEvent.PROBE_ASKED)
        elif new is WorkerState.PROVEN:
            # Held: it accepts nobody, but what lies in the lane of one that died is read by it.
            worker.ask(WorkerEvent.QUIESCE_ASKED if self.held else WorkerEvent.ACCEPT_ASKED)
        elif new is WorkerState.ACCEPTING and old in (WorkerState.ADMITTED, WorkerState.RESUMING):
            worker.use_log(self._owner.log_fd)
            self._log.info("worker accepting", worker=worker.id, pid=worker.pid)
            self._send_replaced()
        elif new is WorkerState.QUIESCED:
            self._send_replaced()  # the successor of one that is held

    def leaves(self, generation: Generation, worker: Worker) -> None:
        """A worker of the serving release drains: unasked, and then it is dying most often, or on our word."""
        if not worker.asked_to_leave:
            self._vacate(generation, worker, died=True)
        self.plan()

    def buried(self, generation: Generation, worker: Worker) -> None:
        """A worker of the serving release is gone: make up for it, sooner or later."""
        if worker.failure:
            self._after_death(generation, worker)
        self.plan()

    def _after_death(self, generation: Generation, worker: Worker) -> None:
        self._vacate(generation, worker, died=True)
        verdict = self._hold_back(generation, worker)
        if verdict.loop_begins:
            self._owner.notice(
                f"crash loop: {verdict.backoff.quick_deaths} workers of {generation.release.id} died at once, the last "
                f"one because {worker.failure}; quiesce goes on trying, every {backoff.MAX_DELAY_S:.0f} s in the end; "
                "deploy a fix with `quiesce upgrade` or go back with `quiesce rollback`"
            )

    def _hold_back(self, generation: Generation, worker: Worker) -> backoff.Verdict:
        """The sooner they end, the later their successors begin."""
        now = self._loop.now()
        lived = now - worker.accepting_since if worker.accepting_since is not None else 0.0
        verdict = backoff.after_death(generation.backoff, now, lived)
        generation.backoff = verdict.backoff
        return verdict

    @staticmethod
    def _vacate(generation: Generation, worker: Worker, *, died: bool) -> None:
        """Its place is free for another one, if it is not another one's already."""
        if not worker.has_left_place:
            worker.has_left_place = True
            generation.vacancies.append(worker.restarts + died)

    # -- all of them --------------------------------------------------------------------

    def plan(self) -> None:
        """Make the serving release have as many workers as are wanted."""
        generation = self._owner.serving
        if generation is None or not self._owner.may_plan():
            return
        now = self._loop.now()
        members = [Member(w.number, w.state) for w in generation if w.id not in self.replaced]
        plan = fleet.plan(self.wanted, members, now, generation.backoff.not_before)
        self._retire([generation.workers[number] for number in plan.retire])
        if not plan.spawn and plan.wake_at is None:
            generation.vacancies.clear()  # no place is left that nobody has
        if plan.spawn > SPAWNS_A_TURN:  # the loop has others to serve, the watchdog among them
            self._loop.call_at(now, self.plan)
        for _ in range(min(plan.spawn, SPAWNS_A_TURN)):
            try:
                self._crew.spawn(generation)
                self.cannot_spawn = ""
            except SpawnError as exc:
                self.cannot_spawn = str(exc)
                self._log.error("cannot spawn", release=generation.release.id, error=str(exc))
                plan = plan._replace(wake_at=now + SPAWN_AGAIN_S)
                break
        if plan.wake_at is not None:
            self._respawn.cancel()
            self._respawn = self._loop.call_at(plan.wake_at, self.plan)
        self._send_replaced()  # fewer may be wanted than there were

    def _retire(self, workers: list[Worker]) -> None:
        """Let them hand over to their siblings, and go."""
        for worker in workers:  # all of them first: none is to count on another one that goes
            self._crew.hand_over.aim(worker, Why.SURPLUS)
        for worker in workers:
            worker.ask(WorkerEvent.DRAIN_ASKED)

    def take_over(self) -> None:
        """Workers of the serving release that another supervisor has left in the middle of something."""
        for worker in self._staying():
            if worker.state is WorkerState.READY:
                worker.ask(WorkerEvent.PROBE_ASKED)
            elif worker.state is WorkerState.PROVEN and not self.held:
                worker.ask(WorkerEvent.ACCEPT_ASKED)
        self.plan()

    def hold(self) -> None:
        """`quiesce all`: nobody accepts; new connections wait in the kernel's queue."""
        self.held = True
        self._owner.save()
        for worker in self._staying():
            if worker.state not in COMING:
                self._crew.hand_over.redirect(worker, Why.HELD)
                worker.ask(WorkerEvent.QUIESCE_ASKED)
        self._owner.changed()

    def readmit(self) -> None:
        """`resume all`: the end of `quiesce all` and of `drain`."""
        self._crew.scoreboard.unready = False
        self.unhold()

    def unhold(self) -> None:
        """Let all accept that are not to be held any more."""
        self.held = False
        self._owner.save()
        for worker in self._staying():
            if worker.state in (WorkerState.PROVEN, WorkerState.READY):  # READY: brought up by `--force`
                worker.ask(WorkerEvent.ACCEPT_ASKED)
            elif worker.state not in COMING:
                self._crew.hand_over.aim(worker, Why.RESUMED)
                worker.ask(WorkerEvent.RESUME_ASKED)
        self._owner.changed()

    def _staying(self) -> list[Worker]:
        return [worker for worker in self._owner.serving or () if worker.state not in GOING]

    def recent_sample(self, generation: Generation) -> Sample:
        """What this generation answered in the last minute."""
        horizon = self._loop.now() - MINUTE_S
        for at, whose, sample in self._samples:
            if at >= horizon and whose == generation.release.id:
                return generation.sample().since(sample)
        return generation.sample()

    # -- the tick -----------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._loop.now()
        serving = self._owner.serving
        if serving is not None:
            self._samples.append((now, serving.release.id, serving.sample()))
            # The past is forgiven when the youngest has lived long: its healthy twins prove nothing.
            youngest = max((worker.accepting_since or now for worker in serving), default=now)
            serving.backoff = backoff.after_life(serving.backoff, now - youngest, now)
        for worker in self._crew:
            worker.copy_output()
            self._check_heartbeat(worker, now)
        self._owner.sweep()
        if serving is not None and self._owner.is_calm():
            self._recycle(serving, now)
            self._crew.hand_over.balance(serving)
        self._owner.changed()
        self._loop.call_at(now + TICK_S, self._tick)

    def _check_heartbeat(self, worker: Worker, now: float) -> None:
        """`stall_timeout` and, where requests run inline, `request_timeout`."""
        if worker.state not in _WATCHED:
            return
        limits = self._owner.settings.worker
        inside, turn = worker.counter(Field.IN_REQUEST_SINCE_NS), worker.counter(Field.TURN_NS)
        if inside:
            limit = limits.request_timeout or INLINE_REQUEST_S
            if now - inside / 1e9 > limit:
                worker.fail(
                    f"worker {worker.id} was inside one request for more than {limit:g} s and was killed"
                )
        oldest = worker.counter(Field.OLDEST_REQUEST_NS)
        if limits.request_timeout and oldest and now - oldest / 1e9 > limits.request_timeout:
            self._replace(worker, f"a request runs for more than {limits.request_timeout:g} s")
        if not inside and turn and limits.stall_timeout and now - turn / 1e9 > limits.stall_timeout:
            worker.fail(
                f"the serving loop of worker {worker.id} stood still for {limits.stall_timeout:g} s; it was killed"
            )

    def _replace(self, worker: Worker, why: str) -> None:
        """One thread of its pool is stuck: a new worker takes its place, then its other requests finish."""
        serving = self._owner.serving
        mine = serving is not None and serving.workers.get(worker.number) is worker
        if not mine or worker.id in self.replaced or worker.state is WorkerState.DRAINING:
            return
        self._log.warning("worker is replaced", worker=worker.id, pid=worker.pid, reason=why)
        self._make_room_for_successor(worker)

    def _make_room_for_successor(self, worker: Worker) -> None:
        self.replaced.add(worker.id)
        serving = self._owner.serving
        if serving is not None and serving.workers.get(worker.number) is worker:
            self._vacate(serving, worker, died=False)
        self._owner.save()
        self.plan()

    def replace_at_its_wish(self, worker: Worker) -> None:
        """Somebody told it to leave: another one takes its place, and then what it has moves there.

        In the middle of a rollout too: it is written down, and looked at again when that is decided.
        """
        if worker.state in GOING:
            return  # it has its order
        if worker.id not in self.replaced:
            self._log.info("worker is recycled", worker=worker.id, pid=worker.pid, reason=recycle.TOLD_TO_GO)
            serving = self._owner.serving
            if serving is not None and serving.workers.get(worker.number) is worker:
                self._hold_back(serving, worker)  # somebody may send it to each that begins
            self._make_room_for_successor(worker)
        worker.tell(Replacing())

    def _send_replaced(self) -> None:
        """Successors are in their places: those that they replace may go."""
        staying = self._staying()
        going = [worker for worker in staying if worker.id in self.replaced]
        in_place = [w for w in staying if w.id not in self.replaced and w.state in _IN_PLACE]
        if going and len(in_place) >= self.wanted:
            self._retire(going)

    def _recycle(self, serving: Generation, now: float) -> None:
        """Replace one that has served long enough: start before stop, one at a time, at full strength."""
        config = self._owner.settings.worker
        limits = recycle.Limits(config.max_requests, config.max_age, config.max_rss)
        if not limits or self.replaced or len(serving.workers) != self.wanted:
            return
        workers = list(serving)
        if any(worker.state is not WorkerState.ACCEPTING for worker in workers):
            return
        due = recycle.due(limits, [_wear(worker, now, bool(limits.max_rss)) for worker in workers])
        if due is not None:
            worker = serving.workers[due.number]
            self._log.info("worker is recycled", worker=worker.id, pid=worker.pid, reason=due.reason)
            self._make_room_for_successor(worker)


def _wear(worker: Worker, now: float, measured: bool) -> recycle.Wear:
    rss = resident_bytes(worker.pid) if measured else 0
    return recycle.Wear(worker.number, worker.key, worker.counter(Field.REQUESTS), now - worker.since, rss)


def resident_bytes(pid: int) -> int:
    """Of a process that is ours and not reaped; 0: it is gone.

    Source: proc_pid_statm(5), the second number, in pages.
    """
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


#: It does what is wanted of it: what others hand over is safe with it.  Quiesced, if that is what somebody wants.
_IN_PLACE = frozenset((WorkerState.ACCEPTING, WorkerState.QUIESCED))
_WATCHED = frozenset((WorkerState.ACCEPTING, WorkerState.QUIESCED, WorkerState.DRAINING))
