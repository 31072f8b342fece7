"""Who has more than its share: a few, and never everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.worker.core.share import (
    AHEAD,
    FIRST_LOOK_S,
    LOOK_S,
    PATIENCE_S,
    Patience,
    is_churn,
    limit,
    next_look_s,
)

OPENS = st.lists(st.integers(0, 5000), min_size=2, max_size=12)


@given(OPENS)
def test_somebody_always_accepts(opens: list[int]) -> None:
    assert any(own <= limit(own, opens[:i] + opens[i + 1 :]) for i, own in enumerate(opens))


@given(st.integers(2, 12), st.lists(st.integers(0, 11), min_size=50, max_size=400))
def test_who_takes_only_below_its_limit_ends_near_the_mean(count: int, wishes: list[int]) -> None:
    """Whoever is woken first: 4 or 5 % above the mean, and the one that took it there."""
    opens = [0] * count
    for wish in wishes:
        for number in [wish % count, *range(count)]:
            if opens[number] <= limit(opens[number], opens[:number] + opens[number + 1 :]):
                opens[number] += 1
                break
    mean = sum(opens) / count
    assert max(opens) <= mean + max(4, 0.05 * mean) + 1


def test_the_slack_is_four_and_five_per_cent_of_many() -> None:
    assert limit(10, [10, 10]) == 14
    assert limit(1040, [980, 980]) == 1050
    assert limit(10, [1000]) == 10 + AHEAD  # to be asked again
    assert limit(3, [0]) == 1 + 4


def test_who_is_alone_may_have_any_number() -> None:
    assert all(own < limit(own, []) for own in (0, 5, 10**6))


@pytest.mark.parametrize(
    ("closed", "most", "churn"),
    [(0, 0, 0), (500, 500, 0), (500 + AHEAD, 500, 0), (501 + AHEAD, 500, 1), (4000, 64, 1), (-3, 0, 0)],
)
def test_churn_is_when_more_have_ended_than_there_were(closed: int, most: int, churn: int) -> None:
    assert is_churn(closed, most) == bool(churn)


def test_patience_ends_when_something_was_there_at_each_look() -> None:
    patience = Patience()
    assert not patience.look(1.0, True)
    assert not patience.look(1.0 + PATIENCE_S / 2, True)
    assert not patience.look(1.0 + PATIENCE_S, False)  # somebody took it
    assert not patience.look(1.1, True)
    assert patience.look(1.1 + PATIENCE_S, True)
    assert patience.look(1.1 + 2 * PATIENCE_S, True)  # and what is still there, at once


def test_looks_become_rarer_but_not_rare() -> None:
    pauses = [FIRST_LOOK_S]
    while pauses[-1] != LOOK_S:
        pauses.append(next_look_s(pauses[-1]))
        assert len(pauses) < 20
    assert next_look_s(LOOK_S) == LOOK_S
    assert PATIENCE_S + LOOK_S <= 0.04  # so long a client may wait because of us
