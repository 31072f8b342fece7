"""All workers of the instance, in generations; spawns them, counts for them, buries them."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from quiesce.shared.channel import Channel, make_pair
from quiesce.shared.deadlines import Timer
from quiesce.shared.errors import ConfigError, SpawnError
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import COUNTERS, SLOTS, Field, Scoreboard
from quiesce.supervisor import fdnames
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core.backoff import Backoff
from quiesce.supervisor.core.lifecycle import COMING, State
from quiesce.supervisor.core.releases import Release
from quiesce.supervisor.core.snapshot import GenerationRecord, WorkerRecord
from quiesce.supervisor.core.verify import Sample
from quiesce.supervisor.fdstore import Keeping
from quiesce.supervisor.hand_over import HandOver
from quiesce.supervisor.lanes import Lane, Lanes, Named
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.memory import Saving
from quiesce.supervisor.spawn import Identity, Spawner, Spec
from quiesce.supervisor.worker_link import Worker
from quiesce.supervisor.worker_parts import Parts, Terms

OnChange = Callable[["Generation", Worker, State, State], None]

TRIAL_LOOK_S = 0.1
SPAWNS_A_TURN = 8
KEPT_PER_WORKER = 3  # descriptors in the store: channel, pidfd, output
KEPT_PER_GENERATION = 2  # both ends of its lane

_RESPONSES = (Field.RESP_2XX, Field.RESP_3XX, Field.RESP_4XX, Field.RESP_5XX)


class Recipe(NamedTuple):
    """How workers of one generation are made; decided when its rollout began."""

    terms: Terms  # its `configure` names no worker yet
    env: dict[str, str]
    umask: int
    identity: Identity | None
    settings: Settings  # what it was made from
    broken: str = ""  # why no worker can be made by it: it was adopted, and something is missing since


class Generation:
    """The workers that one rollout brought, and those that replaced them since."""

    def __init__(self, release: Release, recipe: Recipe, born: float, lane: Lane | None) -> None:
        self.release = release
        self.recipe = recipe
        self.born = born
        self.lane = lane  # None: no descriptors were left for one
        self.workers: dict[int, Worker] = {}  # by number; a reaped one is taken out
        self.backoff = Backoff()
        self.vacancies: list[int] = []  # places that nobody has yet: how many have died in each
        self.dead = dict.fromkeys(COUNTERS, 0)  # counters of those that are gone
        self.cut = 0  # connections that its drain had to end with a request unanswered
        self.lost = 0  # connections that went with workers of it that died

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

    def record(self, settings: int) -> GenerationRecord:
        """What the next supervisor must know; ``settings`` is the index of the recipe's."""
        return GenerationRecord(
            release=self.release.to_json(),
            settings=settings,
            born=self.born,
            workers=[worker.record() for worker in self],
            backoff=(self.backoff.quick_deaths, self.backoff.not_before, self.backoff.told),
            dead={field.name: count for field, count in self.dead.items()},
            cut=self.cut,
            lane=self.lane.key if self.lane is not None else "",
            lane_ended=self.lane is not None and self.lane.ended,
            lost=self.lost,
            vacancies=self.vacancies,
        )

    def accepting(self) -> int:
        return sum(worker.state is State.ACCEPTING for worker in self)

    def open_connections(self) -> int:
        return sum(worker.counter(Field.CONN_OPEN) for worker in self)

    def sample(self) -> Sample:
        """Responses of all its workers, dead ones included."""
        counts = [self.total(field) for field in _RESPONSES]
        return Sample(sum(counts), counts[-1])

    def total(self, field: Field) -> int:
        return self.dead[field] + sum(worker.counter(field) for worker in self)


