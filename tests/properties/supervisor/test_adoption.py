"""Taking over a worker: whatever is recorded and whatever it says, nothing is lost and nobody goes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.core import adoption
from quiesce.supervisor.core.lifecycle import GOING, TRANSITIONS, Action, Event, State, step
from quiesce.supervisor.core.rollout import State as RolloutState
from quiesce.worker.core import standing
from quiesce.worker.orders import _STATE_TOLD

WORDS = sorted({_STATE_TOLD.get(state, state).value for state in standing.State})
STATES = [state for state in State if state is not State.REAPED]
SAID = [s for s in standing.State if s not in (standing.State.FAREWELL, standing.State.LEAVING)]
ORDERS = {
    Action.SEND_ACCEPT: standing.Event.ACCEPT,
    Action.SEND_QUIESCE: standing.Event.QUIESCE,
    Action.SEND_RESUME: standing.Event.RESUME,
    Action.SEND_DRAIN: standing.Event.DRAIN,
    Action.SEND_DRAIN_REST: standing.Event.DRAIN,
    Action.SEND_SHUTDOWN: standing.Event.SHUTDOWN,
}
SAYS = {
    standing.Action.SAY_ACCEPTING: Event.SAID_ACCEPTING,
    standing.Action.SAY_QUIESCED: Event.SAID_QUIESCED,
    standing.Action.SAY_RESUMED: Event.SAID_RESUMED,
    standing.Action.SAY_DRAINED: Event.SAID_DRAINED,
}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("recorded", STATES)
def test_every_state_and_every_word_is_known(recorded: State, word: str) -> None:
    state, _ = adoption.at_once(recorded)
    target, actions = adoption.identified(state, word, configured=True)
    assert target in TRANSITIONS and all(isinstance(action, Action) for action in actions)


@given(st.sampled_from(STATES), st.text(max_size=12))
def test_who_was_sent_away_stays_sent_away(recorded: State, word: str) -> None:
    state, _ = adoption.at_once(recorded)
    target, _ = adoption.identified(state, word, configured=True)
    assert recorded not in GOING or target in GOING


@given(
    st.sampled_from(STATES),
    st.sampled_from(["accepting", "quiesced", "draining", "drained", "from a newer one"]),
)
def test_a_worker_that_may_have_clients_is_never_killed_for_being_adopted(recorded: State, word: str) -> None:
    """Its clients are owed an answer: it drains at worst."""
    if recorded is State.KILLED:
        return
    state, first = adoption.at_once(recorded)
    _, actions = adoption.identified(state, word, configured=True)
    assert Action.SIGKILL not in (*first, *actions)


@pytest.mark.parametrize(
    "said", [s for s in standing.State if s not in (standing.State.FAREWELL, standing.State.LEAVING)]
)
@pytest.mark.parametrize("recorded", STATES)
def test_supervisor_and_worker_agree_in_the_end(recorded: State, said: standing.State) -> None:
    """The orders that are given again, obeyed by the worker's own table, lead both to the same place."""
    state, _ = adoption.at_once(recorded)
    state, actions = adoption.identified(state, said.value, configured=True)
    if Action.SIGKILL in actions or state in (State.KILLED, State.TERMINATED):
        return
    worker = said
    for action in actions:
        if action not in ORDERS:
            continue
        worker, answers = standing.step(worker, ORDERS[action])
        for answer in answers:
            if answer in SAYS:
                state, more = step(state, SAYS[answer])
                actions += more
    agree = {
        State.ACCEPTING: {standing.State.ACCEPTING},
        State.QUIESCED: {standing.State.QUIESCED, standing.State.READY},
        State.READY: {standing.State.READY},
        State.PROVEN: {standing.State.READY},
        State.LOADING: {standing.State.STARTING},
        State.DRAINING: {standing.State.DRAINING, standing.State.DRAINED},
        State.LEAVING: {standing.State.LEAVING, *standing.State},
    }
    assert state in agree, f"{recorded} and {said} end in {state}"
    assert worker in agree[state]


def test_who_never_got_its_configuration_gets_it_now() -> None:
    assert adoption.identified(State.SPAWNED, "starting", configured=False) == (
        State.LOADING,
        (Action.CONFIGURE,),
    )
    assert adoption.identified(State.LOADING, "starting", configured=False) == (
        State.LOADING,
        (Action.CONFIGURE,),
    )
    assert adoption.identified(State.LOADING, "starting", configured=True) == (State.LOADING, ())


def test_every_state_of_a_rollout_is_gone_on_with() -> None:
    assert set(adoption.AGAIN) == set(RolloutState)
