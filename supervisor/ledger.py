"""Which requests were made, and how they ended: a repeated id never starts a second change.

A command whose supervisor dies sends the same request, with the same id, to the next one.  That one
has the ledger from the state, so it either knows the outcome or knows what is still to be waited for.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from quiesce.supervisor.core.snapshot import AnswerRecord

KEPT = 64  # more commands than may wait at once, and some time for those that ask late
MAX_TEXT_CHARS = 4000

#: What only looks, or may be done as often as one likes without a word about it.
PLAIN = frozenset(("status", "history"))


class Ledger:
    """The last requests, the newest at the end."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, AnswerRecord] = OrderedDict()

    def find(self, request_id: str) -> AnswerRecord | None:
        """The request of this id, if it was made before."""
        return self._known.get(request_id)

    def begin(self, request_id: str, command: str) -> None:
        """It is about to be carried out."""
        self._known[request_id] = AnswerRecord(request_id, command)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def end(
        self, request_id: str, code: int, text: str, detail: str = "", data: Mapping[str, Any] | None = None
    ) -> bool:
        """It has ended so.  The first end counts.  False: nothing new."""
        record = self._known.get(request_id)
        if record is None or record.code is not None:
            return False
        record.code, record.text = int(code), text[:MAX_TEXT_CHARS]
        record.detail, record.data = detail[-MAX_TEXT_CHARS:], dict(data or {})
        return True

    def to_state(self) -> list[AnswerRecord]:
        return list(self._known.values())

    def recall(self, records: list[AnswerRecord]) -> None:
        """Those that another supervisor has left."""
        for record in records:
            self._known[record.id] = record
