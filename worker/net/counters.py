"""The daemon's figures: a slot of the scoreboard, counted by several threads.

Plain numbers, once and for all: members of an IntEnum are looked up slowly.
"""

from _thread import allocate_lock

from quiesce.shared.scoreboard import SLOT_FIELDS, Field

TURN_NS = int(Field.TURN_NS)
IN_REQUEST_SINCE_NS = int(Field.IN_REQUEST_SINCE_NS)
CONN_OPEN = int(Field.CONN_OPEN)
CONN_IDLE = int(Field.CONN_IDLE)
CONN_BUSY = int(Field.CONN_BUSY)
REQUESTS = int(Field.REQUESTS)
RESPONSES = int(Field.RESP_1XX) - 1  # + a status's first digit
BYTES_IN = int(Field.BYTES_IN)
BYTES_OUT = int(Field.BYTES_OUT)
ACCEPTED = int(Field.ACCEPTED)
REFUSED = int(Field.REFUSED)
TIMEOUTS = int(Field.TIMEOUTS)
ERRORS = int(Field.ERRORS)
HANDED_OUT = int(Field.HANDED_OUT)
HANDED_IN = int(Field.HANDED_IN)
CONN_BODY = int(Field.CONN_BODY)
CONN_CLOSING = int(Field.CONN_CLOSING)
OLDEST_REQUEST_NS = int(Field.OLDEST_REQUEST_NS)
ACCEPTING = int(Field.ACCEPTING)


class Counters:
    """Connections as they are now, and the slot.  For the loop's thread alone; :class:`SharedCounters` for a pool."""

    __slots__ = ("busy", "open", "slot")

    def __init__(self, slot: memoryview | None) -> None:
        self.slot = memoryview(bytearray(8 * SLOT_FIELDS)).cast("Q") if slot is None else slot
        self.open = 0
        self.busy = 0

    def move(self, slot: memoryview) -> None:
        """Go on in another slot, from where we are."""
        for field in range(len(slot)):
            slot[field] = self.slot[field]
        self.slot = slot

    def count(self, field: int, amount: int = 1) -> None:
        self.slot[field] += amount

    def connection(self, open_: int, busy: int) -> None:
        """So many connections came or went, and became busy or idle."""
        self.open += open_
        self.busy += busy
        slot = self.slot
        slot[CONN_OPEN] = self.open
        slot[CONN_BUSY] = self.busy
        slot[CONN_IDLE] = self.open - self.busy

    def request(self, received: int, was_idle: bool) -> None:
        """A head is complete."""
        slot = self.slot
        slot[REQUESTS] += 1
        slot[BYTES_IN] += received
        if was_idle:
            busy = self.busy = self.busy + 1
            slot[CONN_BUSY] = busy
            slot[CONN_IDLE] = self.open - busy

    def exchange(self, received: int, status: int, sent: int) -> None:
        """A request and its response at once, on a connection that is as idle as before."""
        self.request(received, False)
        self.response(status, sent, 0)

    def traffic(self, received: int, sent: int) -> None:
        self.slot[BYTES_IN] += received
        self.slot[BYTES_OUT] += sent

    def response(self, status: int, sent: int, busy: int) -> None:
        """A response is complete, or is not going to be; ``busy`` is -1 if its connection is idle now."""
        slot = self.slot
        if 100 <= status < 600:
            slot[RESPONSES + status // 100] += 1
        slot[BYTES_OUT] += sent
        if busy:
            busy = self.busy = self.busy + busy
            slot[CONN_BUSY] = busy
            slot[CONN_IDLE] = self.open - busy


class TurnCounters(Counters):
    """The same, with what requests change written once a turn: 64 of them cost the slot as much as one.

    For a loop that says when a turn is over, before it waits: nobody outside sees figures that are older than the
    turn.  While a handler runs, ``IN_REQUEST_SINCE_NS`` says that somebody is busy.
    """

    __slots__ = ("_by_class", "_bytes_in", "_bytes_out", "_changed", "_requests")

    def __init__(self, slot: memoryview | None) -> None:
        Counters.__init__(self, slot)
        self._requests = self._bytes_in = self._bytes_out = 0
        self._by_class = [0] * 10
        self._changed = False

    def request(self, received: int, was_idle: bool) -> None:
        self._requests += 1
        self._bytes_in += received
        self._changed = True
        if was_idle:
            self.busy += 1

    def response(self, status: int, sent: int, busy: int) -> None:
        self._by_class[status // 100] += 1
        self._bytes_out += sent
        self._changed = True
        self.busy += busy

    def exchange(self, received: int, status: int, sent: int) -> None:
        self._requests += 1
        self._bytes_in += received
        self._by_class[status // 100] += 1
        self._bytes_out += sent
        self._changed = True

    def turned(self) -> None:
        """The turn is over."""
        slot = self.slot
        slot[IN_REQUEST_SINCE_NS] = 0
        if not self._changed:
            return
        self._changed = False
        slot[REQUESTS] += self._requests
        slot[BYTES_IN] += self._bytes_in
        slot[BYTES_OUT] += self._bytes_out
        self._requests = self._bytes_in = self._bytes_out = 0
        slot[CONN_BUSY] = self.busy
        slot[CONN_IDLE] = self.open - self.busy
        by_class = self._by_class
        for first_digit in range(1, 6):
            if by_class[first_digit]:
                slot[RESPONSES + first_digit] += by_class[first_digit]
                by_class[first_digit] = 0


class SharedCounters(Counters):
    """The same for several threads: ``slot[field] += n`` is not atomic."""

    __slots__ = ("_lock",)

    def __init__(self, slot: memoryview | None) -> None:
        self._lock = allocate_lock()
        Counters.__init__(self, slot)

    def move(self, slot: memoryview) -> None:
        with self._lock:
            Counters.move(self, slot)

    def count(self, field: int, amount: int = 1) -> None:
        with self._lock:
            self.slot[field] += amount

    def connection(self, open_: int, busy: int) -> None:
        with self._lock:
            Counters.connection(self, open_, busy)

    def request(self, received: int, was_idle: bool) -> None:
        with self._lock:
            Counters.request(self, received, was_idle)

    def traffic(self, received: int, sent: int) -> None:
        with self._lock:
            Counters.traffic(self, received, sent)

    def response(self, status: int, sent: int, busy: int) -> None:
        with self._lock:
            Counters.response(self, status, sent, busy)
