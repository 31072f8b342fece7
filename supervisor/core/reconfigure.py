"""What a changed configuration means for an instance that runs.  Pure.

Settings come in as objects with sections and leaves (``config.Settings``), listeners as whatever
has the fields of a ``[[listen]]``: this module must not depend on those who read files.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from quiesce.shared.addresses import FD, parse_address
from quiesce.supervisor.config_keys import KEYS, SECTIONS, Change, Key

S = TypeVar("S", bound=msgspec.Struct)


class Verdict(NamedTuple):
    """Which keys differ, by when their new value comes into force.  In the order of the table."""

    live: tuple[str, ...] = ()
    rollout: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return any(self)


_SENTENCES = {
    Change.LIVE: "live now: {}",
    Change.ROLLOUT: "takes effect with the next `quiesce upgrade`: {}",
    Change.RESTART: "needs a restart (`quiesce stop`, then start it again): {}",
}


def compare(old: object, new: object) -> Verdict:
    """What differs between two settings; listeners are for :func:`plan_listeners`."""
    differ: dict[Change, list[str]] = {change: [] for change in Change}
    for key in KEYS:
        if _value(old, key) != _value(new, key):
            differ[key.change].append(key.name)
    return Verdict(*(tuple(differ[change]) for change in (Change.LIVE, Change.ROLLOUT, Change.RESTART)))


def sentences(verdict: Verdict) -> list[str]:
    """The same for people, one sentence for each class that has a key."""
    classes = zip((Change.LIVE, Change.ROLLOUT, Change.RESTART), verdict, strict=True)
    return [_SENTENCES[change].format(", ".join(keys)) for change, keys in classes if keys]


def merge(in_force: S, new: S) -> S:
    """What is in force after `reconfigure`: LIVE keys and listeners of ``new``, the rest as it was.

    A worker that upkeep spawns, and a rollback, go on with what ``in_force`` says of ROLLOUT keys; the
    next `upgrade` reads everything again.
    """
    taken: dict[str, dict[str, object]] = {}
    for key in KEYS:
        if key.change is Change.LIVE:
            taken.setdefault(key.section, {})[key.leaf] = _value(new, key)
    sections: dict[str, Any] = {
        name: getattr(new, name)
        if name == "listen"
        else msgspec.structs.replace(getattr(in_force, name), **taken.get(name, {}))
        for name in SECTIONS
    }
    return msgspec.structs.replace(in_force, **sections)


def _value(settings: object, key: Key) -> object:
    value: object = getattr(getattr(settings, key.section), key.leaf)
    return value


# Listeners


class Wanted(Protocol):
    """A ``[[listen]]`` (``config.Listen``)."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def backlog(self) -> int: ...


L = TypeVar("L", bound=Wanted)


class Move(NamedTuple, Generic[L]):
    """The same sockets, described anew: another name, backlog, mode, owner or group."""

    old: L
    new: L


class ListenChange(NamedTuple, Generic[L]):
    """What must happen to the listeners, in terms of ``[[listen]]`` tables; an fd:// one may be several sockets."""

    add: tuple[L, ...] = ()
    remove: tuple[L, ...] = ()
    move: tuple[Move[L], ...] = ()
    keep: tuple[L, ...] = ()
    refuse: tuple[str, ...] = ()  # sentences; with any of these nothing may be changed

    @property
    def changed(self) -> bool:
        return bool(self.add or self.remove or self.move)


def plan_listeners(have: Sequence[L], wanted: Sequence[L], passed: Collection[str] = ()) -> ListenChange[L]:
    """How to come from ``have`` to ``wanted``.

    A listener is its address: a socket whose name alone changes is kept, for its queue holds clients.
    A name whose address changes is a removal and an addition.

    Args:
        have: What is open, as it was configured; what could not be opened must not be among them.
        passed: Names of the sockets that the service manager passed to this process.
    """
    pairs = _pair(have, wanted)
    add, move, keep, refuse = [], [], [], []
    for item in wanted:
        old = pairs.get(item.name)
        if old is None:
            address = parse_address(item.address)
            if address.kind == FD and address.name not in passed:
                refuse.append(
                    f"{item.address}: the service manager passes sockets at a start only; restart the service "
                    "to take a new one"
                )
            add.append(item)
        elif old == item:
            keep.append(item)
        else:
            move.append(Move(old, item))
    stays = {old.name for old in pairs.values()}
    remove = tuple(old for old in have if old.name not in stays)
    return ListenChange(tuple(add), remove, tuple(move), tuple(keep), tuple(refuse))


def _pair(have: Sequence[L], wanted: Sequence[L]) -> Mapping[str, L]:
    """By name of the wanted one: the open one with its address.  Same name first: two may want port 0."""
    free = {item.name: item for item in have}
    found: dict[str, L] = {}
    for item in wanted:
        if item.name in free and free[item.name].address == item.address:
            found[item.name] = free.pop(item.name)
    for item in wanted:
        if item.name not in found:
            same = next((old for old in free.values() if old.address == item.address), None)
            if same is not None:
                found[item.name] = free.pop(same.name)
    return found


def listener_sentences(change: ListenChange[Any]) -> list[str]:
    """What changes of the listeners, for people."""
    said = [f"listens on {_list(change.add)}"] if change.add else []
    if change.remove:
        said.append(f"no longer listens on {_list(change.remove)}")
    for item in change.remove:
        address = parse_address(item.address)
        if address.kind == FD:
            said.append(
                f"{item.address} stays the service manager's: clients wait in its queue until the socket unit is "
                "stopped or the service takes it again"
            )
    for old, new in change.move:
        what = [
            f for f in ("name", "backlog", "mode", "owner", "group") if getattr(old, f) != getattr(new, f)
        ]
        said.append(f"{new.address} has another {' and '.join(what)}")
    return said


def _list(items: Iterable[Wanted]) -> str:
    return ", ".join(item.address for item in items)


# Both, as the answer to `reconfigure`


def document(verdict: Verdict, change: ListenChange[Any], problems: Sequence[str] = ()) -> dict[str, Any]:
    """The result's data: what changed and when it comes into force (``render.reconfigured`` shows it)."""
    return {
        **{name: list(keys) for name, keys in verdict._asdict().items()},
        "listeners": {
            "added": [item.address for item in change.add],
            "removed": [item.address for item in change.remove],
            "changed": [move.new.address for move in change.move],
        },
        "problems": list(problems),
    }


def in_words(verdict: Verdict, change: ListenChange[Any], problems: Sequence[str] = ()) -> str:
    """The result's text, in one line."""
    said = [*listener_sentences(change), *sentences(verdict), *problems]
    return "; ".join(said) if said else "nothing has changed"
