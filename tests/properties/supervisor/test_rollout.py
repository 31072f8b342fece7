"""A rollout: what the table promises on every run, from the first event to the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.shared.errors import IllegalTransition
from quiesce.supervisor.core.adoption import AGAIN
from quiesce.supervisor.core.rollout import (
    DECIDING,
    TRANSITIONS,
    Action,
    Event,
    State,
    expects,
    phase,
    step,
)

LAST = {state for state, row in TRANSITIONS.items() if not row}
ROWS = [
    (state, event, target, actions)
    for state, row in TRANSITIONS.items()
    for event, (target, actions) in row.items()
]


class Run(NamedTuple):
    """One way through the table."""

    states: tuple[State, ...]
    events: tuple[Event, ...]
    actions: tuple[Action, ...]

    def index(self, action: Action) -> int:
        return self.actions.index(action)


BEGINNING = Run((State.STARTING,), (), ())


def complete_runs(run: Run = BEGINNING) -> Iterator[Run]:
    """Every run from the beginning to an end; events that change nothing are left out.

    It returns only because the table has no loops (tested below).
    """
    state = run.states[-1]
    if not TRANSITIONS[state]:
        yield run
    for event, (target, actions) in TRANSITIONS[state].items():
        if target is not state:
            yield from complete_runs(Run((*run.states, target), (*run.events, event), run.actions + actions))


def test_every_state_has_a_row_and_every_row_a_target() -> None:
    assert set(TRANSITIONS) == set(State)
    assert set(LAST) == {State.DONE, State.UNDONE}
    for state, event, target, _ in ROWS:
        assert target in TRANSITIONS, (state, event)


def test_every_action_and_event_is_used() -> None:
    again = {action for actions in AGAIN.values() for action in actions}
    assert again | {action for *_, actions in ROWS for action in actions} == set(Action)
    assert {event for _, event, *_ in ROWS} == set(Event)


def test_every_run_ends() -> None:
    """No state comes twice, but by an event that changes nothing and orders nothing; and no dead end but the two."""
    order: dict[State, int] = {}

    def depth(state: State, above: tuple[State, ...]) -> int:
        assert state not in above, f"a loop through {state}"
        if state not in order:
            targets = {target for target, _ in TRANSITIONS[state].values() if target is not state}
            assert targets or state in LAST
            order[state] = 1 + max((depth(target, (*above, state)) for target in targets), default=0)
        return order[state]

    depth(State.STARTING, ())
    assert set(order) == set(State)
    for state, event, target, actions in ROWS:
        assert target is not state or not actions, (state, event)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    found = list(complete_runs())
    assert len(found) > 10
    return found


def test_exactly_one_report_on_every_run(runs: list[Run]) -> None:
    for run in runs:
        done, undone = run.actions.count(Action.REPORT_DONE), run.actions.count(Action.REPORT_UNDONE)
        assert (done, undone) == ((1, 0) if run.states[-1] is State.DONE else (0, 1)), run


def test_a_run_commits_or_discards_and_never_both(runs: list[Run]) -> None:
    for run in runs:
        commits, discards = run.actions.count(Action.COMMIT), run.actions.count(Action.DISCARD_NEW)
        assert (commits, discards) == ((1, 0) if run.states[-1] is State.DONE else (0, 1)), run


def test_the_old_set_is_resumed_in_every_undo_after_the_new_one_was_admitted(runs: list[Run]) -> None:
    for run in runs:
        undone_late = run.states[-1] is State.UNDONE and Action.ADMIT_NEW in run.actions
        assert (Action.RESUME_OLD in run.actions) is undone_late, run
        if undone_late:  # a moment with both is better than a moment with none
            assert run.index(Action.RESUME_OLD) < run.index(Action.DISCARD_NEW)


def test_the_old_set_is_hushed_only_after_the_new_one_accepts(runs: list[Run]) -> None:
    for run in runs:
        if Action.HUSH_OLD in run.actions:
            assert run.index(Action.ADMIT_NEW) < run.index(Action.HUSH_OLD)
            assert Event.ALL_ACCEPTING in run.events


def test_nobody_is_admitted_without_proof_but_by_force(runs: list[Run]) -> None:
    for run in runs:
        if Action.ADMIT_NEW in run.actions:
            assert (Event.ALL_PROVEN in run.events) is not (Event.ALL_READY_FORCED in run.events)
            assert run.actions.count(Action.ADMIT_NEW) == 1
            assert (Action.PROBE_NEW in run.actions) is (Event.ALL_PROVEN in run.events)


def test_the_old_set_is_drained_only_after_the_commit(runs: list[Run]) -> None:
    for run in runs:
        if Action.DRAIN_OLD in run.actions:
            assert run.index(Action.COMMIT) < run.index(Action.DRAIN_OLD)
        assert (Action.DRAIN_OLD in run.actions) is (Action.COMMIT in run.actions)
        assert (Action.FINISH in run.actions) is (Action.COMMIT in run.actions)


def test_what_is_reported_as_done_is_recorded(runs: list[Run]) -> None:
    for run in runs:
        if Action.REPORT_DONE in run.actions:
            assert run.index(Action.COMMIT) < run.index(Action.REPORT_DONE)


def test_a_bake_that_was_armed_is_disarmed(runs: list[Run]) -> None:
    for run in runs:
        if Action.ARM_BAKE in run.actions:
            assert run.actions.count(Action.ARM_BAKE) == 1
            assert Action.DISARM in run.actions[run.index(Action.ARM_BAKE) :]


@pytest.mark.parametrize("state", sorted(DECIDING, key=str))
def test_while_it_is_decided_it_can_be_aborted_and_loses_no_worker_unnoticed(state: State) -> None:
    for event in (Event.ABORT, Event.NEW_LOST):
        target, _ = step(state, event)
        assert target is State.ROLLING_BACK


def test_what_is_decided_stays_decided() -> None:
    assert set(State) - DECIDING == {State.DRAINING, State.DONE, State.UNDONE}
    for state, _, target, actions in ROWS:
        assert state in DECIDING or target not in DECIDING
        assert (Action.COMMIT in actions) is (state in DECIDING and target is State.DRAINING)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(list(Event)), max_size=40))
def test_any_run_of_events(events: list[Event]) -> None:
    """The promises again, with events that repeat and events that come too late."""
    state, said = State.STARTING, []
    for event in events:
        if not expects(state, event):
            with pytest.raises(IllegalTransition, match=event.value):
                step(state, event)
            continue
        state, actions = step(state, event)
        said += actions
        assert not {Action.COMMIT, Action.DISCARD_NEW} <= set(said)
        assert len(said) == len(set(said)), "nothing is ordered twice"
        assert Action.HUSH_OLD not in said or Action.ADMIT_NEW in said
        reported = Action.REPORT_DONE in said or Action.REPORT_UNDONE in said
        assert reported is (state not in DECIDING)


def test_the_words_for_people() -> None:
    words = {"starting", "probing", "baking", "draining", "rolling_back", "idle"}
    assert {phase(state) for state in State} == words
    assert {phase(state) for state in LAST} == {"idle"}
    assert all(phase(state) != "idle" for state in DECIDING)
