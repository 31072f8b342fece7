"""Clocks, error tree and exit codes: small, and relied on by name or number."""

import time

import pytest

from quiesce.shared import errors
from quiesce.shared.clock import Clock, ManualClock, MonotonicClock
from quiesce.shared.exitcodes import Exit, WorkerExit


def test_the_real_clock_is_clock_monotonic() -> None:
    clock: Clock = MonotonicClock()
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    now = clock.now()
    assert before <= now <= time.clock_gettime(time.CLOCK_MONOTONIC)


def test_a_manual_clock_stands_until_it_is_turned() -> None:
    clock = ManualClock(5.0)
    assert clock.now() == clock.now() == 5.0
    clock.advance(1.5)
    assert clock.now() == 6.5
    with pytest.raises(AssertionError, match="backwards"):
        clock.advance(-1)


def test_exit_codes_are_an_api() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "DOWN": 3, "NO_INSTANCE": 4, "BUSY": 5, "INTERRUPTED": 130,
    }  # fmt: skip


def test_a_workers_exit_codes_are_read_by_supervisors_of_other_versions() -> None:
    assert {code.name: code.value for code in WorkerExit} == {
        "OK": 0, "SOFTWARE": 70, "APP_FAILED": 71, "PROTOCOL": 76, "NO_EXEC": 77, "CONFIG": 78,
    }  # fmt: skip


def test_one_tree_of_errors() -> None:
    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(cls, errors.QuiesceError) for cls in ours)
    # Whoever handles a channel's errors one by one must ask for this one first.
    assert issubclass(errors.PeerClosed, errors.ProtocolError)
    assert not issubclass(errors.FdPassingError, errors.ProtocolError)
