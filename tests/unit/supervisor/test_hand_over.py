"""Who hands over to whom: a whole service, its workers played by processes that speak the real channel."""

from __future__ import annotations

import json
import signal

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.scoreboard import Field
from quiesce.supervisor import upkeep, worker_lanes, worker_link
from quiesce.supervisor.core.lifecycle import State
from quiesce.supervisor.lanes import Lane
from unit.supervisor.house import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


# -- a rollout ------------------------------------------------------------------------------


def test_the_old_ones_hand_over_to_the_new_ones_and_upgrade_says_how_many(house: House) -> None:
    house.start(house.release("v1", holds=40))
    old = house.lane("r1")
    words = [n["heard"] for n in house.heard("r1/1")]
    assert words[words.index("probe") + 1 :][:2] == ["lane", "accept"], "not before it has passed its probe"
    assert house.heard("r1/1", "lane")[0]["names"] == [old.name]
    reply = house.upgrade(house.release("v2"))
    house.in_bake()
    new = house.lane("r2")
    assert new.name != old.name
    for worker in ("r1/1", "r1/2"):
        quiesce = house.last(worker, "quiesce")
        assert (quiesce["lane"], quiesce["fds"]) == (new.name, 2)
        assert (quiesce["lane_version"], quiesce["readers"]) == (msg.LANE_VERSION, 2)
    house.until(lambda: house.took("r2/1", "r2/2") == 80)
    assert not old.ended and not house.eof("r1/1", old), "it can still be resumed"
    assert house.did("promote")
    house.until(lambda: reply.code is not None)
    assert reply.code == 0 and "; 80 connections kept, 0 closed" in reply.text
    for worker in ("r1/1", "r1/2"):
        assert house.last(worker, "drain")["lane"] == new.name
        house.until(lambda worker=worker: house.eof(worker, old))
    house.until(lambda: len(house.service.crew.generations) == 1)
    assert house.service.crew.lanes.get(old.key) is None, "closed with its generation"


def test_the_bake_begins_when_all_have_handed_over_or_had_their_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_lanes, "MOVING_S", 0.3)
    house.start(house.release("v1", mute=["handed-over"]), workers=1)
    house.upgrade(house.release("v2"))
    worker = house.service.crew.generations[0].workers[1]
    house.until(lambda: worker.state is State.QUIESCED)
    run = house.service.run
    assert run is not None and run.state.value == "hushing", "it may still answer on what it has not moved"
    house.in_bake()
    assert "worker still hands over" in house.log()


def test_going_back_what_was_handed_over_comes_back_the_same_way(house: House) -> None:
    house.start(house.release("v1", holds=20))
    reply = house.upgrade(house.release("v2", holds=1))
    house.in_bake()
    old, new = house.lane("r1"), house.lane("r2")
    house.until(lambda: house.took("r2/1", "r2/2") == 40)
    house.did("abort")
    assert reply.code == 1
    for worker in ("r1/1", "r1/2"):
        words = [n["heard"] for n in house.heard(worker)]
        assert words[words.index("quiesce") :][:3] == ["quiesce", "lane", "resume"]
        assert house.last(worker, "lane")["names"] == [new.name]
        house.until(lambda worker=worker: house.eof(worker, new))
    for worker in ("r2/1", "r2/2"):
        drain = house.last(worker, "drain")
        assert (drain["lane"], drain["readers"]) == (old.name, 2)
    house.until(lambda: len(house.service.crew.generations) == 1)
    house.until(lambda: house.took("r1/1", "r1/2") == 42)
    assert not old.ended


def test_what_lies_in_the_lane_of_a_release_that_died_in_its_bake_is_read_by_the_old_ones(
    house: House,
) -> None:
    house.start(house.release("v1", holds=20), workers=1)
    reply = house.upgrade(house.release("v2", holds=7, deaf=True))
    house.in_bake()
    assert house.lane("r2").depth() == 20
    dead = house.service.crew.generations[-1].workers[1]
    house.until(lambda: dead.counter(Field.CONN_OPEN) == 7)
    signal.pidfd_send_signal(dead._process.pidfd, signal.SIGKILL)
    house.until(lambda: reply.code is not None)
    house.until(lambda: house.took("r1/1") == 20)
    assert reply.code == 1 and "; 7 connections went with it" in reply.text, reply.text


