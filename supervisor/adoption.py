"""Go on where another supervisor has stopped: what it left becomes a running service again.

It was killed, or it has replaced its own code (`reexec`).  Its workers have gone on serving and saw nothing of
it, because the other ends of their channels lie in the descriptor store.  Everything is found by name, the
order in which a manager passes descriptors means nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from quiesce.shared.errors import ConfigError, ProtocolError
from quiesce.shared.logs import Log
from quiesce.shared.messages import Unlisten
from quiesce.shared.scoreboard import Scoreboard
from quiesce.supervisor import fdnames
from quiesce.supervisor.cold_start import ColdStart
from quiesce.supervisor.config import Loaded, Settings, Unreadable
from quiesce.supervisor.core.releases import Release
from quiesce.supervisor.core.snapshot import Snapshot, SnapshotError, decode, encode
from quiesce.supervisor.crew import Generation, Recipe
from quiesce.supervisor.memory import Memory
from quiesce.supervisor.recipes import recipe
from quiesce.supervisor.rollouts import Plan, RolloutRun
from quiesce.supervisor.service import Service
from quiesce.supervisor.settings_state import missing_env, settings_from_json
from quiesce.supervisor.state_store import StateStore
from quiesce.supervisor.watching import SILENT, Stopping

_CANNOT_START = "can be started at present"
MOST_ATTEMPTS = 5
MOST_IDS = 64  # of releases; the history knows those before
_ANEW = "the workers that run are left to drain, and the service starts anew"


class Inheritance:
    """What lies in the descriptor store: descriptors by name, and the state that tells what they mean.  Owns them.

    ``snapshot`` is None where there is nobody to take over from: a first start.
    """

    def __init__(self, passed: list[tuple[str, int]], *, in_place: bool = False) -> None:
        """Takes over.

        Args:
            passed: Everything that we were given; what is not ours stays in ``sockets``.
            in_place: By ourselves, before we executed other code.
        """
        self.in_place = in_place
        self.sockets: list[tuple[str, int]] = []  # of socket units, for fd://NAME
        self.kept: dict[str, int] = {}
        for name, fd in passed:
            if not fdnames.is_ours(name):
                self.sockets.append((name, fd))
            elif name in self.kept:
                os.close(fd)  # the same descriptor stored twice
            else:
                self.kept[name] = fd
        self.passed = frozenset(self.kept)  # names
        self.void: list[str] = []  # of these, what is of no use: the store must let go of it
        self.problem = ""  # why the state that is there is of no use
        self.memory: StateStore | None = None
        self.snapshot = self._read_state()

    def _read_state(self) -> Snapshot | None:
        fd = self.take(fdnames.STATE)
        if fd is None:
            return None
        self.memory, payload = StateStore.adopt(fd)
        if payload is None:
            if any(fdnames.is_worker(name) for name in self.kept):
                self.problem = f"the state that was left cannot be read; {_ANEW}"
            return None  # else it was killed before it had anything to write down
        try:
            snapshot = decode(payload)
            if snapshot.attempts >= MOST_ATTEMPTS:
                raise SnapshotError(
                    f"{snapshot.attempts} supervisors have failed to go on from the state that was left"
                )
        except SnapshotError as exc:
            self.problem = f"{exc}; {_ANEW}"
            return None
        # Whoever fails over this state shall not do so for ever, with nobody to care for the workers.
        snapshot.attempts += 1
        self.memory.write(encode(snapshot))
        return snapshot

    @property
    def goes_on(self) -> bool:
        """Is there a service that runs?"""
        return self.snapshot is not None and not self.snapshot.stopped

    def take(self, name: str) -> int | None:
        """The descriptor of this name; the caller owns it from now on."""
        return self.kept.pop(name, None)

    def scoreboard(self, log: Log) -> Scoreboard | None:
        """The workers' scoreboard, if it can be used."""
        fd = self.take(fdnames.SCOREBOARD)
        if fd is None or not self.goes_on:
            if fd is not None:
                os.close(fd)
                self.void.append(fdnames.SCOREBOARD)
            return None
        try:
            return Scoreboard.attach(fd)
        except ProtocolError as exc:
            self.void.append(fdnames.SCOREBOARD)
            log.error("the scoreboard that was left cannot be used; counters begin anew", error=str(exc))
            return None

    def rest(self) -> dict[str, int]:
        """What nobody has taken, to be closed and removed from the store; workers behind it see their channel end."""
        rest, self.kept = self.kept, {}
        return rest

    def close(self) -> None:
        for fd in self.rest().values():
            os.close(fd)
        for _, fd in self.sockets:
            os.close(fd)
        self.sockets = []


def settings_in_force(snapshot: Snapshot, fresh: Loaded | Unreadable) -> Loaded:
    """The configuration that a running service goes on with: what was in force, and not what the file says by now.

    Values of ``env`` are in no state: they are read again.  If the file cannot be read any more, the
    service goes on without them until it can.
    """
    env = fresh.settings.service.env if isinstance(fresh, Loaded) else {}
    settings = settings_from_json(snapshot.settings[snapshot.in_force], env)
    if isinstance(fresh, Loaded):
        return replace(fresh, settings=settings, cwd=snapshot.cwd)
    return Loaded(
        settings, {}, snapshot.config_file, fresh.options, fresh.name, fresh.config, cwd=snapshot.cwd
    )


