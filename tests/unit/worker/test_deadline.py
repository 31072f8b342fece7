"""One sweep looks at all deadlines, in time for each; whoever is due soon has a timer."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.deadlines import Deadlines
from quiesce.worker.net import deadline
from quiesce.worker.net.deadline import Sweep, Timed

RECHECK_S = 20.0


class Loop:
    """Turned by the test, which is the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.deadlines = Deadlines()
        monkeypatch.setattr(deadline, "monotonic", lambda: self.now)

    def call_at(self, when: float, callback: Any) -> Any:
        return self.deadlines.at(when, callback)

    def go(self, until: float) -> None:
        """Call what is due, at its time."""
        while (wait_s := self.deadlines.wait_s(self.now)) is not None and self.now + wait_s <= until:
            self.now += wait_s
            while (due := self.deadlines.pop_due(self.now)) is not None:
                due()
        self.now = until


class Client(Timed):
    def __init__(self, house: House) -> None:
        super().__init__(None, house)  # type: ignore[arg-type]
        self.house = house
        self.late_at: float | None = None

    def late(self) -> None:
        self.late_at = self.house.loop.now
        self._deadline = inf
        del self.house.all[self]


class House:
    """A daemon's share of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop(monkeypatch)
        self.all: dict[Client, None] = {}
        self.sweeps: list[float] = []
        self.sweep = Sweep(self.loop, RECHECK_S, self)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        self.sweeps.append(self.loop.now)
        return iter(self.all)

    def client(self) -> Client:
        client = Client(self)
        self.all[client] = None
        return client


Steps = list[tuple[float, int, float, bool]]
"""So much later, this client, is due in so many seconds, and nobody is told (as by a thread)."""
STEPS = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.integers(0, 4),
        st.sampled_from((0.0, 0.001, 0.5, 1.0, 1.5, 7.0, 19.0, 75.0)),
        st.booleans(),
    ),
    max_size=30,
)


@given(steps=STEPS)
def test_everybody_is_late_at_its_time_and_the_sweep_comes_seldom(steps: Steps) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        house = House(monkeypatch)
        due: dict[Client, float] = {}
        clients = [house.client() for _ in range(5)]
        for client in clients:
            client.arm(10.0)
            due[client] = 10.0
        for later, number, seconds, is_stored in steps:
            house.loop.go(house.loop.now + later)
            client = clients[number]
            if client.late_at is not None:
                continue
            when = house.loop.now + seconds if seconds else inf
            if is_stored and when >= house.loop.now + RECHECK_S:
                client._deadline = when
            else:
                client.arm(seconds)
            due[client] = when
        house.loop.go(house.loop.now + 200)
        for client in clients:
            assert (inf if client.late_at is None else client.late_at) == pytest.approx(due[client])
        between = [after - before for before, after in zip(house.sweeps, house.sweeps[1:], strict=False)]
        assert all(0.999 < seconds < RECHECK_S + 0.001 for seconds in between)


def test_who_is_connected_and_not_due_soon_has_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    for number in range(100):
        house.client().arm(10.0 + number / 100)
    assert len(house.loop.deadlines) == 1
    house.loop.go(9.5)
    assert len(house.loop.deadlines) == 1
    house.loop.go(10.0)
    assert len(house.loop.deadlines) == 100  # the first is late; the sweep, and all others
    assert len(house.sweeps) == 1


def test_where_nobody_is_connected_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    client = house.client()
    client.arm(10.0)
    del house.all[client]
    house.sweep.rest()
    assert not house.loop.deadlines
    other = house.client()
    other.arm(0.0)  # nothing is due; but a thread may store something
    assert house.sweep.at == RECHECK_S
    del house.all[other]
    house.loop.go(RECHECK_S)
    assert not house.loop.deadlines and house.sweep.at == inf


def test_what_is_only_stored_is_seen_in_time_also_beside_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    client = house.client()
    client.arm(0.5)
    client._deadline = RECHECK_S  # by a thread
    house.loop.go(RECHECK_S)
    assert client.late_at == RECHECK_S
    hasty = House(monkeypatch)
    hasty.sweep._recheck_s = 0.2
    client = hasty.client()
    client.arm(0.5)
    hasty.loop.go(0.1)
    client._deadline = 0.3
    hasty.loop.go(0.5)
    assert client.late_at == pytest.approx(0.3)


def test_a_timer_is_set_again_when_its_client_is_due_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    client = house.client()
    client.arm(0.9)
    client.arm(0.3)
    assert len(house.loop.deadlines) == 2  # its own, and the sweep
    house.loop.go(0.3)
    assert client.late_at == 0.3
