"""What a worker's end is called."""

from __future__ import annotations

import signal

import pytest

from quiesce.shared.exitcodes import WorkerExit
from quiesce.supervisor.core.exits import _SIGNALS, Ended, describe
from quiesce.supervisor.core.lifecycle import State


@pytest.mark.parametrize(
    ("state", "ended", "sentence"),
    [
        (
            State.LOADING,
            Ended(status=1),
            "worker r4/1 exited with status 1 while it imported the application",
        ),
        (State.ACCEPTING, Ended(signal=11), "worker r4/1 was killed by SIGSEGV while it served"),
        (
            State.PROBING,
            Ended(signal=6),
            "worker r4/1 was killed by SIGABRT while it answered the health probe",
        ),
        (State.ACCEPTING, Ended(status=0), "worker r4/1 exited with status 0 while it served"),
        (State.QUIESCED, Ended(signal=34), "worker r4/1 was killed by signal 34 while it was quiesced"),
        (
            State.DRAINING,
            Ended(),
            "worker r4/1 ended while it drained (how, only the supervisor that had started it could have seen)",
        ),  # adopted: nobody can know
        (
            State.SPAWNED,
            Ended(status=WorkerExit.CONFIG),
            "worker r4/1 could not run in the release's interpreter",
        ),
        (State.SPAWNED, Ended(status=WorkerExit.NO_EXEC), "worker r4/1 could not be started"),
    ],
)
def test_who_how_and_in_the_middle_of_what(state: State, ended: Ended, sentence: str) -> None:
    assert describe("r4/1", state, ended) == sentence


def test_an_application_may_exit_with_our_numbers() -> None:
    """Only a process that has not said hello can have failed to run quiesce."""
    for status in (WorkerExit.CONFIG, WorkerExit.NO_EXEC, 2):
        assert describe("r4/1", State.ACCEPTING, Ended(status=status)).endswith("while it served")


def test_sigkill_that_was_not_ours_names_the_usual_suspect() -> None:
    assert "out-of-memory" in describe("r4/1", State.ACCEPTING, Ended(signal=9))
    assert describe("r4/1", State.ACCEPTING, Ended(signal=9), killed_for="did not answer") == (
        "worker r4/1 did not answer"
    )


def test_an_old_python_is_named() -> None:
    assert "3.11" in describe("r4/1", State.SPAWNED, Ended(status=2))


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("ended", [Ended(), Ended(status=1), Ended(signal=15), Ended(signal=9)])
def test_every_end_has_a_sentence_that_blames_nobody_wrongly(state: State, ended: Ended) -> None:
    sentence = describe("r4/1", state, ended)
    assert sentence.startswith("worker r4/1 ") and sentence == sentence.strip()
    # It is only asked for when we told the worker nothing.
    assert "told" not in sentence


def test_the_numbers_of_signals_are_right_here() -> None:
    for number, name in _SIGNALS.items():
        assert signal.Signals(number).name == name
