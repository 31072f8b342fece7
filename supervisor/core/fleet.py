"""Wanted against present workers: who is to be spawned, who is to go.  Pure; it never performs.

Only of the release that serves; the new set of a rollout and draining generations are
none of the fleet's business.
"""

from collections.abc import Sequence
from typing import NamedTuple

from quiesce.supervisor.core.lifecycle import COMING, GOING, State


class Member(NamedTuple):
    """A worker of the serving release."""

    number: int  # the N of r42/N: the higher, the younger
    state: State


class Plan(NamedTuple):
    spawn: int = 0  # how many, now
    retire: tuple[int, ...] = ()  # their numbers, to be drained
    wake_at: float | None = None  # plan again then: a back-off holds us


def plan(wanted: int, members: Sequence[Member], now: float, not_before: float) -> Plan:
    """Return what must happen so that ``wanted`` workers serve.

    ``not_before`` is the back-off's time.  Those that never accepted go first; then those
    that somebody has set aside, or nobody might be left who accepts; then the youngest: the old ones have the
    warm caches.
    """
    staying = [member for member in members if member.state not in GOING]
    missing = wanted - len(staying)
    if missing > 0:
        return Plan(spawn=missing) if now >= not_before else Plan(wake_at=not_before)
    order = sorted(staying, key=_goes_before, reverse=True)
    return Plan(retire=tuple(member.number for member in order[:-missing])) if missing else Plan()


def _goes_before(member: Member) -> tuple[bool, bool, int]:
    return member.state in COMING, member.state is State.QUIESCED, member.number
