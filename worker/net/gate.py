"""Keeps a worker that has more than its share of the connections from taking more, for a moment.

Without it a shared listener is up to 3.5 times off the mean: whoever is woken first takes all there is.  Nobody is ever
woken or waited for here: a worker looks at what the others show, and what they leave it takes.
"""

from time import monotonic_ns

from quiesce.shared.scoreboard import Field, Scoreboard
from quiesce.worker.core.share import MOST_OPEN, NEVER, is_churn, limit
from quiesce.worker.net.counters import ACCEPTED, HANDED_IN, HANDED_OUT, Counters

_FRESH_NS = 500_000_000  # whose loop has not turned since then takes nobody: stopped, dead, or in a request
_SPARE = 8  # slots behind the last one that is in use: a new worker counts at once


class Neighbours:
    """The other workers, as the scoreboard shows them."""

    __slots__ = ("_accepted", "_accepting", "_open", "_own", "_turn", "_used")

    def __init__(self, board: Scoreboard, own_slot: int) -> None:
        self._own = own_slot
        self._open = board.column(Field.CONN_OPEN)
        self._turn = board.column(Field.TURN_NS)
        self._accepting = board.column(Field.ACCEPTING)
        self._accepted = board.column(Field.ACCEPTED)
        self._used = 0
        self.count()

    def count(self) -> None:
        """Find out which slots are in use: the lower ones, for the supervisor gives those away first."""
        turns = self._turn.tolist()
        used = len(turns)
        while used and not turns[used - 1]:
            used -= 1
        self._used = used + _SPARE

    def open(self) -> list[int]:
        """How many connections each has that accepts, and whose loop turns."""
        used, own = self._used, self._own
        accepting = self._accepting[:used].tolist()
        turns = self._turn[:used].tolist()
        opens = self._open[:used].tolist()
        now = monotonic_ns()  # after the look: no turn that we saw is later
        return [
            opens[number]
            for number, accepts in enumerate(accepting)
            if accepts == 1
            and number != own
            and now - _FRESH_NS < turns[number] <= now
            and opens[number] <= MOST_OPEN
        ]

    def accepted(self) -> int:
        """How many they have accepted.  That it has changed says that somebody accepts; its value says nothing."""
        return sum(self._accepted[: self._used].tolist()) - self._accepted[self._own]


class Gate:
    """Compare ``counters.open`` with ``limit`` before each accept; above it, ask :meth:`is_above`.

    Loop's thread only.  Without neighbours it is always open.
    """

    def __init__(self, counters: Counters, neighbours: Neighbours | None = None) -> None:
        self.counters = counters
        self.use(neighbours)
        self._is_churn = False
        self._most_open = [0, 0]  # in this beat and the one before
        self._ended = [0, 0]  # connections that had ended when they began

    def use(self, neighbours: Neighbours | None) -> None:
        """These are the others from now on."""
        self.neighbours = neighbours
        self.limit = NEVER if neighbours is None else 0  # 0: to be looked at first

    def beat(self) -> None:
        """Look at the neighbours, and at what our own clients do.  With each heartbeat."""
        if self.neighbours is None:
            return
        self.neighbours.count()
        self._is_churn = self._churns()
        self._ended = [self._ended_by_now(), self._ended[0]]
        self._most_open = [self.counters.open, self._most_open[0]]
        self._look()

    def _ended_by_now(self) -> int:
        slot = self.counters.slot
        return slot[ACCEPTED] + slot[HANDED_IN] - slot[HANDED_OUT] - self.counters.open

    def _churns(self) -> bool:
        return is_churn(self._ended_by_now() - self._ended[1], max(*self._most_open, self.counters.open))

    def is_above(self) -> bool:
        """Have we more than our share, as things are now?"""
        self._look()
        return self.counters.open > self.limit

    def _look(self) -> None:
        if self.neighbours is not None:
            self._is_churn = self._is_churn or self._churns()
        if self.neighbours is None or self._is_churn:
            self.limit = NEVER  # until the next beat
            return
        open_ = self.counters.open
        self._most_open[0] = max(self._most_open[0], open_)
        self.limit = limit(open_, self.neighbours.open())

    def may_take(self) -> bool:
        """May we take from a lane?  That what the others leave there is taken all the same is the affair of who
        asks.
        """
        return self.counters.open <= self.limit or not self.is_above()

    def others_accepted(self) -> int:
        """A figure that changes when another worker accepts."""
        return self.neighbours.accepted() if self.neighbours is not None else 0
