"""Which worker is due to be replaced by a fresh one of its release.  Pure."""

from collections.abc import Sequence
from typing import NamedTuple

JITTER = 0.1
TOLD_TO_GO = "somebody sent it SIGTERM"


class Limits(NamedTuple):
    """0: none."""

    max_requests: int = 0
    max_age_s: float = 0.0
    max_rss: int = 0  # bytes

    def __bool__(self) -> bool:
        return any(self[:])


class Wear(NamedTuple):
    """A worker that accepts, and what it has behind it."""

    number: int
    key: str  # 16 hex digits, its own
    requests: int
    age_s: float
    rss: int = 0  # bytes; 0: unknown


class Due(NamedTuple):
    number: int
    reason: str  # "it has answered 10,412 requests (max_requests is 10,000)"


def jitter(key: str) -> float:
    """From 0.9 to 1.1, the same for a worker all its life: those that start together do not tire together."""
    return 1 + JITTER * (2 * int(key[:8], 16) / 0xFFFFFFFF - 1)


def due(limits: Limits, workers: Sequence[Wear]) -> Due | None:
    """The one that is furthest above its limit; None: nobody is."""
    worn = [(max(_shares(limits, worker), default=(0.0, "")), worker.number) for worker in workers]
    (share, reason), number = max(worn, default=((0.0, ""), 0))
    return Due(number, reason) if share >= 1 else None


def _shares(limits: Limits, worker: Wear) -> list[tuple[float, str]]:
    """How much of each limit it has used up."""
    shares = []
    each = jitter(worker.key)
    if limits.max_requests:
        text = f"it has had {worker.requests:,} requests (max_requests is {limits.max_requests:,})"
        shares.append((worker.requests / (limits.max_requests * each), text))
    if limits.max_age_s:
        text = f"it is {worker.age_s:.0f} s old (max_age is {limits.max_age_s:g} s)"
        shares.append((worker.age_s / (limits.max_age_s * each), text))
    if limits.max_rss:
        text = f"it has {worker.rss >> 20} MiB of memory (max_rss is {limits.max_rss >> 20} MiB)"
        shares.append((worker.rss / limits.max_rss, text))
    return shares
