"""Carries out who hands over to whom: which lane an order names, and what happens to what nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quiesce.shared.scoreboard import Field
from quiesce.supervisor.core import balance, lanes
from quiesce.supervisor.core.lanes import Whose, Why
from quiesce.supervisor.core.lifecycle import GOING, State
from quiesce.supervisor.lanes import Lane, Named
from quiesce.supervisor.worker_link import Worker

if TYPE_CHECKING:
    from quiesce.supervisor.crew import Crew, Generation


STILL_S = 1.0  # a worker's loop turns five times a second, unless a request runs in it, or it is stopped


class HandOver:
    """Between the workers of all generations."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.heir: Callable[[], Generation | None] = lambda: None  # who serves

    # -- who to whom ------------------------------------------------------------------------

    def named(self, key: str, writer: str) -> Named | None:
        """The lane of this key, if ``writer`` may send into it: it is open, and somebody else reads it."""
        lane = self._crew.lanes.get(key)
        if lane is None or lane.ended:
            return None
        terms = lanes.terms([worker.lanes.version for worker in self._readers(lane) if worker.id != writer])
        return Named(lane, terms) if terms is not None else None

    def _readers(self, lane: Lane) -> list[Worker]:
        """Those who are there to stay; one that hands over to this very lane does not read it."""
        return [
            worker
            for worker in self._crew
            if worker.lanes.own == lane.key
            and worker.state not in GOING
            and worker.lanes.reading
            and worker.lanes.target != lane.key
        ]

    def aim(self, worker: Worker, why: Why, other: Generation | None = None) -> None:
        """Choose the lane that the order which follows shall name."""
        worker.lanes.target = self._target(worker, why, other)

    def redirect(self, worker: Worker, why: Why, other: Generation | None = None) -> None:
        """Choose another one for a worker that has its order already, and tell it."""
        worker.redirect(self._target(worker, why, other))

    def redirect_writers(self, old: Generation, why: Why, new: Generation | None) -> None:
        """Whoever hands over to ``old`` shall hand over to ``new`` from now on."""
        for worker in self._crew:
            if old.lane is not None and worker.lanes.target == old.lane.key:
                self.redirect(worker, why, new)

    def _target(self, worker: Worker, why: Why, other: Generation | None) -> str:
        own = worker.lanes.own
        siblings = any(
            each.lanes.own == own and each.state is State.ACCEPTING
            for each in self._crew
            if each is not worker
        )
        whose = lanes.target(why, others_accept=siblings)
        if whose is Whose.OWN:
            return own
        return (
            other.lane.key if whose is Whose.OTHERS and other is not None and other.lane is not None else ""
        )

    # -- its end ----------------------------------------------------------------------------

    def end(self, generation: Generation | None) -> None:
        """Nobody is to send into its lane any more; what lies in it is read, and then its readers see the end."""
        if generation is not None and generation.lane is not None:
            generation.lane.end()

    def end_all(self) -> None:
        """The instance stops."""
        for generation in self._crew.generations:
            self.end(generation)

    def rescue(self, generation: Generation) -> None:
        """If nobody is left to read what lies in its lane: the release that serves shall."""
        lane, heir = generation.lane, self.heir()
        if lane is None or heir is None or heir is generation or self._is_read(lane) or not lane.depth():
            return
        for worker in heir:
            if worker.state not in GOING:
                worker.lanes.give(lane.key)

    def is_wanted(self, generation: Generation) -> bool:
        """Do connections lie in its lane that somebody will read, now or when workers of the heir are there again?"""
        heir = self.heir()
        return generation.lane is not None and heir not in (None, generation) and generation.lane.depth() > 0

    def _is_read(self, lane: Lane) -> bool:
        return any(worker.lanes.reads(lane.key) for worker in self._crew if worker.state is not State.REAPED)

    def forget(self, generation: Generation) -> None:
        """Its workers are gone, and there will be no others; nor does anybody want what lies in its lane."""
        if generation.lane is not None:
            self._say_lost(generation.lane)
            self._crew.lanes.drop(generation.lane)

    def let_go(self) -> None:
        """The instance has stopped: what still lies in a lane is closed with it, and nobody looks at it."""
        for lane in self._crew.lanes:
            self._say_lost(lane)
            self._crew.lanes.drop(lane)

    def _say_lost(self, lane: Lane) -> None:
        if not self._is_read(lane) and (count := lane.depth()):
            self._crew.log.warning(
                "connections lost: nobody was left to take them out of the lane", lane=lane.name, count=count
            )

    # -- balance ----------------------------------------------------------------------------

    def balance(self, generation: Generation) -> None:
        """Have those who hold more than their share give some of it away."""
        if generation.lane is None or generation.lane.depth():
            return  # what is on its way is in nobody's count
        now = self._crew.loop.now()
        # Who stands still takes nothing out of the lane: what is shed for it would come back, every second.
        accepting = [w for w in generation if w.state is State.ACCEPTING and not w.stands_still(now, STILL_S)]
        loads = [
            balance.Load(worker.number, worker.counter(Field.CONN_OPEN), worker.counter(Field.CONN_IDLE))
            for worker in accepting
        ]
        for number, count in balance.sheds(loads).items():
            generation.workers[number].lanes.shed(count)
