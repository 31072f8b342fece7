"""What this supervisor keeps for the next one: its state, put together from all who have a part in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import quiesce
from quiesce.shared.errors import QuiesceError
from quiesce.shared.logs import Log
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core.snapshot import Snapshot, encode
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.settings_state import settings_to_json
from quiesce.supervisor.state_store import StateStore

Part = Callable[[Snapshot], None]


class Saving(NamedTuple):
    """What others need of it: write the state down before an order goes out, or at the end of the turn."""

    now: Callable[[], None] = lambda: None
    soon: Callable[[], None] = lambda: None


class Memory:
    """Writes the state down whenever somebody is about to act on a change of it.  Owns ``store``."""

    def __init__(self, store: StateStore, loop: Loop, log: Log, name: str) -> None:
        self.store = store
        self._loop = loop
        self._log = log
        self._name = name
        self._parts: list[Part] = []
        self._open = False
        self._due = False  # at the end of the turn
        self.attempts = 0  # of supervisors that began to go on from the state, until one has
        self.replacing = ""  # our version, while we execute another one in our place
        self._saving: list[Settings] = []
        # Of those in the last state, by id(): they do not change.
        self._as_json: dict[int, tuple[Settings, dict[str, Any]]] = {}

    def add(self, part: Part) -> None:
        """This fills in its part of each state."""
        self._parts.append(part)

    def open(self) -> None:
        """Everything is in its place, from now on it is written down.  (Half a state would be worse than the last.)"""
        self._open = True
        self.save()

    def save_soon(self) -> None:
        """The same at the end of this turn: for what is no order, and would be found out again."""
        if self._open and not self._due:
            self._due = True
            self._loop.call_soon(self._save_due)

    def _save_due(self) -> None:
        if self._due:
            self.save()

    def save(self) -> None:
        """Write down how things are; before the action that makes them so."""
        self._due = False
        if not self._open:
            return
        self._saving = []
        snapshot = Snapshot(self._name, version=quiesce.__version__)
        snapshot.reexec_from, snapshot.attempts = self.replacing, self.attempts
        for part in self._parts:
            part(snapshot)
        snapshot.settings = self._settings()
        try:
            self.store.write(encode(snapshot))
        except (QuiesceError, OSError) as exc:
            self._log.error("cannot write the state down", error=str(exc))

    def index(self, settings: Settings) -> int:
        """Where these settings stand in the state that is being written."""
        for number, known in enumerate(self._saving):
            if known is settings:
                return number
        self._saving.append(settings)
        return len(self._saving) - 1

    def _settings(self) -> list[dict[str, Any]]:
        """As JSON.  Those of the state before need not be converted again."""
        known = self._as_json
        self._as_json = {
            id(each): known.get(id(each)) or (each, settings_to_json(each)) for each in self._saving
        }
        return [data for _, data in self._as_json.values()]

    def close(self) -> None:
        self._open = False
        self.store.close()
