"""The table of orders: what is answered, and that there is an end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.errors import IllegalTransition
from quiesce.worker.core.standing import TRANSITIONS, Action, Event, State, step

ORDERS = {
    Event.ACCEPT: Action.SAY_ACCEPTING,
    Event.QUIESCE: Action.SAY_QUIESCED,
    Event.RESUME: Action.SAY_RESUMED,
}


def test_every_state_has_a_row_and_accepts_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    for row in TRANSITIONS.values():
        assert row[Event.SHUTDOWN][0] is State.LEAVING
        assert row[Event.ORPHANED][0] in (State.FAREWELL, State.LEAVING)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_to_a_worker_that_stays_is_answered(order: Event) -> None:
    for state in (State.READY, State.ACCEPTING, State.QUIESCED, State.DRAINING, State.DRAINED):
        assert ORDERS[order] in step(state, order)[1]


def test_orders_to_a_worker_that_has_not_loaded_are_a_bug() -> None:
    with pytest.raises(IllegalTransition):
        step(State.STARTING, Event.ACCEPT)


@given(st.lists(st.sampled_from(Event)))
def test_it_accepts_exactly_when_it_says_so_and_leaves_once(events: list[Event]) -> None:
    state, accepting, leaving, said_drained = State.STARTING, False, 0, False
    for event in events:
        if event not in TRANSITIONS[state]:
            continue
        state, actions = step(state, event)
        for action in actions:
            if action is Action.ACCEPT:
                accepting = True
            elif action in (Action.QUIESCE, Action.DRAIN, Action.LEAVE):
                accepting = False
            said_drained = action is Action.SAY_DRAINED or (said_drained and action is not Action.ACCEPT)
            leaving += action is Action.LEAVE
            if action in (Action.SAY_ACCEPTING, Action.SAY_RESUMED):
                assert accepting
            if action is Action.SAY_QUIESCED:
                assert not accepting
        assert accepting == (state is State.ACCEPTING)
        assert leaving == (state is State.LEAVING)
        if state is State.DRAINED:
            assert said_drained


@given(st.lists(st.sampled_from([e for e in Event if e is not Event.SHUTDOWN])))
def test_an_orphan_leaves_as_soon_as_it_is_empty(events: list[Event]) -> None:
    state, orphaned = State.READY, False
    for event in events:
        if event in TRANSITIONS[state]:
            orphaned = orphaned or event is Event.ORPHANED
            state, _ = step(state, event)
    if orphaned:
        assert step(state, Event.EMPTY)[0] is State.LEAVING
