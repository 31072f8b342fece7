"""Is the new release good enough: the error gate at its edges."""

from __future__ import annotations

import pytest

from quiesce.supervisor.core.verify import MIN_REQUESTS, Sample, too_many_errors

CLEAN = Sample(1000, 0)


@pytest.mark.parametrize(
    ("new", "old", "bad"),
    [
        (Sample(0, 0), CLEAN, False),
        (Sample(49, 49), CLEAN, False),  # fewer than fifty prove nothing
        (Sample(50, 50), CLEAN, True),
        (Sample(50, 2), CLEAN, False),  # 4 %
        (Sample(100, 5), CLEAN, False),  # exactly the limit is not above it
        (Sample(100, 6), CLEAN, True),
        (Sample(100, 6), Sample(0, 0), True),  # an old release that answered nothing excuses nothing
        (Sample(100, 50), Sample(100, 50), False),  # no worse than before
        (Sample(100, 51), Sample(100, 50), True),
        (Sample(100, 20), Sample(100, 90), False),  # the fix of a service that was failing
        (Sample(100, 100), Sample(100, 100), False),
    ],
)
def test_the_gate(new: Sample, old: Sample, bad: bool) -> None:
    assert bool(too_many_errors(new, old, 0.05)) is bad


def test_it_is_fifty() -> None:
    assert MIN_REQUESTS == 50


def test_no_error_is_too_many_when_all_are_allowed() -> None:
    assert too_many_errors(Sample(100, 100), CLEAN, 1.0) == ""


def test_the_reason_has_the_figures_and_they_differ_when_the_shares_do() -> None:
    text = too_many_errors(Sample(500, 27), Sample(300, 1), 0.05)
    assert "27 of 500" in text and "5.4%" in text and "5%" in text and "0.333%" in text
    assert "max_error_rate" in text


def test_what_came_since() -> None:
    assert Sample(10, 3).since(Sample(4, 1)) == Sample(6, 2)
    assert Sample(4, 1).since(Sample(10, 3)) == Sample(0, 0)  # a worker's counters were lost
    assert Sample(0, 0).share == 0.0 and Sample(4, 1).share == 0.25
