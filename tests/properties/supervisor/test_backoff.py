"""Back-off: slower and slower, never sooner than promised, and a loop is said once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.supervisor.core.backoff import LOOP_AFTER, MAX_DELAY_S, QUICK_S, Backoff, after_death, after_life

LIVED = st.one_of(st.just(0.0), st.floats(0, 2 * QUICK_S))
GAPS = st.floats(0, 100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(GAPS, LIVED), max_size=40))
def test_whatever_dies_when(deaths: list[tuple[float, float]]) -> None:
    backoff, now, said, quick = Backoff(), 0.0, 0, 0
    for gap, lived in deaths:
        now += gap
        before = backoff
        backoff, delay, begins = after_death(backoff, now, lived)
        said += begins
        quick = quick + 1 if lived < QUICK_S else 1
        assert 0 <= delay <= MAX_DELAY_S
        assert backoff.not_before >= max(before.not_before, now + delay)
        assert backoff.not_before <= max(before.not_before, now + MAX_DELAY_S)
        assert not begins or quick >= LOOP_AFTER
        assert said <= 1, "nothing was forgiven in this run"


@settings(max_examples=50, deadline=None)
@given(st.lists(GAPS, min_size=1, max_size=60))
def test_delays_never_shrink_while_they_die_at_once(gaps: list[float]) -> None:
    backoff, now, last = Backoff(), 0.0, 0.0
    for gap in gaps:
        now += gap
        backoff, delay, _ = after_death(backoff, now, 0.0)
        assert delay >= last
        assert delay > last or delay in (0.0, MAX_DELAY_S)
        last = delay


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), GAPS, LIVED), max_size=60))
def test_a_loop_is_said_once_between_two_pardons(steps: list[tuple[bool, float, float]]) -> None:
    backoff, now, said = Backoff(), 0.0, 0
    for dies, gap, lived in steps:
        now += gap
        if dies:
            backoff, _, begins = after_death(backoff, now, lived)
            said += begins
            assert said <= 1
        else:
            before, backoff = backoff, after_life(backoff, lived, now)
            if backoff != before:
                said = 0
                assert lived >= QUICK_S and now >= before.not_before + QUICK_S
