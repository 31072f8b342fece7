"""The corners of the deadlines that the properties do not name."""

import pytest

from quiesce.shared.deadlines import Deadlines


def nothing() -> None: ...


def test_two_deadlines_of_one_time_come_up_as_they_were_set() -> None:
    deadlines, seen = Deadlines(), []
    for number in range(20):
        deadlines.at(5.0, lambda number=number: seen.append(number))
    for callback in deadlines.take_due(5.0):
        callback()
    assert seen == list(range(20))


def test_nan_is_no_time() -> None:
    """In the heap it would stand in front of others for ever."""
    with pytest.raises(ValueError, match="NaN"):
        Deadlines().at(float("nan"), nothing)


def test_infinity_never_comes_up_and_nobody_waits_for_it() -> None:
    deadlines = Deadlines()
    deadlines.at(float("inf"), nothing)
    assert deadlines.wait_s(1.0) is None
    assert deadlines.pop_due(1e300) is None and len(deadlines) == 1
    deadlines.at(3.0, nothing)
    assert deadlines.wait_s(1.0) == 2.0


def test_cancelling_twice_or_after_it_came_up_counts_once() -> None:
    deadlines = Deadlines()
    first, second = deadlines.at(1.0, nothing), deadlines.at(2.0, nothing)
    assert deadlines.pop_due(1.0) is nothing
    first.cancel()
    second.cancel()
    second.cancel()
    assert len(deadlines) == 0 and not first.pending and not second.pending
    assert deadlines.wait_s(0.0) is None and deadlines.pop_due(9.0) is None
    assert len(deadlines) == 0


def test_a_callback_cancels_the_next_one_when_they_are_taken_one_by_one() -> None:
    deadlines, seen = Deadlines(), []
    second = deadlines.at(2.0, lambda: seen.append("second"))
    deadlines.at(1.0, second.cancel)
    while (callback := deadlines.pop_due(2.0)) is not None:
        callback()
    assert seen == []


def test_a_cancelled_timer_lets_go_of_its_callback() -> None:
    """It would keep a connection alive until its time had come."""
    import weakref

    class Connection:
        def expire(self) -> None: ...

    connection = Connection()
    gone = weakref.ref(connection)
    timer = Deadlines().at(60.0, connection.expire)
    timer.cancel()
    del connection
    assert gone() is None