def killed(house: House, generation: int) -> None:
    """All of them, at once."""
    workers = list(house.service.crew.generations[generation])
    for worker in workers:
        signal.pidfd_send_signal(worker._process.pidfd, signal.SIGKILL)
    house.until(lambda: all(worker.state is State.REAPED for worker in workers))


def taken_out_of(house: House, lane: Lane) -> int:
    """How many so far, whatever was shed by one who had taken more than its share."""
    return sum(news["took"] for news in house.news if "took" in news and news["lane"] == lane.name)


def test_if_all_old_ones_die_in_the_bake_and_then_all_new_ones_nobody_in_the_lane_is_lost(
    house: House,
) -> None:
    """Nobody is there to read it when the new release is given up; those who take the old ones' place do."""
    house.start(house.release("v1", holds=20))
    (house.folder / "v1" / "behaviour.json").write_text("{}")
    reply = house.upgrade(house.release("v2", deaf=True))
    house.in_bake()
    lane = house.lane("r2")
    assert lane.depth() == 40
    killed(house, 0)
    killed(house, -1)
    house.until(lambda: reply.code is not None)
    assert reply.code != 0
    house.until(lambda: taken_out_of(house, lane) == 40)
    house.until(lambda: len(house.service.crew.generations) == 1)
    assert "connections lost" not in house.log()
    assert house.service.crew.lanes.get(lane.key) is None, "closed once it is empty"


def test_and_if_nobody_can_take_the_old_ones_place_the_next_release_that_serves_reads_it(
    house: House,
) -> None:
    house.start(house.release("v1", holds=20))
    reply = house.upgrade(house.release("v2", deaf=True))
    house.in_bake()
    lane = house.lane("r2")
    assert lane.depth() == 40
    (house.folder / "v1" / "behaviour.json").write_text('{"mute": ["ready"]}')
    killed(house, 0)
    killed(house, -1)
    house.until(lambda: reply.code is not None)
    house.turn_for(1.5 * upkeep.TICK_S)
    assert lane.depth() == 40, "it waits, and so do they"
    house.did("upgrade", release=str(house.release("v3")), bake=0)
    house.until(lambda: taken_out_of(house, lane) == 40)
    house.until(lambda: len(house.service.crew.generations) == 1)
    assert "connections lost" not in house.log()


def test_a_release_that_knows_no_lanes_gets_none_and_is_waited_for_as_before(house: House) -> None:
    house.start(house.release("v1", holds=3, lane_version=0, mute=["handed-over"]))
    house.upgrade(house.release("v2"))
    house.in_bake()
    assert not house.heard("r1/1", "lane") and house.last("r1/1", "quiesce")["fds"] == 0
    house.did("promote")
    house.until(lambda: len(house.service.crew.generations) == 1)
    # And the other way round: nobody there would read what is sent.
    house.upgrade(house.release("v3", lane_version=0))
    house.in_bake()
    quiesce = house.last("r2/1", "quiesce")
    assert quiesce["fds"] == 0 and quiesce["lane"] == ""
    house.did("promote")
    assert house.last("r2/1", "drain")["lane"] == ""


def test_the_oldest_record_among_the_readers_is_written(house: House) -> None:
    house.start(house.release("v1"), workers=1)
    house.upgrade(house.release("v2", lane_version=1))
    house.in_bake()
    assert house.last("r1/1", "quiesce")["lane_version"] == 1


def test_who_still_drains_into_a_release_that_goes_hands_over_to_its_successor(house: House) -> None:
    house.start(house.release("v1", mute=["drained"]), workers=1)
    house.upgrade(house.release("v2", mute=["drained"]), force=True)
    house.until(lambda: house.heard("r1/1", "drain"))
    assert house.last("r1/1", "drain")["lane"] == house.lane("r2").name
    house.until(lambda: house.service.run is None)
    house.upgrade(house.release("v3"), force=True)
    house.until(lambda: len(house.heard("r1/1", "drain")) == 2)
    assert house.last("r1/1", "drain")["lane"] == house.lane("r3").name


