"""Has this worker more than its share of the connections?  Pure.

Every figure of a neighbour is a hint from shared memory.  The worst that a wrong one does is a connection that goes to
another worker, or waits for `PATIENCE_S` and a look.
"""

from collections.abc import Sequence

NEVER = 1 << 62  # no limit: more than anybody has
MOST_OPEN = 1 << 20  # who says that more are open says nothing
PATIENCE_S = 0.02  # what has waited so long is left by the others, too
LOOK_S = 0.02  # a worker above its share looks so often
FIRST_LOOK_S = 0.001  # at first sooner: the others may be at its level in no time, and nobody would accept
_SLACK = 4
_PART = 20  # a 20th of the mean
AHEAD = 32  # so many more, and then we look again, however few we have


def limit(own: int, others: Sequence[int]) -> int:
    """How many open connections this worker may have and still accept, where others have so many each.

    The mean and a little: 4, or 5 % of it.  A neighbour's figure is old by the time it is read, and a limit
    without slack would have everybody wait for everybody else.  Who is alone has none, but looks now and then.
    """
    ahead = own + AHEAD
    if not others:
        return ahead
    count = len(others) + 1
    total = own + sum(others)
    return min(ahead, (total + max(_SLACK * count, total // _PART)) // count)


def is_churn(closed: int, most_open: int) -> bool:
    """Do clients connect for each request?  Then the figures have no time to differ, and nothing is to be gained.

    Args:
        closed: Connections that have ended in the last moments.
        most_open: The most that were seen open at a time, then; `AHEAD` of them may have been missed.

    More have ended than there were: none of them lived long.  When everybody leaves at once, and comes back, only as
    many have ended.
    """
    return closed > most_open + AHEAD


class Patience:
    """A queue that others may take from: is what waits there left for us?"""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: float | None = None  # something has been there at every look

    def look(self, now: float, waits: bool) -> bool:
        """We have looked.  Shall we take it?"""
        if not waits:
            self.since = None
            return False
        if self.since is None:
            self.since = now
        return now - self.since >= PATIENCE_S


def next_look_s(before_s: float) -> float:
    """The pause after a pause in which nothing has changed."""
    return min(2 * before_s, LOOK_S)
