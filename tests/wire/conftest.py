"""Every connection of these tests is held against the table of core/connection.py."""

from collections.abc import Iterator

import pytest

from wire.serving import steps_outside_the_table, watched_connections


@pytest.fixture(autouse=True)
def no_step_outside_the_table() -> Iterator[None]:
    with watched_connections():
        yield
    assert steps_outside_the_table() == []
