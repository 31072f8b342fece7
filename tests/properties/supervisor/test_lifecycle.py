"""A worker's life: what the table promises, whatever happens in whatever order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.shared.errors import IllegalTransition
from quiesce.supervisor.core import adoption
from quiesce.supervisor.core.lifecycle import (
    COMING,
    GOING,
    MAY_ACCEPT,
    SERVING,
    TRANSITIONS,
    Action,
    Event,
    State,
    said_by_worker,
    step,
)
from quiesce.worker.core import standing

LIVE = [state for state in State if state is not State.REAPED]
SAID = [event for event in Event if said_by_worker(event)]
ARMS = {Action.ARM_PROBE, Action.ARM_ANSWER, Action.ARM_DRAIN, Action.ARM_EXIT}
ROWS = [
    (state, event, target, actions)
    for state, row in TRANSITIONS.items()
    for event, (target, actions) in row.items()
]
RUNS = st.lists(st.sampled_from(list(Event)), max_size=40)


def armed_after(armed: bool, event: Event, actions: tuple[Action, ...]) -> bool:
    """Whether the one deadline runs, after a step's actions were performed in order."""
    armed = armed and event is not Event.DEADLINE
    for action in actions:
        if action in ARMS:
            armed = True
        elif action is Action.DISARM:
            armed = False
    return armed


def explore() -> set[tuple[State, bool]]:
    """Every (state, is a deadline armed) that can be reached from the spawn, which arms the first one."""
    seen = {(State.SPAWNED, True)}
    todo = deque(seen)
    while todo:
        state, armed = todo.popleft()
        for event, (target, actions) in TRANSITIONS[state].items():
            if event is Event.DEADLINE and not armed:
                continue
            found = (target, armed_after(armed, event, actions))
            if found not in seen:
                seen.add(found)
                todo.append(found)
    return seen


REACHED = explore()


# -- the shape of the table -----------------------------------------------------------------


def test_every_state_has_a_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, _ in REACHED} == set(State)


def test_every_row_leads_to_a_state_by_known_actions() -> None:
    for state, event, target, actions in ROWS:
        assert isinstance(event, Event)
        assert target in TRANSITIONS, (state, event)
        assert all(isinstance(action, Action) for action in actions), (state, event)


def test_every_action_and_event_is_used() -> None:
    taking_over = [*adoption.AT_ONCE.values()]
    taking_over += [step for rows in adoption.IDENTIFIED.values() for step in rows.values()]
    used = {action for *_, actions in ROWS for action in actions}
    assert used | {action for _, actions in taking_over for action in actions} == set(Action)
    assert {event for _, event, *_ in ROWS} == set(Event)


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("event", [Event.EXITED, Event.DRAIN_ASKED, Event.LEAVE_ASKED, Event.CHANNEL_LOST])
def test_every_live_state_accepts_death_and_the_order_to_go(state: State, event: Event) -> None:
    target, _ = step(state, event)
    assert target in GOING
    if event is Event.EXITED:
        assert target is State.REAPED


