"""Every connection of these tests is held against the table of core/connection.py."""

from collections.abc import Iterator
from typing import cast

import pytest

from embedded.serving import EXTERNAL, THREADED
from quiesce.worker.core.connection import State
from quiesce.worker.embedded import reception
from quiesce.worker.embedded.client import Client
from wire.serving import WatchedConnection, steps_outside_the_table


class WatchedClient(Client):
    """Notes every step that is in no row of the table."""

    __slots__ = ("_now",)
    state = cast(State, WatchedConnection.state)


@pytest.fixture(autouse=True)
def no_step_outside_the_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reception, "Client", WatchedClient)
    yield
    assert steps_outside_the_table() == []


# Each mode once, and each way to wait; the other combinations are for `./dev test`.
QUICK = {"external-select-run_from_select", "thread-epoll", "pool-select", "thread_per_connection-poll"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``setup`` runs in every mode; ``threaded`` and ``external`` in those alone.

    A module may have fewer of them in ``./dev check``, by a ``QUICK`` of its own.
    """
    quick = getattr(metafunc.module, "QUICK", QUICK)
    for name, setups in (("setup", [*EXTERNAL, *THREADED]), ("threaded", THREADED), ("external", EXTERNAL)):
        if name in metafunc.fixturenames:
            marked = [
                pytest.param(setup, marks=() if setup.name() in quick else pytest.mark.slow, id=setup.name())
                for setup in setups
            ]
            metafunc.parametrize(name, marked)
