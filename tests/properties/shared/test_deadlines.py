"""Deadlines against the plainest model there is: a list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.shared.deadlines import Deadlines, Timer

# Few distinct times, so that ties are common; and the ends of the scale.
WHEN = st.one_of(st.integers(0, 8).map(float), st.floats(allow_nan=False))
STEP = st.one_of(
    st.tuples(st.just("at"), WHEN),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("pop"), WHEN),
    st.tuples(st.just("take"), WHEN),
    st.tuples(st.just("wait"), WHEN),
)


class Model:
    """What was set and is pending, as (when, order)."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, int]] = []
        self.fired: list[int] = []

    def due(self, now: float) -> list[tuple[float, int]]:
        return sorted(entry for entry in self.pending if entry[0] <= now)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_every_deadline_comes_up_once_in_order_and_never_early(steps: list[tuple[str, float]]) -> None:
    deadlines, model = Deadlines(), Model()
    timers: list[Timer] = []
    for what, value in steps:
        if what == "at":
            order = len(timers)
            timers.append(deadlines.at(value, lambda order=order: model.fired.append(order)))
            model.pending.append((value, order))
        elif what == "cancel" and timers:
            order = int(value) % len(timers)
            timers[order].cancel()
            model.pending = [entry for entry in model.pending if entry[1] != order]
        elif what == "pop":
            check_pop(deadlines, model, value)
        elif what == "take":
            expected = model.due(value)
            for callback in deadlines.take_due(value):
                callback()
            assert model.fired[len(model.fired) - len(expected) :] == [order for _, order in expected]
            model.pending = [entry for entry in model.pending if entry not in expected]
        elif what == "wait":
            check_wait(deadlines, model, value)
        assert len(deadlines) == len(model.pending)
        assert {n for n, timer in enumerate(timers) if timer.pending} == {n for _, n in model.pending}
    assert len(model.fired) == len(set(model.fired))


def check_pop(deadlines: Deadlines, model: Model, now: float) -> None:
    expected = model.due(now)[:1]
    callback = deadlines.pop_due(now)
    assert (callback is None) == (not expected)
    if callback is not None:
        callback()
        assert model.fired[-1] == expected[0][1]
        model.pending.remove(expected[0])


def check_wait(deadlines: Deadlines, model: Model, now: float) -> None:
    wait_s = deadlines.wait_s(now)
    earliest = min((when for when, _ in model.pending), default=float("inf"))
    if earliest == float("inf"):
        assert wait_s is None
    elif abs(now) != float("inf"):
        assert wait_s == max(0.0, earliest - now)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=200, max_size=600))
def test_cancelled_deadlines_do_not_pile_up(keep: list[bool]) -> None:
    deadlines = Deadlines()
    kept = 0
    for number, keeps in enumerate(keep):
        timer = deadlines.at(float(number), lambda: None)
        if keeps:
            kept += 1
        else:
            timer.cancel()
        assert len(deadlines) == kept
        assert len(deadlines._heap) <= 2 * kept + 66 + 1
    assert len(deadlines.take_due(float(len(keep)))) == kept
    assert len(deadlines) == 0 and not deadlines._heap
