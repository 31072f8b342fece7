"""How many workers have died in one place, one after another."""

from __future__ import annotations

import json
import signal

import pytest

from quiesce.supervisor import status
from quiesce.supervisor.core.lifecycle import State
from unit.supervisor.house import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def restarts(house: House) -> dict[str, int]:
    document = json.loads(json.dumps(status.document(house.service)))
    return {worker["id"]: worker["restarts"] for worker in document["workers"]}


def kill(house: House, identity: str, number: int = signal.SIGKILL) -> None:
    (worker,) = [worker for worker in house.service.crew if worker.id == identity]
    signal.pidfd_send_signal(worker._process.pidfd, number)
    house.until(lambda: worker.state is State.REAPED)


def settled(house: House, count: int) -> None:
    serving = house.service.serving
    assert serving is not None
    house.until(lambda: serving.accepting() == len(serving.workers) == count)


def test_a_successor_counts_those_who_died_before_it_in_its_place(house: House) -> None:
    house.start(house.release("v1"))
    assert restarts(house) == {"r1/1": 0, "r1/2": 0}
    kill(house, "r1/1")
    settled(house, 2)
    assert restarts(house) == {"r1/2": 0, "r1/3": 1}
    kill(house, "r1/3")
    settled(house, 2)
    assert restarts(house) == {"r1/2": 0, "r1/4": 2}
    kill(house, "r1/4", signal.SIGTERM)
    settled(house, 2)
    assert restarts(house) == {"r1/2": 0, "r1/5": 2}, "renewed on somebody's word: it has not died"
    house.did("upgrade", release=str(house.release("v2")), bake=0)
    house.until(lambda: len(house.service.crew.generations) == 1)
    assert restarts(house) == {"r2/1": 0, "r2/2": 0}


def test_one_that_dies_while_its_successor_comes_has_left_its_place_already(house: House) -> None:
    first = house.release("v1")
    house.start(first)
    (first / "behaviour.json").write_text('{"mute": ["ready"]}')
    worker = next(worker for worker in house.service.crew if worker.id == "r1/1")
    signal.pidfd_send_signal(worker._process.pidfd, signal.SIGTERM)
    house.last("r1/1", "replacing")
    kill(house, "r1/1")
    house.turn_for(0.2)
    assert restarts(house) == {"r1/2": 0, "r1/3": 0}
    house.ask("scale", workers=3)
    house.until(lambda: restarts(house).get("r1/4") == 0)


def test_each_place_has_its_own_count_where_nobody_can_be_started_for_a_while(house: House) -> None:
    house.start(house.release("v1"))
    kill(house, "r1/1")
    settled(house, 2)
    reply = house.upgrade(house.release("v2"))
    house.in_bake()
    kill(house, "r1/3")
    kill(house, "r1/2")
    house.did("abort")
    house.until(lambda: reply.code is not None and len(house.service.crew.generations) == 1)
    settled(house, 2)
    assert sorted(restarts(house).values()) == [1, 2]


def test_a_place_that_is_not_wanted_any_more_is_forgotten(house: House) -> None:
    house.start(house.release("v1"), workers=3)
    python = house.python.read_text()
    house.python.unlink()
    kill(house, "r1/1")  # and nobody can take its place
    serving = house.service.serving
    assert serving is not None
    house.until(lambda: serving.vacancies)
    house.did("scale", workers=2)
    house.python.write_text(python)
    house.python.chmod(0o755)
    house.did("scale", workers=3)
    settled(house, 3)
    assert sum(restarts(house).values()) == 0
