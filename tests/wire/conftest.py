"""Every connection of these tests is held against the table of core/connection.py."""

from collections.abc import Iterator

import pytest

from quiesce.worker import daemon
from wire.serving import WatchedConnection, steps_outside_the_table


@pytest.fixture(autouse=True)
def no_step_outside_the_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(daemon, "Connection", WatchedConnection)
    yield
    assert steps_outside_the_table() == []