def test_a_worker_that_was_quiesced_by_hand_lets_the_new_release_have_what_it_kept(house: House) -> None:
    house.start(house.release("v1", holds=5), workers=2)
    house.did("quiesce", what="r1")
    assert house.last("r1/1", "quiesce")["lane"] == "", "nobody would read it"
    house.did("resume", what="r1/2")
    house.upgrade(house.release("v2"))
    house.in_bake()
    assert house.last("r1/1", "quiesce")["lane"] == house.lane("r2").name
    house.until(lambda: house.took("r2/1", "r2/2") == 10)
    house.did("abort")
    # It stays quiesced, and is not to fill the lane of a release that is gone.
    house.until(lambda: house.last("r1/1", "quiesce")["lane"] in ("", house.lane("r1").name))
    assert not house.heard("r1/1", "resume")


# -- without a rollout -----------------------------------------------------------------------


def test_scaling_down_hands_over_to_those_who_stay(house: House) -> None:
    house.start(house.release("v1", holds=10), workers=3)
    lane = house.lane("r1")
    house.did("scale", workers=1)
    for worker in ("r1/2", "r1/3"):
        drain = house.last(worker, "drain")
        assert (drain["lane"], drain["readers"]) == (lane.name, 1), "the other one goes, too"
    house.until(lambda: len(house.service.crew.generations[0].workers) == 1)
    house.until(lambda: house.took("r1/1") == 20)
    assert not lane.ended


def test_a_worker_that_is_set_aside_hands_over_unless_it_is_the_last(house: House) -> None:
    house.start(house.release("v1", holds=10))
    reply = house.did("quiesce", what="r1/1")
    assert house.last("r1/1", "quiesce")["lane"] == house.lane("r1").name
    assert reply.text == "r1/1: 1 worker is quiesced; 10 connections went to others of its release"
    house.until(lambda: house.took("r1/2") == 10)
    house.did("quiesce", what="r1/2")
    assert house.last("r1/2", "quiesce")["lane"] == ""
    house.did("resume", what="all")


def test_all_that_are_held_keep_what_they_have(house: House) -> None:
    house.start(house.release("v1", holds=10))
    house.did("quiesce", what="r1/1")
    house.service.upkeep.hold()  # as `quiesce all`, a `drain` and SIGWINCH do
    for worker in ("r1/1", "r1/2"):
        house.until(lambda worker=worker: house.last(worker, "quiesce")["lane"] == "")


def test_a_worker_that_is_respawned_while_all_are_held_reads_the_lane_and_logs_for_itself_once_it_accepts(
    house: House,
) -> None:
    house.start(house.release("v1", holds=10))
    house.did("quiesce", what="all")
    next(worker for worker in house.service.crew if worker.id == "r1/1").fail("the test kills it")
    house.until(lambda: house.last("r1/3", "quiesce")["lane"] == "")
    words = [each["heard"] for each in house.heard("r1/3")]
    assert words[words.index("probe") + 1 :][:2] == ["lane", "quiesce"] and "accept" not in words
    house.did("resume", what="all")
    house.until(lambda: "log" in [each["heard"] for each in house.heard("r1/3")])


