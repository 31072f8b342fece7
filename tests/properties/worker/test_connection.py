"""The connection's table keeps its promises, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.errors import IllegalTransition
from quiesce.worker.core.connection import TRANSITIONS, Action, Event, State, step
from quiesce.worker.core.lane_record import STATES

WAITING = {State.FRESH, State.IDLE, State.HEAD}
events_ = st.lists(st.sampled_from(Event), max_size=60)


def _walk(events: list[Event]) -> list[tuple[State, Event, State, tuple[Action, ...]]]:
    """The steps that these events cause; events that cannot come in a state are left out."""
    state, steps = State.FRESH, []
    for event in events:
        if event in TRANSITIONS[state]:
            new, actions = step(state, event)
            steps.append((state, event, new, actions))
            state = new
    return steps


@given(events_)
def test_closed_exactly_once_and_nothing_follows(events: list[Event]) -> None:
    steps = _walk(events)
    ends = {Action.CLOSE, Action.RELEASE}
    closes = [i for i, (*_, actions) in enumerate(steps) if ends & set(actions)]
    assert len(closes) <= 1
    for i, (*_, new, actions) in enumerate(steps):
        assert (new is State.CLOSED) == (len(ends & set(actions)) == 1)
        assert new is not State.CLOSED or i == len(steps) - 1


@given(events_)
def test_no_close_without_fin_unless_the_client_has_gone_or_has_nothing(events: list[Event]) -> None:
    """A bare close after an answer can be a reset that eats it."""
    for old, event, _new, actions in _walk(events):
        if Action.CLOSE in actions:
            assert (
                old is State.LINGERING
                or event in (Event.LOST, Event.PEER_DONE)
                or (old, event) == (State.FLUSHING, Event.OVER)  # there can be no unread input
                or (
                    event is Event.DEADLINE
                    and old in {*WAITING, State.WORKING, State.SENDING, State.FLUSHING}
                )
            )


@given(events_)
def test_what_is_handed_over_owes_nobody_an_answer_and_says_nothing(events: list[Event]) -> None:
    """Somebody else goes on with the socket: not a byte, no FIN, no reset, and nothing half done is left behind."""
    unanswered = 0
    for old, event, new, actions in _walk(events):
        unanswered += event in (Event.REQUEST, Event.REQUEST_BODY, Event.REQUEST_STREAM)
        if event in (Event.ANSWERED, Event.ANSWERED_QUEUED, Event.ANSWERED_LAST):
            unanswered = 0
        if Action.RELEASE in actions:
            assert (old in WAITING, event, new) == (True, Event.HANDED_OVER, State.CLOSED)
            assert actions == (Action.RELEASE,)
            assert not unanswered
        assert Action.RELEASE in actions or event is not Event.HANDED_OVER


def test_it_can_leave_exactly_where_it_can_come_back_to() -> None:
    """A record names the state: each of them is one in which a connection can begin, and no other."""
    leaves = {state for state, row in TRANSITIONS.items() if Event.HANDED_OVER in row}
    assert leaves == WAITING == {State(name) for name in STATES}
    begins = {State.FRESH, step(State.FRESH, Event.CAME_IDLE)[0], step(State.FRESH, Event.BYTES)[0]}
    assert begins == leaves


def test_an_empty_line_in_two_parts_is_no_request() -> None:
    state, actions = step(step(State.IDLE, Event.BYTES)[0], Event.BLANK)
    assert (state, actions) == (State.IDLE, ())
    assert step(state, Event.DEADLINE) == (State.CLOSED, (Action.CLOSE,)), "silently, and with no 408"


@given(events_)
def test_one_answer_for_one_request(events: list[Event]) -> None:
    """Ours or the application's, and ours only while the application's is not complete."""
    open_requests = 0
    for old, event, _new, actions in _walk(events):
        if event in (Event.REQUEST, Event.REQUEST_BODY, Event.REQUEST_STREAM):
            assert open_requests == 0
            open_requests = 1
        said = {Action.SAY, Action.SAY_408, Action.SAY_503} & set(actions)
        answered = event in (Event.ANSWERED, Event.ANSWERED_QUEUED, Event.ANSWERED_LAST)
        assert not (said and answered)
        if answered:
            assert open_requests == 1
        if said:
            assert open_requests == 1 or old in WAITING
        if said or answered:
            open_requests = 0


@given(events_)
def test_application_is_called_once_a_request_and_told_when_nobody_listens(events: list[Event]) -> None:
    calls = 0
    running = False
    for old, event, new, actions in _walk(events):
        calls += Action.CALL in actions
        if Action.CALL in actions:
            assert not running
            running = True
        if event in (Event.ANSWERED, Event.ANSWERED_QUEUED, Event.ANSWERED_LAST):
            assert running
            running = False
        if running and new not in (State.WORKING, State.STREAMING):
            assert Action.TELL in actions, f"{old} {event} leaves the application alone"
            running = False
        assert Action.TELL not in actions or old in (State.WORKING, State.STREAMING)


@given(events_)
def test_no_next_request_before_the_last_answer_is_queued(events: list[Event]) -> None:
    for old, event, _new, _actions in _walk(events):
        if event in (Event.REQUEST, Event.REQUEST_BODY, Event.REQUEST_STREAM, Event.BYTES):
            assert old in WAITING


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_row_and_every_live_one_accepts_death(state: State) -> None:
    row = TRANSITIONS[state]
    if state is not State.CLOSED:
        assert row[Event.LOST][0] is State.CLOSED
        assert {Event.PEER_DONE, Event.DEADLINE, Event.END} <= set(row)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached(state: State) -> None:
    reached = {State.FRESH}
    while more := {new for old in reached for new, _ in TRANSITIONS[old].values()} - reached:
        reached |= more
    assert state in reached


@pytest.mark.parametrize("state", State)
def test_end_leads_to_the_end(state: State) -> None:
    """After END a connection has nowhere to go but out, so that every drain comes to its end."""
    if state is State.CLOSED:
        return
    new, _ = step(state, Event.END)
    assert new in (State.FLUSHING, State.LINGERING, State.CLOSED)
    leaving = {State.FLUSHING, State.LINGERING, State.CLOSED}
    for one in leaving:
        assert {to for to, _ in TRANSITIONS[one].values()} <= leaving


def test_no_row_is_a_bug() -> None:
    with pytest.raises(IllegalTransition, match="ANSWERED while a connection is IDLE"):
        step(State.IDLE, Event.ANSWERED)
