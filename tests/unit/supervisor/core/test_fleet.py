"""Who is spawned and who goes, so that as many serve as are wanted."""

from __future__ import annotations

import pytest

from quiesce.supervisor.core.fleet import Member, Plan, plan
from quiesce.supervisor.core.lifecycle import COMING, GOING, State


def members(*states: State) -> list[Member]:
    return [Member(number, state) for number, state in enumerate(states, 1)]


def test_as_many_as_wanted_is_left_alone() -> None:
    assert plan(2, members(State.ACCEPTING, State.LOADING), 0.0, 0.0) == Plan()


def test_missing_ones_are_spawned_at_once() -> None:
    assert plan(3, members(State.ACCEPTING), 10.0, 0.0) == Plan(spawn=2)


def test_back_off_holds_the_spawn_and_says_until_when() -> None:
    assert plan(3, members(State.ACCEPTING), 10.0, 12.5) == Plan(wake_at=12.5)
    assert plan(3, members(State.ACCEPTING), 12.5, 12.5) == Plan(spawn=2)


def test_back_off_does_not_hold_a_scale_down() -> None:
    assert plan(1, members(State.ACCEPTING, State.ACCEPTING), 10.0, 99.0) == Plan(retire=(2,))


@pytest.mark.parametrize("going", sorted(GOING, key=str))
def test_who_is_going_is_not_counted_and_not_retired(going: State) -> None:
    assert plan(1, members(going), 0.0, 0.0) == Plan(spawn=1)
    assert plan(0, members(going, State.ACCEPTING), 0.0, 0.0) == Plan(retire=(2,))


@pytest.mark.parametrize("coming", sorted(COMING, key=str))
def test_those_that_never_accepted_go_first_and_then_the_youngest(coming: State) -> None:
    staff = members(State.ACCEPTING, coming, State.ACCEPTING, State.QUIESCED)
    assert plan(3, staff, 0.0, 0.0).retire == (2,)
    assert plan(2, staff, 0.0, 0.0).retire == (2, 4)
    assert plan(0, staff, 0.0, 0.0).retire == (2, 4, 3, 1)


def test_who_is_set_aside_goes_before_those_who_accept() -> None:
    staff = members(State.QUIESCED, State.ACCEPTING, State.LOADING, State.ACCEPTING)
    assert plan(1, staff, 0.0, 0.0).retire == (3, 1, 4)
