"""A plan for the fleet: performed, it leaves what was wanted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.supervisor.core.fleet import Member, plan
from quiesce.supervisor.core.lifecycle import COMING, GOING, State

STATES = st.sampled_from([state for state in State if state is not State.REAPED])
STAFF = st.lists(st.tuples(st.integers(1, 30), STATES), unique_by=lambda pair: pair[0], max_size=12)
WANTED = st.integers(0, 12)
TIME = st.sampled_from([0.0, 1.0, 2.0])


@settings(max_examples=100, deadline=None)
@given(WANTED, STAFF, TIME, TIME)
def test_performing_the_plan_gives_what_is_wanted(
    wanted: int, staff: list[tuple[int, State]], now: float, not_before: float
) -> None:
    members = [Member(*pair) for pair in staff]
    staying = {member.number: member for member in members if member.state not in GOING}
    todo = plan(wanted, members, now, not_before)
    assert not (todo.spawn and todo.retire)
    assert todo.spawn >= 0
    assert set(todo.retire) <= set(staying) and len(set(todo.retire)) == len(todo.retire)
    if todo.wake_at is not None:
        assert todo == (0, (), not_before) and now < not_before and len(staying) < wanted
        now = not_before
        todo = plan(wanted, members, now, not_before)
    assert len(staying) + todo.spawn - len(todo.retire) == wanted
    if todo.spawn:
        assert now >= not_before

    # And nothing is left to plan once that has been done.
    kept = [m._replace(state=State.DRAINING) if m.number in todo.retire else m for m in members]
    kept += [Member(100 + index, State.SPAWNED) for index in range(todo.spawn)]
    assert plan(wanted, kept, now, not_before) == (0, (), None)


def rank(member: Member) -> tuple[bool, bool, int]:
    return member.state in COMING, member.state is State.QUIESCED, member.number


@settings(max_examples=100, deadline=None)
@given(WANTED, STAFF)
def test_nobody_who_serves_goes_while_one_who_never_did_stays(
    wanted: int, staff: list[tuple[int, State]]
) -> None:
    members = {number: Member(number, state) for number, state in staff}
    retired = [members[number] for number in plan(wanted, list(members.values()), 0.0, 0.0).retire]
    stayed = [m for m in members.values() if m.state not in GOING and m not in retired]
    for gone in retired:
        for other in stayed:
            assert rank(gone) > rank(other)
