"""Which worker gives connections away so that each has its share.  Pure.

Who has much more than the mean sheds half of what is above it, into the lane that its siblings read.  Half, because
nobody chooses who takes them and the numbers are a moment old: what is left is looked at again a second later.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST = 32  # connections of one worker in one second
LEAST_EXCESS = 4  # connections; nobody gains by moving fewer
LEAST_SHARE = 0.1  # ... and of the mean


class Load(NamedTuple):
    """A worker that accepts."""

    number: int
    open: int
    idle: int  # the only ones that can move at once


def sheds(loads: Sequence[Load]) -> Mapping[int, int]:
    """How many connections each of them is to give away now, by number; who gives none is left out."""
    if len(loads) < 2:
        return {}
    mean = sum(load.open for load in loads) / len(loads)
    gives = {load.number: _gives(load, mean) for load in loads}
    return {number: count for number, count in gives.items() if count}


def _gives(load: Load, mean: float) -> int:
    excess = load.open - mean
    if excess <= max(LEAST_EXCESS, LEAST_SHARE * mean):
        return 0
    return min(MOST, int(excess / 2), load.idle)
