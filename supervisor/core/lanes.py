"""Who hands its connections over to whom.  Pure.

A lane belongs to a generation: its workers read it.  One that stops accepting is told, with the order, into whose
lane what it has shall go; nobody's, where nobody would read it.
"""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple


class Why(Enum):
    """Why a worker stops accepting, or begins again."""

    HUSHED = "hushed"  # a new release accepts beside it
    OUTDATED = "outdated"  # ... and is the one that serves
    RESUMED = "resumed"  # it accepts again
    DISCARDED = "discarded"  # of a new release that is not wanted after all
    SURPLUS = "surplus"  # scaled down, replaced, recycled: others of its release serve on
    SET_ASIDE = "set aside"  # `quiesce WORKER`
    HELD = "held"  # `quiesce all`, `quiesce RELEASE`
    STOPPED = "stopped"


class Whose(Enum):
    """Whose lane it is told to use."""

    NOBODYS = "nobody's"
    OWN = "its own"
    OTHERS = "the other generation's"


#: By why, and whether another worker of its own generation accepts.
TARGETS: Mapping[Why, Mapping[bool, Whose]] = {
    Why.HUSHED: {True: Whose.OTHERS, False: Whose.OTHERS},
    Why.OUTDATED: {True: Whose.OTHERS, False: Whose.OTHERS},
    Why.RESUMED: {True: Whose.NOBODYS, False: Whose.NOBODYS},
    Why.DISCARDED: {True: Whose.OTHERS, False: Whose.OTHERS},
    # There is always one that stays; what it does not read now, it will.
    Why.SURPLUS: {True: Whose.OWN, False: Whose.OWN},
    Why.SET_ASIDE: {True: Whose.OWN, False: Whose.NOBODYS},
    # It is to be undone by one word, and there is no other release that could have them.
    Why.HELD: {True: Whose.NOBODYS, False: Whose.NOBODYS},
    # A lane would only carry them from one that leaves to another.
    Why.STOPPED: {True: Whose.NOBODYS, False: Whose.NOBODYS},
}


def target(why: Why, *, others_accept: bool) -> Whose:
    """Whose lane a worker gets with its order."""
    return TARGETS[why][others_accept]


class Terms(NamedTuple):
    """What a writer must know of a lane."""

    version: int  # of the records that it is to write
    readers: int  # so that none gets more than its share


def terms(versions: Collection[int]) -> Terms | None:
    """What to tell a writer, from the newest record that each reader reads; None: the lane must not be named.

    A reader that knows no lane (0) would leave the lane unread as soon as it is the only one left.
    """
    if not versions or min(versions) < 1:
        return None
    return Terms(min(versions), len(versions))
