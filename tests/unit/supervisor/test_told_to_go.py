"""Somebody sends one worker SIGTERM: another one takes its place first, and then what it has moves there."""

from __future__ import annotations

import signal

import pytest

from quiesce.supervisor.core.lifecycle import State
from quiesce.supervisor.worker_link import Worker
from unit.supervisor.house import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def worker(house: House, identity: str) -> Worker:
    return next(worker for worker in house.service.crew if worker.id == identity)


def told_to_go(house: House, identity: str) -> None:
    """SIGTERM, and the supervisor has read what the worker said."""
    signal.pidfd_send_signal(worker(house, identity)._process.pidfd, signal.SIGTERM)
    house.until(lambda: house.heard(identity, "replacing"))


def gone(house: House, identity: str) -> None:
    house.until(lambda: identity not in [worker.id for worker in house.service.crew])


def well(house: House) -> None:
    assert "worker lost" not in house.log() and "connections lost" not in house.log()
    assert not house.service.upkeep.replaced, "nobody else could be recycled ever again"


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_until_its_successor_accepts_then_hands_over_and_goes(house: House, workers: int) -> None:
    house.start(house.release("v1", holds=10), workers=workers)
    told_to_go(house, "r1/1")
    least = workers

    def is_gone() -> bool:
        nonlocal least
        assert house.service.serving is not None
        least = min(least, house.service.serving.accepting())
        return "r1/1" not in [worker.id for worker in house.service.crew]

    house.until(is_gone)
    assert least == workers, "full strength all the time"
    assert house.last("r1/1", "drain")["lane"] == house.lane("r1").name
    house.until(lambda: house.took(f"r1/{workers}", f"r1/{workers + 1}") == 10)
    assert "worker is recycled" in house.log() and "SIGTERM" in house.log()
    well(house)


def test_all_that_are_told_at_once_are_replaced_together(house: House) -> None:
    house.start(house.release("v1"), workers=3)
    for number in (1, 2, 3):
        told_to_go(house, f"r1/{number}")
    for number in (1, 2, 3):
        gone(house, f"r1/{number}")
    assert sorted(worker.id for worker in house.service.crew) == ["r1/4", "r1/5", "r1/6"]
    well(house)


def test_who_is_told_to_go_as_soon_as_it_accepts_is_replaced_less_and_less_often(house: House) -> None:
    """A watchdog whose limit is below what one needs: it must not keep a processor busy with imports."""
    house.start(house.release("v1"), workers=1)
    serving = house.service.serving
    assert serving is not None
    for number in (1, 2, 3):
        told_to_go(house, f"r1/{number}")
        gone(house, f"r1/{number}")
    assert serving.backoff.quick_deaths == 3 and "crash loop" not in house.log()
    told_to_go(house, "r1/4")
    assert serving.backoff.not_before > house.loop.now() + 0.5
    assert serving.accepting() == 1, "it serves on until then"
    assert house.service.upkeep.replaced == {"r1/4"}


def test_while_nobody_accepts_its_successor_does_not_either(house: House) -> None:
    house.start(house.release("v1", holds=10), workers=2)
    house.did("quiesce", what="all")
    told_to_go(house, "r1/1")
    gone(house, "r1/1")
    words = [each["heard"] for each in house.heard("r1/3")]
    assert "accept" not in words and words[-1] == "quiesce"
    house.until(lambda: house.took("r1/2", "r1/3") == 10)
    well(house)


def test_one_that_was_set_aside_stands_in_no_others_way(house: House) -> None:
    house.start(house.release("v1"), workers=2)
    house.did("quiesce", what="r1/1")
    told_to_go(house, "r1/2")
    gone(house, "r1/2")
    states = {worker.id: worker.state for worker in house.service.crew}
    assert states == {"r1/1": State.QUIESCED, "r1/3": State.ACCEPTING}
    well(house)


@pytest.mark.parametrize("whose", ["r1/1", "r2/1"], ids=["of the old set", "of the new set"])
@pytest.mark.parametrize("ending", ["promote", "abort"])
def test_in_a_bake_it_waits_for_the_verdict(house: House, whose: str, ending: str) -> None:
    """Who was told to go is no reason to go back, and a set that may have to resume is complete."""
    house.start(house.release("v1", holds=5), workers=2)
    house.upgrade(house.release("v2"))
    house.in_bake()
    told_to_go(house, whose)
    house.turn_for(0.3)
    assert house.service.run is not None and house.service.run.is_baking
    assert len(list(house.service.crew)) == 4, "nobody was started, and nobody has gone"
    house.did(ending)
    gone(house, whose)
    house.until(lambda: len(house.service.crew.generations) == 1)
    serving = house.service.serving
    assert serving is not None
    house.until(lambda: serving.accepting() == len(serving.workers) == 2)
    well(house)


def test_a_rollout_finds_one_that_still_waits_for_its_successor(house: House) -> None:
    house.start(house.release("v1", holds=5), workers=2)
    (house.folder / "v1" / "behaviour.json").write_text('{"mute": ["ready"]}')  # it would wait for long
    told_to_go(house, "r1/1")
    house.did("upgrade", release=str(house.release("v2")), bake=0)
    house.until(lambda: len(house.service.crew.generations) == 1)
    assert house.took("r2/1", "r2/2") == 10
    well(house)


def test_fewer_are_wanted_before_the_successor_is_there(house: House) -> None:
    house.start(house.release("v1", holds=5), workers=2)
    (house.folder / "v1" / "behaviour.json").write_text('{"mute": ["ready"]}')
    told_to_go(house, "r1/1")
    house.did("scale", workers=1)
    gone(house, "r1/1")
    house.until(lambda: [worker.id for worker in house.service.crew] == ["r1/2"])
    well(house)


def test_an_instance_that_stops_replaces_nobody(house: House) -> None:
    house.start(house.release("v1", mute=["drained"]), workers=1)
    house.service.stop(now=False)
    house.last("r1/1", "drain")
    signal.pidfd_send_signal(worker(house, "r1/1")._process.pidfd, signal.SIGTERM)
    house.turn_for(0.3)
    assert [worker.id for worker in house.service.crew] == ["r1/1"]
    assert "worker is recycled" not in house.log()
