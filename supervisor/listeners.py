"""The supervisor's listening sockets, by name.

The supervisor holds each of them for as long as it lives, so the kernel's queue outlives every
worker.  Nobody ever shuts one down, and nobody makes one blocking: both live on the
description that all holders share.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from quiesce.shared.addresses import FD, Address, parse_address
from quiesce.shared.errors import ConfigError, ListenError
from quiesce.supervisor import fdnames
from quiesce.supervisor.binding import (
    TWICE,
    Inherited,
    Listener,
    bind,
    change_in_place,
    file_owner,
    listening,
    open_all,
    renamed,
    retire,
    seal,
    spare_for,
    take,
)
from quiesce.supervisor.config import Listen
from quiesce.supervisor.core.reconfigure import ListenChange, plan_listeners

__all__ = ["Adopted", "Committed", "Inherited", "Listener", "Listeners", "Prepared", "retire"]


class Adopted(NamedTuple):
    """What became of the listeners of a supervisor that is gone."""

    taken: frozenset[str]  # names of the store whose descriptors are ours now; the rest is the caller's
    anew: tuple[Listener, ...]  # bound again, so no worker has them and the store does not either
    problems: tuple[str, ...]  # a sentence for each that is lost or had to be bound again


class Prepared(NamedTuple):
    """A change that is ready, of which nobody knows yet.  :meth:`Listeners.commit` or `.abandon` ends it."""

    change: ListenChange[Listen]
    added: tuple[Listener, ...]


class Committed(NamedTuple):
    """A change that has happened; what the caller owes to workers and store, in this order."""

    unlisten: tuple[str, ...]  # names that every worker must let go first
    listen: tuple[Listener, ...]  # for every worker, under these names
    added: tuple[Listener, ...]  # new ones: into the store those that are not `inherited`
    removed: tuple[Listener, ...]  # for `retire()` when no worker has them any more; out of the store before
    problems: tuple[str, ...]  # what could not be changed of a socket that stays


class Listeners:
    """All listeners of an instance."""

    def __init__(self) -> None:
        self._all: dict[str, Listener] = {}

    def open(
        self, wanted: Sequence[Listen], inherited: Inherited, stored: Mapping[str, int] | None = None
    ) -> frozenset[str]:
        """Bind or take every listener; all or none.

        Args:
            wanted: ``[[listen]]`` of the configuration.
            inherited: Names and descriptors, from systemd.  ``fd://NAME`` takes all of that name (the
                sockets of one unit share it); the caller keeps its descriptors.
            stored: The descriptor store of a supervisor whose state cannot be read.  A socket in it that has a
                wanted address is taken: its queue holds clients, and copies of it in workers that still
                leave would be in the way of a new one.

        Returns:
            The names in ``stored`` whose descriptors are ours now.

        Raises:
            ListenError, ConfigError: One cannot be had; those opened before it are closed again, and
                ``stored`` is the caller's as before.
        """
        spare = {item.name: found for item in wanted if (found := spare_for(item, stored or {})) is not None}
        try:
            opened = open_all([item for item in wanted if item.name not in spare], inherited, ())
        except BaseException:
            for _, listener in spare.values():
                listener.sock.detach()
            raise
        listeners = [*(listener for _, listener in spare.values()), *opened]
        order = [item.name for item in wanted]
        listeners.sort(key=lambda listener: order.index(listener.wanted.name))
        self._all = {listener.name: listener for listener in listeners}
        return frozenset(name for name, _ in spare.values())

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all.values())

    def names(self) -> list[str]:
        return list(self._all)

    def fds(self) -> list[int]:
        """In the order of :meth:`names`; they stay ours."""
        return [listener.sock.fileno() for listener in self._all.values()]

    def urls(self) -> list[str]:
        return [listener.address.url() for listener in self._all.values()]

    def wanted(self) -> list[Listen]:
        """The ``[[listen]]`` tables that are in force: those of which a socket is open."""
        return list({item.wanted.name: item.wanted for item in self._all.values()}.values())

    def close(self) -> None:
        """Close them and remove the files of those unix sockets that are still the ones we made."""
        for listener in self._all.values():
            retire(listener)
        self._all.clear()

    def forget(self) -> None:
        """Close our copies only: the sockets live on, with a successor (`reexec`, a cold start that failed)."""
        for listener in self._all.values():
            listener.sock.close()
        self._all.clear()

    # -- a successor ------------------------------------------------------------------------

    def to_state(self) -> list[dict[str, Any]]:
        """For :meth:`adopt`, as JSON."""
        return [
            {
                "name": item.name,
                "address": item.address.text,
                "key": item.key,
                "inode": item.inode,
                "listen": msgspec.to_builtins(item.wanted),
            }
            for item in self._all.values()
        ]

    def adopt(
        self, state: Sequence[Mapping[str, Any]], descriptors: Mapping[str, int], inherited: Inherited
    ) -> Adopted:
        """Take over what another supervisor has opened.

        Args:
            state: Its :meth:`to_state`.
            descriptors: The descriptor store, by name; those in ``Adopted.taken`` are ours afterwards.
            inherited: What the service manager passes as sockets; the caller keeps its descriptors.

        Nothing is raised: the other listeners serve on.  A state that means nothing is a problem as well.
        """
        taken: set[str] = set()
        anew: list[Listener] = []
        problems: list[str] = []
        used: set[int] = set()
        for record in state:
            try:
                old = _read_record(record)
            except (KeyError, TypeError, ValueError, ConfigError) as exc:
                problems.append(f"a listener in the state of the last supervisor cannot be read: {exc!r}")
                continue
            try:
                listener = _adopt_stored(old, descriptors, taken) or _adopt_passed(old, inherited, used)
                if listener is None:
                    listener = _open_again(old, inherited, used)
                    anew.append(listener)
                    problems.append(f"{old.address} was not kept and is opened again; its queue is lost")
            except (ListenError, ConfigError) as exc:
                problems.append(f"the listener {old.name!r} is lost: {exc}")
                continue
            self._all[listener.name] = listener
        return Adopted(frozenset(taken), tuple(anew), tuple(problems))

    # -- a change while we live ---------------------------------------------------------------

    def plan_change(self, wanted: Sequence[Listen], inherited: Inherited) -> ListenChange[Listen]:
        """What it takes to listen as ``wanted``; touches nothing."""
        return plan_listeners(self.wanted(), wanted, {name for name, _ in inherited})

    def prepare(self, change: ListenChange[Listen], inherited: Inherited) -> Prepared:
        """Bind what is new, all or none; what is open stays as it is.

        Raises:
            ConfigError: Refused by the plan, an address that cannot be had, an unknown user or group; nothing
                has changed.
        """
        if change.refuse:
            raise ConfigError("; ".join(change.refuse))
        for move in change.move:
            file_owner(move.new)
        leaving = [item for item in self if item.wanted in change.remove]
        try:
            added = open_all(change.add, inherited, leaving)
        except ListenError as exc:
            raise ConfigError(f"{exc}; nothing was changed") from exc
        twice = self._twice(change, added)
        if twice is not None:
            for item in added:
                retire(item)
            raise ConfigError(TWICE.format(twice))
        return Prepared(change, tuple(added))

    def _twice(self, change: ListenChange[Listen], added: Sequence[Listener]) -> str | None:
        """A name that two would have: of a unit's several sockets, the second one's is made up."""
        moves = {move.old.name: move.new for move in change.move}
        gone = {item.name for item in change.remove}
        names = [item.name for item in added]
        for item in self:
            if item.wanted.name not in gone:
                new = moves.get(item.wanted.name)
                names.append(item.name if new is None else renamed(item, new))
        return next((name for name in names if names.count(name) > 1), None)

    def abandon(self, prepared: Prepared) -> None:
        """Undo :meth:`prepare`."""
        for item in prepared.added:
            retire(item)

    def commit(self, prepared: Prepared) -> Committed:
        """Put a prepared change in force.

        The removed ones are the caller's, for :func:`retire`.  They get no new clients from now on, and workers
        must accept those in their queues before they let them go.
        """
        change = prepared.change
        moves = {move.old.name: move.new for move in change.move}
        gone = {item.name for item in change.remove}
        stay: list[Listener] = []
        removed: list[Listener] = []
        unlisten: list[str] = []
        listen = list(prepared.added)
        problems: list[str] = []
        for item in self._all.values():
            if item.wanted.name in gone:
                seal(item)
                removed.append(item)
                unlisten.append(item.name)
            elif (new := moves.get(item.wanted.name)) is not None:
                moved = item._replace(name=renamed(item, new), wanted=new)
                problems += change_in_place(item, new)
                stay.append(moved)
                if moved.name != item.name:
                    unlisten.append(item.name)
                    listen.append(moved)
            else:
                stay.append(item)
        self._all = {item.name: item for item in [*stay, *prepared.added]}
        return Committed(tuple(unlisten), tuple(listen), prepared.added, tuple(removed), tuple(problems))


# -- taking over ------------------------------------------------------------------------------


class _Record(NamedTuple):
    """A listener as the last supervisor described it."""

    name: str
    address: Address
    wanted: Listen
    key: str
    inode: tuple[int, int] | None


def _read_record(record: Mapping[str, Any]) -> _Record:
    known = {name: record["listen"][name] for name in Listen.__struct_fields__ if name in record["listen"]}
    wanted = msgspec.convert(known, Listen)
    inode = record.get("inode")
    device, number = inode or (0, 0)
    key = record["key"]
    if not isinstance(record["name"], str) or not isinstance(key, str):
        raise TypeError("name and key want to be texts")
    address = parse_address(record["address"])
    return _Record(record["name"], address, wanted, key, (int(device), int(number)) if inode else None)


def _adopt_stored(old: _Record, descriptors: Mapping[str, int], taken: set[str]) -> Listener | None:
    name = fdnames.listener(old.key)
    if name not in descriptors or name in taken:
        return None
    taken.add(name)  # closed or ours, whatever comes
    sock = listening(descriptors[name], old.address)
    os.set_blocking(sock.fileno(), False)
    return Listener(old.name, old.address, sock, old.wanted, old.key, old.inode)


def _adopt_passed(old: _Record, inherited: Inherited, used: set[int]) -> Listener | None:
    """The one of a unit's sockets that has the address that we know; their order means nothing."""
    for fd in _passed(old, inherited, used):
        listener = take(old.wanted, old.name, old.wanted.parsed(), os.dup(fd))
        if listener.address == old.address:
            used.add(fd)
            return listener._replace(key=old.key)
        listener.sock.close()
    return None


def _open_again(old: _Record, inherited: Inherited, used: set[int]) -> Listener:
    """Another socket in its place: the next of the unit's, whose address has changed, or one that we bind."""
    if old.wanted.parsed().kind != FD:
        return bind(old.wanted, old.address, ())
    for fd in _passed(old, inherited, used):
        used.add(fd)
        return take(old.wanted, old.name, old.wanted.parsed(), os.dup(fd))
    raise ListenError(
        f"{old.wanted.address} is not passed any more; start its socket unit before the service"
    )


def _passed(old: _Record, inherited: Inherited, used: set[int]) -> list[int]:
    address = old.wanted.parsed()
    return [fd for name, fd in inherited if address.kind == FD and name == address.name and fd not in used]
