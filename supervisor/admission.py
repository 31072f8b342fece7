"""May a change begin, and when: one at a time, with room for what it brings, and not too many generations at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.lifecycle import Event as WorkerEvent
from quiesce.supervisor.core.rollout import phase
from quiesce.supervisor.crew import KEPT_PER_GENERATION, KEPT_PER_WORKER, Generation
from quiesce.supervisor.keeper import RESERVED
from quiesce.supervisor.render import plural
from quiesce.supervisor.rollouts import RolloutRun
from quiesce.supervisor.watching import Busy, Stopping

if TYPE_CHECKING:
    from quiesce.supervisor.service import Service


class Admission:
    """Of one instance."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def refuse_if_busy(self) -> None:
        """Raise Busy while a change is being decided, or at the end."""
        service = self._service
        if service.stopping is not Stopping.NO:
            raise Busy("this instance is stopping")
        run = service.run
        if run is not None:
            ways = "`quiesce promote` or `quiesce abort`" if run.is_baking else "`quiesce abort`"
            raise Busy(
                f"{run.plan.command} to {run.release.id} is under way ({phase(run.state)}); wait for it, "
                f"or end it with {ways}"
            )

    def refuse_without_room(self, more: int, *, lanes: int = 0) -> None:
        """Refuse what the descriptor store could not keep: those workers would not survive us.

        Raises:
            ConfigError: With the number that is needed.
        """
        store = self._service.store
        room, wanted = store.room, more * KEPT_PER_WORKER + lanes * KEPT_PER_GENERATION
        if room is not None and room < wanted:
            need, what = store.used + wanted, "FileDescriptorStoreMax= of the unit"
            if self._service.keeper() is not None:
                need, what = need + RESERVED, "the limit of open files (`ulimit -n`)"
            raise ConfigError(
                f"{plural(more, 'more worker')} would need {wanted} places in the descriptor store, and {room} are "
                f"free: they could not survive the supervisor. Raise {what} to {need} or more, "
                "or let fewer generations run at once"
            )

    def begin(self, run: RolloutRun) -> None:
        """Begin when `max_generations` allows it: nobody's request is cut to make room.

        The wait is bounded, because each generation has its own drain deadline; `--force` ends
        the oldest ones at once instead.
        """
        service = self._service
        if not run.plan.gate:
            for generation in self._in_the_way(run):
                service.log.warning(
                    "too many generations: its connections are ended", release=generation.release.id
                )
                for worker in generation:
                    worker.ask(WorkerEvent.LEAVE_ASKED)
        elif blocking := self._in_the_way(run):
            names = " and ".join(generation.release.id for generation in blocking)
            count = plural(sum(generation.open_connections() for generation in blocking), "connection")
            limit = service.settings.rollout.max_generations
            service.rollout_progress(
                run, f"{run.release.id}: waiting for {names} to drain ({count}): max_generations is {limit}"
            )
            service.when(lambda: not run.deciding or not self._in_the_way(run), lambda: self._begin_now(run))
            return
        self._begin_now(run)

    def _begin_now(self, run: RolloutRun) -> None:
        if run.deciding and self._service.stopping is Stopping.NO:
            run.begin()

    def _in_the_way(self, run: RolloutRun) -> list[Generation]:
        """The oldest draining generations beyond what `max_generations` allows beside the new one."""
        service = self._service
        limit = service.settings.rollout.max_generations
        others = (service.serving, run.new)
        draining = [each for each in service.crew.generations if each.workers and each not in others]
        # The serving and the coming one count as well, and two there must always be.
        return draining[: max(0, len(draining) + 2 - max(2, limit))] if limit else []
