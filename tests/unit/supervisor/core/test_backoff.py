"""When a crashed worker may come back."""

from __future__ import annotations

from quiesce.supervisor.core.backoff import (
    FIRST_DELAY_S,
    LOOP_AFTER,
    MAX_DELAY_S,
    QUICK_S,
    Backoff,
    after_death,
    after_life,
)


def test_the_first_accident_is_made_up_for_at_once() -> None:
    verdict = after_death(Backoff(), now=100.0, lived_s=0.0)
    assert verdict.delay_s == FIRST_DELAY_S == 0.0
    assert verdict.backoff.not_before == 100.0
    assert not verdict.loop_begins


def test_the_delays_double_up_to_the_cap() -> None:
    backoff, delays = Backoff(), []
    for _ in range(10):
        verdict = after_death(backoff, now=0.0, lived_s=1.0)
        backoff = verdict.backoff
        delays.append(verdict.delay_s)
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY_S, MAX_DELAY_S, MAX_DELAY_S]


def test_a_crash_loop_is_said_at_the_fifth_quick_death() -> None:
    backoff, said = Backoff(), []
    for _ in range(2 * LOOP_AFTER):
        backoff, _, begins = after_death(backoff, now=0.0, lived_s=0.0)
        said.append(begins)
    assert said.index(True) == LOOP_AFTER - 1
    assert said.count(True) == 1


def test_a_worker_that_lived_long_starts_the_count_again() -> None:
    backoff = after_death(Backoff(quick_deaths=4), now=0.0, lived_s=QUICK_S).backoff
    assert backoff.quick_deaths == 1


def test_a_long_death_is_not_the_end_of_a_loop_that_was_said() -> None:
    """With several workers one may die of old age while another one crashes and crashes."""
    told = Backoff(quick_deaths=9, not_before=50.0, told=True)
    assert after_death(told, now=10.0, lived_s=QUICK_S).backoff.told


def test_deaths_that_overlap_never_bring_the_return_forward() -> None:
    late = after_death(Backoff(quick_deaths=8, not_before=30.0), now=0.0, lived_s=0.0).backoff
    soon = after_death(late, now=1.0, lived_s=QUICK_S).backoff
    assert soon.not_before == late.not_before == 30.0


def test_a_quiet_life_forgives() -> None:
    crashed = Backoff(quick_deaths=9, not_before=50.0, told=True)
    assert after_life(crashed, QUICK_S - 0.1, now=500.0) == crashed
    assert after_life(crashed, QUICK_S, now=500.0) == Backoff()


def test_healthy_twins_do_not_forgive_the_one_that_is_waited_for() -> None:
    """Worker 2 of 2 crashes at every start; while its place is empty, all that is seen is worker 1, and it is well."""
    backoff, now, said = Backoff(), 1000.0, 0
    for _ in range(LOOP_AFTER + 3):
        verdict = after_death(backoff, now, lived_s=0.0)
        backoff, said = verdict.backoff, said + verdict.loop_begins
        while now < backoff.not_before:
            now += 1.0  # the tick sees worker 1 alone
            backoff = after_life(backoff, lived_s=now, now=now)
        now += 0.5  # spawned, and dead again
    assert said == 1
    assert verdict.delay_s == MAX_DELAY_S


def test_nothing_to_forgive_changes_nothing() -> None:
    record = Backoff()
    assert after_life(record, 2 * QUICK_S) is record