def test_nothing_follows_the_reaper() -> None:
    assert TRANSITIONS[State.REAPED] == {}


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("event", SAID)
def test_a_word_has_a_row_or_is_refused_in_plain_words(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        step(state, event)
        return
    with pytest.raises(IllegalTransition) as caught:
        step(state, event)
    assert event.value in str(caught.value) and state.value in str(caught.value)
    assert "Event" not in str(caught.value) and "State" not in str(caught.value)


def test_only_words_are_said_by_the_worker() -> None:
    assert {event.name for event in SAID} == {event.name for event in Event if event.name.startswith("SAID_")}


def test_the_groups_of_states_fit_together() -> None:
    assert not COMING & GOING and not COMING & SERVING and not MAY_ACCEPT & GOING
    assert MAY_ACCEPT <= SERVING
    assert set(State) == COMING | GOING | SERVING


@pytest.mark.parametrize("state", list(State))
def test_whoever_serves_and_stays_can_be_quiesced_and_resumed(state: State) -> None:
    """What commands and undo look at is only whether a worker is coming or going."""
    if state not in COMING and state not in GOING:
        assert step(state, Event.QUIESCE_ASKED)[0] in (State.QUIESCING, State.QUIESCED)
        assert step(state, Event.RESUME_ASKED)[0] in (State.ADMITTED, State.ACCEPTING, State.RESUMING)


def test_a_probe_is_asked_on_the_way_into_probing_and_nowhere_else() -> None:
    for state, event, target, actions in ROWS:
        assert (Action.PROBE in actions) is (target is State.PROBING), (state, event)
        assert (event is Event.PROBE_PASSED and state is State.PROBING) is (
            target is State.PROVEN and state is not State.PROVEN
        ), (state, event)


# -- deadlines ------------------------------------------------------------------------------


def test_a_deadline_is_armed_exactly_where_the_table_has_a_row_for_it() -> None:
    for state in State:
        armed = {is_armed for reached, is_armed in REACHED if reached is state}
        assert armed == {Event.DEADLINE in TRANSITIONS[state]}, state


def test_one_step_arms_at_most_once_and_never_disarms_what_it_armed() -> None:
    for state, event, _, actions in ROWS:
        arms = [index for index, action in enumerate(actions) if action in ARMS]
        assert len(arms) <= 1, (state, event)
        assert not arms or Action.DISARM not in actions[arms[0] :], (state, event)


@settings(max_examples=200, deadline=None)
@given(RUNS)
def test_killed_at_most_once_and_nothing_is_armed_at_the_end(events: list[Event]) -> None:
    state, armed, kills = State.SPAWNED, True, 0
    for event in events:
        if event not in TRANSITIONS[state] or (event is Event.DEADLINE and not armed):
            continue
        state, actions = step(state, event)
        armed = armed_after(armed, event, actions)
        kills += actions.count(Action.SIGKILL)
        assert kills <= 1
        assert armed is (Event.DEADLINE in TRANSITIONS[state])
        assert not (armed and state in (State.KILLED, State.REAPED))


# -- who accepts, and who leaves ----------------------------------------------------------------


def test_there_is_no_way_back_from_going() -> None:
    for state, event, target, _ in ROWS:
        assert state not in GOING or target in GOING, (state, event)


def test_nobody_says_accept_to_a_worker_on_its_way_out() -> None:
    for state, event, _, actions in ROWS:
        if state in GOING:
            assert not {Action.SEND_ACCEPT, Action.SEND_RESUME, Action.PROBE} & set(actions), (state, event)


def test_the_order_to_accept_comes_once_and_only_after_the_proof_or_by_force() -> None:
    sends = [(state, event) for state, event, _, actions in ROWS if Action.SEND_ACCEPT in actions]
    assert set(sends) == {(State.PROVEN, Event.ACCEPT_ASKED), (State.READY, Event.ACCEPT_ASKED)}
    for state, event, target, actions in ROWS:
        entering = state in COMING and target in MAY_ACCEPT
        held = event is Event.QUIESCE_ASKED and state in (
            State.PROVEN,
            State.READY,
        )  # `resume` is yet to come
        assert entering is (Action.SEND_ACCEPT in actions or held), (state, event)
        assert state in COMING or target not in COMING, (state, event)  # so it is never proven again


@settings(max_examples=200, deadline=None)
@given(RUNS, st.booleans())
def test_a_worker_accepts_only_when_proven_or_forced(events: list[Event], forced: bool) -> None:
    state, proven, accepts = State.SPAWNED, False, 0
    for event in events:
        unasked = state is State.READY and not forced  # nobody is let in there, at once or after a `resume`
        if event not in TRANSITIONS[state] or (
            unasked and event in (Event.ACCEPT_ASKED, Event.QUIESCE_ASKED)
        ):
            continue
        state, actions = step(state, event)
        proven = proven or event is Event.PROBE_PASSED
        accepts += actions.count(Action.SEND_ACCEPT)
        assert accepts <= 1
        assert state not in MAY_ACCEPT or proven or forced


@settings(max_examples=150, deadline=None)
@given(
    RUNS, st.sampled_from([Event.DRAIN_ASKED, Event.LEAVE_ASKED]), st.lists(st.sampled_from(SAID), max_size=6)
)
def test_a_worker_that_was_told_to_go_ends(events: list[Event], order: Event, words: list[Event]) -> None:
    """From anywhere, deadlines alone bring it to SIGKILL, whatever it still says; its end ends it."""
    state = State.SPAWNED
    for event in events:
        if event in TRANSITIONS[state]:
            state, _ = step(state, event)
    if state is State.REAPED:
        return
    state, _ = step(state, order)
    for word in words:
        if word in TRANSITIONS[state]:
            state, _ = step(state, word)
    deadlines = 0
    while Event.DEADLINE in TRANSITIONS[state]:
        state, _ = step(state, Event.DEADLINE)
        deadlines += 1
        assert deadlines <= 3
    assert state is State.KILLED
    assert step(state, Event.EXITED)[0] is State.REAPED


def test_a_shutdown_is_only_sent_to_who_has_no_clients_left() -> None:
    for state, event, _, actions in ROWS:
        if Action.SEND_SHUTDOWN in actions:
            assert state in COMING or event is Event.SAID_DRAINED, (state, event)


# -- the table against a worker that obeys ------------------------------------------------------

_ORDER = {
    Action.SEND_ACCEPT: standing.Event.ACCEPT,
    Action.SEND_QUIESCE: standing.Event.QUIESCE,
    Action.SEND_RESUME: standing.Event.RESUME,
    Action.SEND_DRAIN: standing.Event.DRAIN,
    Action.SEND_DRAIN_NOW: standing.Event.DRAIN,
    Action.SEND_SHUTDOWN: standing.Event.SHUTDOWN,
    Action.CONFIGURE: standing.Event.LOADED,
}
_WORD = {
    standing.Action.SAY_READY: Event.SAID_READY,
    standing.Action.SAY_ACCEPTING: Event.SAID_ACCEPTING,
    standing.Action.SAY_QUIESCED: Event.SAID_QUIESCED,
    standing.Action.SAY_RESUMED: Event.SAID_RESUMED,
    standing.Action.SAY_DRAINED: Event.SAID_DRAINED,
}
ASKED = [event for event in Event if event.name.endswith("_ASKED")]
UNDER_WAY = 3  # orders and words each: enough for "resume, quiesce, resume" and its answers


class Pair(NamedTuple):
    """Both tables with a channel between them, in which orders and words may be under way."""

    ours: State = State.SPAWNED
    theirs: standing.State = standing.State.STARTING
    orders: tuple[standing.Event, ...] = ()
    words: tuple[Event, ...] = (Event.SAID_HELLO,)

    def after(self, event: Event) -> Pair:
        """The supervisor's step."""
        ours, actions = step(self.ours, event)
        orders = tuple(_ORDER[action] for action in actions if action in _ORDER)
        pair = self._replace(ours=ours, orders=self.orders + orders)
        return pair.obeyed(standing.Event.TOLD_TO_GO) if Action.SIGTERM in actions else pair

    def heard(self) -> Pair:
        return self._replace(words=self.words[1:]).after(self.words[0])

    def obeyed(self, order: standing.Event) -> Pair:
        """The worker's step."""
        theirs, actions = standing.step(self.theirs, order)
        return self._replace(theirs=theirs, words=self.words + tuple(_WORD[a] for a in actions if a in _WORD))

    def read(self) -> Pair:
        return self._replace(orders=self.orders[1:]).obeyed(self.orders[0])

    def next(self) -> Iterator[Pair]:
        """All that may happen now."""
        if self.words:
            yield self.heard()
        if self.orders:
            yield self.read()
        if standing.Event.EMPTY in standing.TRANSITIONS[self.theirs]:
            yield self.obeyed(standing.Event.EMPTY)
        for event in (*ASKED, Event.PROBE_PASSED):
            if event in TRANSITIONS[self.ours] and len(self.orders) < UNDER_WAY:
                yield self.after(event)


@pytest.fixture(scope="module")
def pairs() -> set[Pair]:
    """Everything that a supervisor and a worker that obeys can come to, at any speed of either."""
    seen = {Pair()}
    todo = deque(seen)
    while todo:
        pair = todo.popleft()
        try:
            found = {after for after in pair.next() if len(after.words) <= UNDER_WAY}
        except IllegalTransition as exc:
            pytest.fail(f"an obedient worker spoke out of turn: {exc}, in {pair}")
        todo.extend(found - seen)
        seen |= found
    return seen


def test_an_obedient_worker_never_speaks_out_of_turn(pairs: set[Pair]) -> None:
    assert {pair.ours for pair in pairs} >= set(State) - {State.REAPED, State.TERMINATED}
    assert {pair.theirs for pair in pairs} >= set(standing.State) - {standing.State.FAREWELL}


def test_when_all_is_said_both_are_of_one_mind(pairs: set[Pair]) -> None:
    serving = {
        State.ACCEPTING: standing.State.ACCEPTING,
        State.QUIESCED: standing.State.QUIESCED,
        State.DRAINING: standing.State.DRAINING,
        State.LEAVING: standing.State.LEAVING,
    }
    for pair in pairs:
        if pair.orders or pair.words or pair.ours is State.KILLED:
            continue
        expected = serving.get(pair.ours, standing.State.READY)
        assert pair.theirs is expected, pair
        assert pair.ours not in (State.ADMITTED, State.QUIESCING, State.RESUMING), "an answer is missing"


def test_who_may_not_accept_has_read_or_will_read_that_it_may_not(pairs: set[Pair]) -> None:
    """Outside MAY_ACCEPT a worker accepts nothing once it has read its channel, which it does before each accept."""
    for pair in pairs:
        while pair.ours not in MAY_ACCEPT and pair.ours is not State.KILLED and pair.orders:
            pair = pair.read()
        if pair.ours not in MAY_ACCEPT and pair.ours is not State.KILLED:
            assert pair.theirs is not standing.State.ACCEPTING, pair
