"""Whose lane an order names: every reason has its row, and nobody hands over to where nobody reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.core.lanes import TARGETS, Whose, Why, target, terms


def test_every_reason_has_a_row() -> None:
    assert set(TARGETS) == set(Why)
    assert all(set(row) == {True, False} for row in TARGETS.values())


@pytest.mark.parametrize("why", [Why.HELD, Why.STOPPED, Why.RESUMED])
@pytest.mark.parametrize("others", [True, False])
def test_who_is_to_keep_what_it_has_gets_no_lane(why: Why, others: bool) -> None:
    assert target(why, others_accept=others) is Whose.NOBODYS


@pytest.mark.parametrize("why", [Why.HUSHED, Why.OUTDATED, Why.DISCARDED])
def test_in_a_rollout_it_is_the_other_generations(why: Why) -> None:
    assert {target(why, others_accept=others) for others in (True, False)} == {Whose.OTHERS}


def test_the_last_one_that_accepts_has_nobody_to_hand_over_to() -> None:
    assert target(Why.SET_ASIDE, others_accept=False) is Whose.NOBODYS
    assert target(Why.SET_ASIDE, others_accept=True) is Whose.OWN


@given(st.lists(st.integers(0, 9)))
def test_a_lane_is_named_only_if_everybody_reads_it(versions: list[int]) -> None:
    found = terms(versions)
    if not versions or 0 in versions:
        assert found is None
    else:
        assert found == (min(versions), len(versions))
        assert all(found.version <= version for version in versions)