@pytest.mark.parametrize("ending", ["promote", "abort"])
def test_an_upgrade_while_all_are_held_moves_everybody_and_nobody_accepts(house: House, ending: str) -> None:
    house.start(house.release("v1", holds=20))
    house.did("quiesce", what="all")
    reply = house.upgrade(house.release("v2"))
    house.in_bake()
    house.until(lambda: house.took("r2/1", "r2/2") == 40)
    old, new = house.lane("r1"), house.lane("r2")
    for worker in ("r2/1", "r2/2"):
        words = [n["heard"] for n in house.heard(worker)]
        assert words[words.index("probe") + 1 :][:2] == ["lane", "quiesce"] and "accept" not in words
    house.did(ending)
    house.until(lambda: reply.code is not None)
    house.until(lambda: len(house.service.crew.generations) == 1)
    if ending == "promote":
        assert reply.code == 0 and "; 40 connections kept, 0 closed" in reply.text
        assert house.last("r1/1", "drain")["lane"] == new.name
        house.did("resume", what="all")
        assert {worker.state for worker in house.service.crew} == {State.ACCEPTING}
        return
    assert reply.code == 1 and not old.ended
    house.until(lambda: house.took("r1/1", "r1/2") == 40)
    assert {worker.state for worker in house.service.crew} == {State.QUIESCED}
    assert house.last("r2/1", "drain")["lane"] == old.name
    assert house.last("r1/1", "quiesce")["lane"] == ""


def test_a_worker_is_recycled_start_before_stop_and_one_at_a_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TICK_S", 0.05)
    first = house.release("v1", holds=4, requests=500)
    house.start(first, **{"worker.max_requests": "100"})
    (first / "behaviour.json").write_text(json.dumps({"requests": 5}))
    least = 2

    def both_are_new() -> bool:
        nonlocal least
        workers = house.service.serving
        assert workers is not None
        least = min(least, workers.accepting())
        return not {1, 2} & workers.workers.keys()

    house.until(both_are_new)
    assert least == 2, "full strength all the time"
    drains = [n for n in house.news if n.get("heard") == "drain"]
    assert len(drains) == 2 and {n["lane"] for n in drains} == {house.lane("r1").name}
    at = house.news.index
    assert at(drains[0]) < at(house.heard("r1/4", "configure")[0]), "the second one waits for the first"
    assert house.log().count("worker is recycled") == 2 and "500 requests" in house.log()
    house.until(lambda: house.took("r1/1", "r1/2", "r1/3", "r1/4") >= 8)


