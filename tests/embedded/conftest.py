"""Every connection of these tests is held against the table of core/connection.py."""

from collections.abc import Iterator
from typing import cast

import pytest

from embedded.serving import EXTERNAL, THREADED, Setup
from quiesce.worker.core.connection import State
from quiesce.worker.embedded import daemon
from quiesce.worker.embedded.client import Client
from wire.serving import WatchedConnection, steps_outside_the_table


class WatchedClient(Client):
    """Notes every step that is in no row of the table."""

    __slots__ = ("_now",)
    state = cast(State, WatchedConnection.state)


@pytest.fixture(autouse=True)
def no_step_outside_the_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(daemon, "Client", WatchedClient)
    yield
    assert steps_outside_the_table() == []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``setup`` runs in every mode; ``threaded`` and ``external`` in those alone."""
    for name, setups in (("setup", [*EXTERNAL, *THREADED]), ("threaded", THREADED), ("external", EXTERNAL)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, setups, ids=Setup.name)
