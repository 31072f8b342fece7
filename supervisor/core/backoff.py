"""When may a crashed worker come back, and is it a crash loop?  Pure: it is told the time.

One record for each release: if one worker of it crashes at once, its twin will, too.
"""

from typing import NamedTuple

FIRST_DELAY_S = 0.0  # the first crash is an accident: back at once
BASE_DELAY_S = 0.5
MAX_DELAY_S = 30.0
QUICK_S = 30.0  # a worker that lived less than this after it accepted (or never did) died "at once"
LOOP_AFTER = 5  # quick deaths in a row that are called a crash loop


class Backoff(NamedTuple):
    """The record: immutable; :func:`after_death` returns the next one."""

    quick_deaths: int = 0  # in a row
    not_before: float = 0.0  # CLOCK_MONOTONIC; no worker is spawned earlier
    told: bool = False  # the crash loop was said, loudly, once


class Verdict(NamedTuple):
    backoff: Backoff
    delay_s: float
    loop_begins: bool  # say it now


def after_death(backoff: Backoff, now: float, lived_s: float) -> Verdict:
    """A worker that was not asked to leave is gone, ``lived_s`` after it began to accept (0: never did)."""
    deaths = backoff.quick_deaths + 1 if lived_s < QUICK_S else 1
    delay = FIRST_DELAY_S if deaths == 1 else min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(deaths - 2, 16))
    loop = deaths >= LOOP_AFTER
    begins = loop and not backoff.told
    # With several workers their deaths overlap: never bring an earlier promise forward.
    not_before = max(backoff.not_before, now + delay)
    return Verdict(Backoff(deaths, not_before, backoff.told or loop), delay, begins)


def after_life(backoff: Backoff, lived_s: float, now: float | None = None) -> Backoff:
    """Everybody who is there has accepted for ``lived_s``: is the past forgiven?

    Args:
        backoff: The record.
        lived_s: The youngest worker's.
        now: If given, nothing is forgiven before the one that was promised for ``not_before`` has had
            time to prove itself: while it is waited for, only its healthy twins are there.
    """
    if lived_s < QUICK_S or (now is not None and now < backoff.not_before + QUICK_S):
        return backoff
    return Backoff() if backoff.quick_deaths else backoff