def record(service: Service, memory: Memory, snapshot: Snapshot) -> None:
    """What the service has to say to the next supervisor; :meth:`Adoption.recall` reads it."""
    generations = service.crew.generations

    def place(generation: Generation | None) -> int | None:
        return generations.index(generation) if generation in generations else None

    snapshot.started_at = service.started_at
    snapshot.stopping = service.stopping.value
    snapshot.in_force = memory.index(service.settings)
    snapshot.config_file, snapshot.cwd = service.loaded.file, service.loaded.cwd
    snapshot.wanted, snapshot.held = service.upkeep.wanted, service.upkeep.held
    snapshot.replaced = sorted(service.upkeep.replaced)
    snapshot.notices = service.notices
    snapshot.generations = [each.record(memory.index(each.recipe.settings)) for each in generations]
    snapshot.serving = place(service.serving)
    for run in service.runs:
        new = place(run.new)
        if new is not None:
            snapshot.runs.append(run.record(new, place(run.old), memory.index(run.loaded.settings)))
    snapshot.candidates = [release.to_json() for release in service.candidates]
    snapshot.buried = {field.name: count for field, count in service.crew.buried.items()}
    snapshot.next_numbers = service.crew.next_number
    snapshot.ids = service.ids[-MOST_IDS:]
    snapshot.last_cut = service.last_cut
    snapshot.listeners, snapshot.leaving = service.listeners.to_state(), service.leaving


class Adoption:
    """Fills a new service from a snapshot."""

    def __init__(self, service: Service, snapshot: Snapshot, kept: dict[str, int]) -> None:
        """``kept``: descriptors by name; what belongs to a worker that is known is taken out."""
        self._service = service
        self._snapshot = snapshot
        self._kept = kept
        env = service.settings.service.env
        self._settings = [settings_from_json(item, env) for item in snapshot.settings]
        self._settings[snapshot.in_force] = service.settings
        self._lacks_env = bool(missing_env(snapshot.settings[snapshot.in_force], env))
        service.crew.remake = self._remake
        if missing := missing_env(snapshot.settings[snapshot.in_force], env):
            service.notice(
                f"no worker {_CANNOT_START}: the configuration cannot be read, and with it "
                f"{', '.join(missing)} of service.env; mend it, and see `quiesce check`"
            )

    def recall(self, start: ColdStart) -> None:
        """Put everything in its place; nobody is talked to yet.

        Args:
            start: Waits for one that is not decided.
        """
        service, snapshot = self._service, self._snapshot
        service.started_at = snapshot.started_at
        service.ids = [*service.ids, *snapshot.ids]
        service.notices = [*snapshot.notices, *service.notices]
        service.last_cut = snapshot.last_cut
        service.candidates = [Release.from_json(item) for item in snapshot.candidates]
        service.upkeep.wanted, service.upkeep.held = snapshot.wanted, snapshot.held
        service.upkeep.replaced.update(snapshot.replaced)
        generations = [
            service.crew.recall(each, self._recipe(each.settings, each.release), self._kept)
            for each in snapshot.generations
        ]
        service.crew.recall_counters(snapshot.buried, snapshot.next_numbers)
        if snapshot.serving is not None:
            service.serving = generations[snapshot.serving]
        for each in snapshot.runs:
            plan = Plan(
                each.command, each.wanted, each.bake_s, each.max_error_rate, each.gate, each.by_manager
            )
            old = generations[each.old] if each.old is not None else None
            watch = start.watch() if each.command == "start" and not each.reported else SILENT
            run = RolloutRun(
                service.crew,
                service,
                plan,
                replace(service.loaded, settings=self._settings[each.settings]),
                watch,
                generations[each.new],
                old,
                each.uid,
            )
            run.recall(each)
            service.runs.append(run)

    def _recipe(self, settings: int, release: Mapping[str, str]) -> Recipe:
        chosen, made_for = self._settings[settings], Release.from_json(release)
        if self._lacks_env:  # said already
            return recipe(_plain(chosen), made_for)._replace(
                broken="the configuration cannot be read", settings=chosen
            )
        try:
            return recipe(chosen, made_for)
        except ConfigError as exc:
            # The workers that run are not touched by that; new ones cannot be made as they were.
            why = f"no worker of {made_for.id} {_CANNOT_START}: {exc}"
            self._service.notice(why)
            return recipe(_plain(chosen), made_for)._replace(broken=why, settings=chosen)

    def _remake(self, generation: Generation) -> Recipe:
        """A recipe that was broken, with what can be read now.

        Raises:
            ConfigError: It still cannot.
        """
        settings = generation.recipe.settings
        if self._lacks_env:
            env = self._service.loaded.reload().settings.service.env
            settings = _replaced(settings, env=env)
        made = recipe(settings, generation.release)
        self._service.notices = [text for text in self._service.notices if _CANNOT_START not in text]
        return made

    def take_over(self) -> None:
        """Talk to the workers, and do again what was being done."""
        service = self._service
        service.crew.take_over()
        for worker in service.crew:
            worker.use_log_again(service.log_fd)
            if self._snapshot.leaving:
                worker.tell(Unlisten(self._snapshot.leaving))
        for run in list(service.runs):
            if run.begun or not run.deciding:
                run.take_over()
            else:
                service.admission.begin(run)
        service.upkeep.take_over()
        stopping = Stopping(self._snapshot.stopping)
        if stopping is not Stopping.NO:
            service.stop(now=stopping is Stopping.FAST)


def _plain(settings: Settings) -> Settings:
    """Without what is looked up outside the configuration."""
    return _replaced(settings, user="", group="", control_group="", env_files=())


def _replaced(settings: Settings, **service: object) -> Settings:
    """The same with other keys of [service]."""
    changed = msgspec.structs.replace(settings.service, **service)
    return msgspec.structs.replace(settings, service=changed)
