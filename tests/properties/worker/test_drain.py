"""The daemon's table keeps its promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.worker.core.drain import TRANSITIONS, Action, Event, State, step


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_listeners_timers_and_the_last_word(events: list[Event]) -> None:
    state, listening, armed, asked = State.QUIESCED, False, 0, 0
    for event in events:
        if event not in TRANSITIONS[state] or (event is Event.DEADLINE and not armed):
            continue
        asked = asked + (event is Event.DRAIN)
        armed -= event is Event.DEADLINE
        state, actions = step(state, event)
        for action in actions:
            assert action is not Action.LISTEN or not listening
            assert action is not Action.UNLISTEN or listening
            listening = action is Action.LISTEN or (listening and action is not Action.UNLISTEN)
            armed += (action is Action.ARM) - (action is Action.DISARM and armed > 0)
            if action is Action.SAY_DRAINED:
                asked -= 1
                assert asked >= 0, "said, and not asked"
        assert listening == (state is State.SERVING)
        assert armed in (0, 1)
        assert not armed or state is State.DRAINING
        asked = min(asked, 1)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_closed(state: State) -> None:
    assert step(state, Event.CLOSE)[0] is State.CLOSED


@pytest.mark.parametrize("state", [State.QUIESCED, State.DRAINING, State.DRAINED])
def test_every_quiesced_state_can_be_undone(state: State) -> None:
    """Rollback is resume: no process is started."""
    new, actions = step(state, Event.ACCEPT)
    assert new is State.SERVING and Action.LISTEN in actions