class Crew:
    """Every worker process.  Owns the scoreboard; the listeners are only shown to it."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        listeners: Listeners,
        store: Keeping,
        saving: Saving,
        on_change: OnChange,
        scoreboard: Scoreboard | None = None,
    ) -> None:
        """``scoreboard``: the one that another supervisor has left."""
        self.loop = loop
        self.log = log
        self.listeners = listeners
        self.store = store
        self.save, self.save_soon = saving
        self.scoreboard = scoreboard or Scoreboard.create()
        store.put(fdnames.SCOREBOARD, self.scoreboard.fd)
        self.lanes = Lanes(store, log)
        self.hand_over = HandOver(self)
        self.generations: list[Generation] = []
        self.buried = dict.fromkeys(COUNTERS, 0)  # counters of generations that are gone
        self.remake: Callable[[Generation], Recipe] = lambda generation: (
            generation.recipe
        )  # a broken one, anew
        self.on_wish: Callable[[Worker], None] = lambda worker: None  # a worker asks to be replaced
        self.next_number: dict[str, int] = {}  # by release: a worker's name is never used twice
        self._spawner = Spawner()
        self._on_change = on_change
        self._trial_watch: Timer | None = None
        self._free = list(range(SLOTS - 1, -1, -1))

    def __iter__(self) -> Iterator[Worker]:
        return (worker for generation in list(self.generations) for worker in generation)

    def begin(self, release: Release, recipe: Recipe) -> Generation:
        """A new, empty generation."""
        return self._add_generation(release, recipe, self.lanes.make(release.id))

    def _add_generation(self, release: Release, recipe: Recipe, lane: Lane | None) -> Generation:
        generation = Generation(release, recipe, self.loop.now(), lane)
        self.generations.append(generation)
        return generation

    def named(self, key: str, writer: str) -> Named | None:
        """The lane of this key, if this worker may be told to send into it."""
        return self.hand_over.named(key, writer)

    def spawn(self, generation: Generation) -> Worker:
        """Start one worker of a generation.

        Raises:
            SpawnError: No process, descriptor or slot could be had.
        """
        if generation.recipe.broken:
            self._mend(generation)
        if not self._free:
            raise SpawnError(f"all {SLOTS} places for workers are taken; wait until old ones have drained")
        number = self.next_number.get(generation.release.id, 1)
        recipe, release = generation.recipe, generation.release
        terms = self._terms(generation, number)
        capture: Capture | None = None
        try:
            capture = Capture()
            ours, theirs = make_pair()
        except OSError as exc:
            if capture is not None:
                capture.close()
            raise SpawnError(
                f"cannot prepare a worker: {exc.strerror}; see RLIMIT_NOFILE, LimitNOFILE="
            ) from exc
        env = {**recipe.env, "QUIESCE_WORKER": terms.configure.worker}
        spec = Spec(
            release.python, release.app_dir, env, theirs.fileno(), capture.fd, recipe.umask, recipe.identity
        )
        try:
            spawned = self._spawner.spawn(spec)
        except SpawnError:
            ours.close()
            capture.close()
            raise
        finally:
            theirs.close()
            capture.close_writing()
        self.next_number[release.id] = number + 1
        slot = self._free.pop()
        self.scoreboard.clear(slot)
        parts = Parts(os.urandom(8).hex(), spawned.pid, spawned.pidfd, Channel(ours, max_fds=0), capture)
        worker = self._add(generation, Worker(self, parts, slot, number, terms, _key(generation)))
        if generation.vacancies:
            worker.restarts = generation.vacancies.pop(0)
        # Before it is stored it sees the end of its channel if we die now, and leaves: it was told nothing yet.
        self.save()
        self.log.debug("worker spawned", worker=worker.id, pid=worker.pid, python=release.python)
        return worker

    def _mend(self, generation: Generation) -> None:
        """Something was missing when it was adopted: perhaps it is there by now.

        Raises:
            SpawnError: It is not.
        """
        try:
            generation.recipe = self.remake(generation)
        except ConfigError as exc:
            raise SpawnError(
                f"no worker of {generation.release.id} can be started at present: {exc}"
            ) from exc
        self.log.info("workers can be started again", release=generation.release.id)

    def _add(self, generation: Generation, worker: Worker) -> Worker:
        worker.watcher = lambda w, old, new: self._changed(generation, w, old, new)
        worker.on_wish = lambda w: self.on_wish(w)
        generation.workers[worker.number] = worker
        if self._trial_watch is None:
            self._watch_trials()
        return worker

    # -- taking over from another supervisor ------------------------------------------------

    def recall(self, record: GenerationRecord, recipe: Recipe, kept: dict[str, int]) -> Generation:
        """A generation that another supervisor has left.

        Args:
            record: As :meth:`Generation.record` wrote it.
            recipe: How its workers are made.
            kept: Descriptors by name, from the store; those of its workers that live are taken out.
        """
        release = Release.from_json(record.release)
        # Without its lane its workers would hold back what could move: then it gets another one.
        lane = self.lanes.recall(record.lane, release.id, kept) or self.lanes.make(release.id)
        generation = self._add_generation(release, recipe, lane)
        if record.lane_ended:
            self.hand_over.end(generation)
        generation.lost, generation.vacancies = record.lost, list(record.vacancies)
        generation.born, generation.backoff, generation.cut = (
            record.born,
            Backoff(*record.backoff),
            record.cut,
        )
        generation.dead.update(_counters(record.dead))
        for worker in record.workers:
            self._recall_worker(generation, worker, kept)
        return generation

    def _recall_worker(self, generation: Generation, record: WorkerRecord, kept: dict[str, int]) -> None:
        names = (fdnames.pidfd(record.key), fdnames.channel(record.key), fdnames.output(record.key))
        pidfd, wire, output = (kept.get(name, -1) for name in names)
        if record.state == State.SPAWNED.value and wire < 0 and output < 0:
            return  # it was not stored yet: it has seen the end of its channel, and was never told anything
        if record.state == State.REAPED.value:  # all but buried
            self._count_dead(generation, self.scoreboard.slot(record.slot), record.cut)
            return
        for name in names:
            kept.pop(name, None)
        channel = None
        if wire >= 0:
            # Numbers that the last supervisor has used are not used again, or an old answer would pass for a new one.
            channel = Channel(socket.socket(fileno=wire), max_fds=0, first_seq=time.monotonic_ns())
        capture = Capture.adopt(output) if output >= 0 else None
        if record.slot in self._free:
            self._free.remove(record.slot)
        parts = Parts(record.key, record.pid, pidfd, channel, capture)
        terms = self._terms(generation, record.number)
        worker = Worker(self, parts, record.slot, record.number, terms, _key(generation), record)
        self._add(generation, worker)

    def recall_counters(self, buried: Mapping[str, int], next_numbers: Mapping[str, int]) -> None:
        """What is known of workers that are gone.  Slots that belong to nobody are emptied."""
        self.buried.update(_counters(buried))
        self.next_number.update(next_numbers)
        for slot in self._free:
            self.scoreboard.clear(slot)

    def take_over(self) -> None:
        """Everything is in its place: talk to the workers."""
        for worker in self:
            worker.take_over()

    def _terms(self, generation: Generation, number: int) -> Terms:
        terms = generation.recipe.terms
        name = f"{generation.release.id}/{number}"
        return terms._replace(configure=terms.configure._replace(worker=name))

    # -- while they run ---------------------------------------------------------------------

    def _watch_trials(self) -> None:
        """While any worker starts, look often at how much it writes."""
        coming = [worker for worker in self if worker.state in COMING]
        for worker in coming:
            worker.check_output()
        when = self.loop.now() + TRIAL_LOOK_S
        self._trial_watch = self.loop.call_at(when, self._watch_trials) if coming else None

    def _changed(self, generation: Generation, worker: Worker, old: State, new: State) -> None:
        if new is State.REAPED:
            self._bury(generation, worker)
        self._on_change(generation, worker, old, new)

    def _bury(self, generation: Generation, worker: Worker) -> None:
        """Keep a dead worker's counters, free its slot."""
        self._count_dead(generation, self.scoreboard.slot(worker.slot), worker.connections_cut)
        del generation.workers[worker.number]
        self.hand_over.rescue(generation)
        # Once more would count it twice: written down first, then emptied.
        self.save()
        self.scoreboard.clear(worker.slot)
        self._free.append(worker.slot)

    @staticmethod
    def _count_dead(generation: Generation, slot: memoryview, cut: int) -> None:
        for field in COUNTERS:
            generation.dead[field] += slot[field]
        generation.cut += cut
        generation.lost += slot[Field.CONN_OPEN]

    def forget(self, generation: Generation) -> None:
        """An empty generation that will not be filled again: its counters stay in the totals."""
        assert not generation.workers
        if generation in self.generations:
            self.generations.remove(generation)
            for field in COUNTERS:
                self.buried[field] += generation.dead[field]
            self.hand_over.forget(generation)

    def totals(self) -> dict[str, int]:
        """Every counter, monotonic across upgrades."""
        return {
            field.name.lower() + "_total": self.buried[field] + sum(g.total(field) for g in self.generations)
            for field in COUNTERS
        }

    def all_gone(self) -> bool:
        return not any(generation.workers for generation in self.generations)

    def close(self) -> None:
        """Let go of what is ours; what is stored is the next supervisor's."""
        self.lanes.close()
        self.scoreboard.close()


def _key(generation: Generation) -> str:
    return generation.lane.key if generation.lane is not None else ""


def _counters(named: Mapping[str, int]) -> dict[Field, int]:
    """Those that this version knows."""
    return {field: named[field.name] for field in COUNTERS if field.name in named}


def close_on_exec_all() -> None:
    """Make every descriptor above 2 that we were started with close-on-exec.

    Whoever started us may have left descriptors open; a worker must not inherit them.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                pass  # the one that listdir itself had open
