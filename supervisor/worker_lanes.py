"""One worker's side of the lanes: which it reads, and into which it hands over."""

from collections.abc import Callable, Sequence

from quiesce.shared import messages as msg
from quiesce.shared.deadlines import Timer
from quiesce.supervisor.core.lifecycle import COMING, State
from quiesce.supervisor.core.snapshot import WorkerRecord
from quiesce.supervisor.lanes import Named
from quiesce.supervisor.worker_parts import House

# After `quiesced`: a worker that has not said by then what it has moved is waited for no longer.
MOVING_S = 2.0

Send = Callable[[msg.Message, Sequence[int]], int | None]
"""Says it, and returns its number; None: it will never be heard."""


class WorkerLanes:
    """What it was told of lanes.  Owns no descriptor.

    Attributes:
        own: The key of its generation's; "": there is none.
        version: Newest record of a connection that it reads, by its own word; 0: it knows no lanes.
        target: The key of the one that its next order names; "": none.
        reading: It has been given what it is to read: with the order to accept, because who fails its probe must
            not have taken anybody's connection.
        moving: It was told to hand over and has not said yet that it has.
    """

    def __init__(self, house: House, worker: str, own: str, send: Send, on_moved: Callable[[], None]) -> None:
        self.own = own
        self.version = 0
        self.target = ""
        self.moving = False
        self.reading = False
        self.said: msg.HandedOver | None = None  # of the last order that named a lane
        self._asked: int | None = None  # the number of that order
        self._reads = [own] if own else []
        self._house = house
        self._worker = worker
        self._send = send
        self._on_moved = on_moved
        self._patience: Timer | None = None

    # -- surviving the supervisor -------------------------------------------------------------

    def record(self, record: WorkerRecord) -> None:
        """Our part of its record."""
        record.lane_version, record.lanes, record.target = self.version, list(self._reads), self.target

    def recall(self, record: WorkerRecord) -> None:
        self.version, self.target = record.lane_version, record.target
        self.reading = State(record.state) not in COMING
        # Its own may have been lost and made anew.
        self._reads = list(dict.fromkeys([*self._reads, *record.lanes]))

    def take_over(self) -> None:
        """The last supervisor may have heard what it has moved: the order is given again, and answered again."""
        if self.target:
            self.moving = True
            self.quiesced()

    # -- reading ------------------------------------------------------------------------------

    def reads(self, key: str) -> bool:
        return key in self._reads

    def tell(self) -> None:
        """Give it, perhaps again, the read end of each lane that it is to read."""
        self.reading = True
        lanes = [lane for key in self._reads if (lane := self._house.lanes.get(key)) is not None]
        if lanes and self.version:
            self._send(msg.UseLane([lane.name for lane in lanes]), [lane.reading.fileno() for lane in lanes])

    def give(self, key: str) -> None:
        """One more: of a generation whose connections come back, or that has nobody left to read it."""
        if key not in self._reads:
            self._reads.append(key)
            self._house.save()
        lane = self._house.lanes.get(key)
        if lane is not None and self.version and self.reading:
            self._send(msg.UseLane([lane.name]), [lane.reading.fileno()])

    # -- handing over -------------------------------------------------------------------------

    def order(self, order: msg.Quiesce | msg.Drain) -> None:
        """Say it, with the lane that was chosen, if somebody reads that."""
        named = self._named(self.target)
        self.settle()
        self._asked = None
        if named is None:
            self._send(order, ())
        else:
            self.said = None
            self.moving = isinstance(order, msg.Quiesce)
            self._asked = self._send_naming(named, order)

    def shed(self, count: int) -> None:
        """Have it give some idle ones to its siblings."""
        named = self._named(self.own)
        if named is not None:
            self._send_naming(named, msg.Shed(count))

    def _named(self, key: str) -> Named | None:
        return self._house.named(key, self._worker) if self.version else None

    def _send_naming(self, named: Named, order: msg.Quiesce | msg.Drain | msg.Shed) -> int | None:
        lane, terms = named
        order = order._replace(lane=lane.name, lane_version=terms.version, readers=terms.readers)
        return self._send(order, (lane.writing.fileno(), lane.reading.fileno()))

    def quiesced(self) -> None:
        """It accepts nothing any more; what it moves now has a bound."""
        if self.moving and self._patience is None:
            self._patience = self._house.loop.call_at(self._house.loop.now() + MOVING_S, self._late)

    def handed_over(self, said: msg.HandedOver, re: int | None) -> None:
        """What could move has moved.

        ``re``: the number of the order that this answers; None: the worker does not say.  An order that another one
        overtakes is answered as well, and then this says nothing of what the other one is to move.
        """
        self._house.log.debug("handed over", worker=self._worker, moved=said.moved, left=said.left)
        if re is not None and re != self._asked:
            return
        self.said = said
        if self.moving:
            self.settle()
            self._on_moved()

    def _late(self) -> None:
        self._house.log.warning("worker still hands over", worker=self._worker, after_s=MOVING_S)
        self.settle()
        self._on_moved()

    def settle(self) -> None:
        """Nobody waits for what it moves any more."""
        self.moving = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
