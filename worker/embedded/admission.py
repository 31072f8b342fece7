"""Who may connect: the application's policy, limits in all and per address.  From any thread."""

import threading
from collections.abc import Callable
from enum import Enum

from quiesce.worker.core.request import Address

AcceptPolicy = Callable[[Address], bool]


class Verdict(Enum):
    """What becomes of a client."""

    ADMITTED = "admitted"
    DENIED = "denied"  # by the policy: closed without a word
    FULL = "full"  # a limit is reached: told so


class Admission:
    """Counts everybody who is connected, over all threads of a daemon.

    Args:
        limit: Most clients; 0 = any number.
        per_address: Most clients of one address; 0 = any number.  A client without an address is not counted.
        policy: Asked first; None admits everybody.
    """

    def __init__(self, limit: int, per_address: int, policy: AcceptPolicy | None) -> None:
        self._limit = limit
        self._per_address = per_address
        self._policy = policy
        self.has_policy = policy is not None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # entering one costs three times as much as its lock
        self._by_address: dict[str, int] = {}
        self.count = 0

    def judge(self, peer: Address) -> Verdict:
        """May this one come?  ADMITTED and FULL are counted: :meth:`leave` must follow."""
        if self._policy is not None and not self._policy(peer):
            return Verdict.DENIED
        return self.enter(peer)

    def enter(self, peer: Address) -> Verdict:
        """One comes whom no policy judges: another daemon has let it in.  Counted: :meth:`leave` must follow."""
        with self._lock:
            self.count += 1
            full = self.count > self._limit > 0
            if peer and self._per_address:
                same = self._by_address[peer[0]] = self._by_address.get(peer[0], 0) + 1
                full = full or same > self._per_address
        return Verdict.FULL if full else Verdict.ADMITTED

    def leave(self, peer: Address) -> None:
        """One who was counted has gone."""
        with self._lock:
            self.count -= 1
            if peer and self._per_address:
                left = self._by_address[peer[0]] - 1
                if left:
                    self._by_address[peer[0]] = left
                else:
                    del self._by_address[peer[0]]
            if not self.count:
                self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nobody is connected; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.count, timeout_s)
