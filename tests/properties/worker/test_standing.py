"""A supervisor that took over may say everything again: the table bears it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quiesce.worker.core.standing import TRANSITIONS, Action, Event, State, step

ANSWERS = {
    Event.ACCEPT: Action.SAY_ACCEPTING,
    Event.QUIESCE: Action.SAY_QUIESCED,
    Event.RESUME: Action.SAY_RESUMED,
}
#: States in which somebody can still speak to a worker that has loaded its application.
SPOKEN_TO = (State.READY, State.ACCEPTING, State.QUIESCED, State.DRAINING, State.DRAINED)


def reached(events: list[Event]) -> State:
    """Where these lead from ready, the ones that are in no row left out."""
    state = State.READY
    for event in events:
        if event in TRANSITIONS[state]:
            state, _ = step(state, event)
    return state


@given(st.lists(st.sampled_from(Event)), st.sampled_from(sorted(ANSWERS, key=str)), st.integers(1, 5))
def test_an_order_given_again_is_answered_each_time_and_changes_nothing(
    events: list[Event], order: Event, times: int
) -> None:
    before = reached(events)
    if before not in SPOKEN_TO:
        return
    state, actions = step(before, order)
    assert actions.count(ANSWERS[order]) == 1
    for _ in range(times):
        again, actions = step(state, order)
        assert again is state
        # What it hands over to is named each time, and may be another lane.
        lane = (Action.HAND_OVER,) if order is Event.QUIESCE else ()
        assert actions == (ANSWERS[order], *lane)


@given(st.lists(st.sampled_from(Event)), st.integers(1, 5))
def test_a_drain_given_again_is_a_new_deadline_and_one_answer(events: list[Event], times: int) -> None:
    before = reached(events)
    if before not in SPOKEN_TO:
        return
    state, _ = step(before, Event.DRAIN)
    for _ in range(times):
        again, actions = step(state, Event.DRAIN)
        assert again is state
        # Answered at once if it is over, else when it is; and the shell knows the last one's number.
        last = Action.SAY_DRAINED if state is State.DRAINED else Action.DRAIN
        assert actions == (Action.HAND_OVER, last)
    end, actions = step(state, Event.EMPTY)
    assert end is State.DRAINED
    assert actions == (() if state is State.DRAINED else (Action.SAY_DRAINED,))


@given(
    st.lists(st.sampled_from(Event)),
    st.lists(st.sampled_from([*ANSWERS, Event.DRAIN]), min_size=1),
    st.data(),
)
def test_the_last_orders_of_the_dead_supervisor_said_again_lead_to_the_same(
    events: list[Event], orders: list[Event], data: st.DataObject
) -> None:
    """It repeats what the state says was intended: any tail of the orders, and it ends where they ended."""
    before = reached(events)
    if before not in SPOKEN_TO:
        return
    state = before
    for order in orders:
        state, _ = step(state, order)
    tail = orders[data.draw(st.integers(0, len(orders) - 1)) :]
    after = state
    for order in tail:
        after, _ = step(after, order)
    if tail[-1] is Event.QUIESCE:  # of a worker that drains, that is no way back
        assert after in (State.QUIESCED, State.DRAINING, State.DRAINED)
    else:
        assert after is state