def test_while_a_successor_cannot_be_started_no_other_one_is_recycled(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.start(house.release("v1", requests=500), workers=3, **{"worker.max_requests": "100"})
    house.python.unlink()
    monkeypatch.setattr(upkeep, "TICK_S", 0.05)
    serving = house.service.serving
    assert serving is not None

    def held_by_the_back_off() -> bool:
        alone = {worker.state for worker in serving} == {State.ACCEPTING}
        return alone and serving.backoff.not_before > house.loop.now() + 0.3

    house.until(held_by_the_back_off)
    house.turn_for(0.2)
    assert len(house.service.upkeep.replaced) == 1 and serving.accepting() == 3
    assert house.log().count("worker is recycled") == 1


def test_who_has_more_than_its_share_sheds_half_of_that_until_it_is_even(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TICK_S", 0.05)
    first = house.release("v1", holds=40)
    house.start(first, workers=1)
    (first / "behaviour.json").write_text("{}")
    house.did("scale", workers=2)
    shed = house.last("r1/1", "shed")
    assert (shed["lane"], shed["readers"], shed["most"]) == (house.lane("r1").name, 1, 10)
    full, empty = house.service.crew.generations[0]

    def even() -> bool:
        counts = [worker.counter(Field.CONN_OPEN) for worker in (full, empty)]
        return sum(counts) == 40 and max(counts) <= 24

    house.until(even)
    house.turn_for(0.1)  # one that was on its way
    seen = len(house.heard("r1/1", "shed"))
    house.turn_for(0.5)
    assert even() and len(house.heard("r1/1", "shed")) == seen and not house.heard("r1/2", "shed")


def test_nothing_is_shed_for_a_worker_that_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a long request, or stopped: whoever sheds would take it back, and shed it again."""
    monkeypatch.setattr(upkeep, "TICK_S", 0.05)
    first = house.release("v1", holds=40)
    house.start(first, workers=1)
    (first / "behaviour.json").write_text('{"holds": 0, "turned_before_s": 2}')
    house.did("scale", workers=2)
    house.turn_for(0.5)
    assert not house.heard("r1/1", "shed")


def test_nobody_sheds_in_a_rollout_or_while_all_are_held(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TICK_S", 0.02)
    first = house.release("v1", holds=40)
    house.start(first, workers=1)
    (first / "behaviour.json").write_text("{}")
    house.did("quiesce", what="all")
    assert not house.service.is_calm()
    house.did("resume", what="all")
    house.upgrade(house.release("v2"))
    house.in_bake()
    assert not house.service.is_calm()
    house.did("abort")
    assert house.service.is_calm()


# -- the end ---------------------------------------------------------------------------------


def test_stop_ends_the_lanes_first_and_names_none(house: House) -> None:
    house.start(house.release("v1", holds=3))
    lane = house.lane("r1")
    house.stop()
    for worker in ("r1/1", "r1/2"):
        assert house.last(worker, "drain")["lane"] == "" and house.eof(worker, lane)
    assert "connections lost" not in house.log()


def test_only_where_nobody_is_left_idle_connections_are_not_waited_for(house: House) -> None:
    house.start(house.release("v1", holds=3, mute=["drained"]), workers=1)
    house.did("upgrade", release=str(house.release("v2")), bake=0)
    assert house.last("r1/1", "drain")["idle_s"] == 0, "the new ones have them"
    house.did("scale", workers=1)
    house.service.stop(now=False)
    assert house.last("r2/1", "drain")["idle_s"] == worker_link.STOP_IDLE_S
    house.until(lambda: house.last("r1/1", "drain")["idle_s"] == worker_link.STOP_IDLE_S)
    drains = house.heard("r1/1", "drain")
    assert len(drains) == 2 and drains[-1]["lane"] == "", "one that drained already is told again"


def test_what_lies_in_a_lane_at_the_end_is_closed_and_said(house: House) -> None:
    house.start(house.release("v1", holds=12, deaf=True), workers=2)
    lane = house.lane("r1")
    house.did("quiesce", what="r1/1")
    assert lane.depth() == 12
    workers = list(house.service.crew)
    house.service.stop(now=False)
    for worker in workers:  # nobody is left to read it
        worker.fail("the test kills it")
    house.until(lambda: house.gone)
    said = "connections lost: nobody was left to take them out of the lane"
    assert f"{said} lane={lane.name} count=12" in house.log()
    assert lane.reading.fileno() == -1, "closed"


def test_a_respawned_worker_reads_what_waits(house: House) -> None:
    first = house.release("v1", holds=9, deaf=True)
    house.start(first, workers=2)
    (first / "behaviour.json").write_text("{}")
    house.did("quiesce", what="r1/1")
    reader = house.service.crew.generations[0].workers[2]
    assert house.lane("r1").depth() == 9 and reader.counter(Field.CONN_OPEN) == 9
    signal.pidfd_send_signal(reader._process.pidfd, signal.SIGKILL)
    house.until(lambda: house.took("r1/3") == 9)
    assert "; 9 connections went with it" in house.log(), "those that it held itself"


def test_what_nobody_of_its_release_is_left_to_read_goes_to_the_one_that_serves(house: House) -> None:
    house.start(house.release("v1", holds=6, deaf=True, mute=["drained"]), workers=2)
    house.did("quiesce", what="r1/1")
    lane = house.lane("r1")
    assert lane.depth() == 6
    house.upgrade(house.release("v2"), force=True)
    serving = "r2"
    house.until(lambda: house.service.serving is not None and house.service.serving.release.id == serving)
    assert lane.depth() == 6, "as long as one of its own may read it"
    for worker in house.service.crew.generations[0]:
        signal.pidfd_send_signal(worker._process.pidfd, signal.SIGKILL)
    house.until(lambda: sum(n["took"] for n in house.news if n.get("lane") == lane.name and "took" in n) == 6)


def test_the_first_release_that_fails_leaves_nobody_waiting_for_its_lane(house: House) -> None:
    """There is no other one that could have what it holds."""
    with pytest.raises(AssertionError, match="aborted"):
        house.release("v1", holds=2, mute=["ready"])
        house.loop.call_at(house.loop.now() + 0.5, lambda: house.ask("abort"))
        house.start(house.folder / "v1", workers=1)
    house.until(lambda: not list(house.service.crew))
