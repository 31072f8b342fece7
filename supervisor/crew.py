"""All workers of the instance, in generations; spawns them, counts for them, buries them."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from quiesce.shared.channel import Channel, make_pair
from quiesce.shared.deadlines import Timer
from quiesce.shared.errors import SpawnError
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import COUNTERS, SLOTS, Field, Scoreboard
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.core.backoff import Backoff
from quiesce.supervisor.core.lifecycle import COMING, State
from quiesce.supervisor.core.releases import Release
from quiesce.supervisor.core.verify import Sample
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.spawn import Identity, Spawner, Spec
from quiesce.supervisor.worker_link import Terms, Worker

OnChange = Callable[["Generation", Worker, State, State], None]

TRIAL_LOOK_S = 0.1

_RESPONSES = (Field.RESP_2XX, Field.RESP_3XX, Field.RESP_4XX, Field.RESP_5XX)


class Recipe(NamedTuple):
    """How workers of one generation are made; decided when its rollout began."""

    terms: Terms  # its `configure` names no worker yet
    env: dict[str, str]
    umask: int
    identity: Identity | None


class Generation:
    """The workers that one rollout brought, and those that replaced them since."""

    def __init__(self, release: Release, recipe: Recipe, born: float) -> None:
        self.release = release
        self.recipe = recipe
        self.born = born
        self.workers: dict[int, Worker] = {}  # by number; a reaped one is taken out
        self.backoff = Backoff()
        self.dead = dict.fromkeys(COUNTERS, 0)  # counters of those that are gone
        self.cut = 0  # connections that its drain had to end with a request unanswered

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

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

    def __init__(self, loop: Loop, log: Log, listeners: Listeners, on_change: OnChange) -> None:
        self.loop = loop
        self.log = log
        self.listeners = listeners
        self.scoreboard = Scoreboard.create()
        self.generations: list[Generation] = []
        self.buried = dict.fromkeys(COUNTERS, 0)  # counters of generations that are gone
        self._spawner = Spawner()
        self._on_change = on_change
        self._trial_watch: Timer | None = None
        self._free = list(range(SLOTS - 1, -1, -1))
        self._next_number: dict[str, int] = {}  # by release: a worker's name is never used twice

    def __iter__(self) -> Iterator[Worker]:
        return (worker for generation in list(self.generations) for worker in generation)

    def begin(self, release: Release, recipe: Recipe) -> Generation:
        """A new, empty generation."""
        generation = Generation(release, recipe, self.loop.now())
        self.generations.append(generation)
        return generation

    def spawn(self, generation: Generation) -> Worker:
        """Start one worker of a generation.

        Raises:
            SpawnError: No process, descriptor or slot could be had.
        """
        if not self._free:
            raise SpawnError(f"all {SLOTS} places for workers are taken; wait until old ones have drained")
        number = self._next_number.get(generation.release.id, 1)
        recipe, release = generation.recipe, generation.release
        worker_id = f"{release.id}/{number}"
        terms = recipe.terms._replace(configure=recipe.terms.configure._replace(worker=worker_id))
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
        env = {**recipe.env, "QUIESCE_WORKER": worker_id}
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
        self._next_number[release.id] = number + 1
        slot = self._free.pop()
        self.scoreboard.clear(slot)
        worker = Worker(self, spawned, Channel(ours, max_fds=0), capture, slot, number, terms)
        worker.watcher = lambda w, old, new: self._changed(generation, w, old, new)
        generation.workers[number] = worker
        if self._trial_watch is None:
            self._watch_trials()
        self.log.debug("worker spawned", worker=worker.id, pid=worker.pid, python=release.python)
        return worker

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
        for field in COUNTERS:
            generation.dead[field] += worker.counter(field)
        generation.cut += worker.connections_cut
        self.scoreboard.clear(worker.slot)
        self._free.append(worker.slot)
        del generation.workers[worker.number]

    def forget(self, generation: Generation) -> None:
        """An empty generation that will not be filled again: its counters stay in the totals."""
        assert not generation.workers
        if generation in self.generations:
            self.generations.remove(generation)
            for field in COUNTERS:
                self.buried[field] += generation.dead[field]

    def totals(self) -> dict[str, int]:
        """Every counter, monotonic across upgrades."""
        return {
            field.name.lower() + "_total": self.buried[field] + sum(g.total(field) for g in self.generations)
            for field in COUNTERS
        }

    def all_gone(self) -> bool:
        return not any(generation.workers for generation in self.generations)

    def close(self) -> None:
        self.scoreboard.close()


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
