"""Live connections change their worker: nobody's is closed, and nobody is answered by what has gone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps import Behaviour, Notes, Release, build
from harness import Port, running
from harness.fatal import Trigger
from harness.instance import Instance, Outcome
from harness.processes import kill, wait_gone
from load.crowd import Crowd, Size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SIZE = Size(idle=200, busy=16, half_heads=10, fresh=10, pipelining=1)
# Heads that are half sent and connections that say nothing outlive what a test takes.
PATIENT = '[limits]\nheader_timeout = "300s"\nidle_timeout = "300s"\n'
LONG = '"60s"'
STEP = 1 if os.environ.get("QUIESCE_SOAK") == "full" else 5


@contextlib.contextmanager
def serving(
    tmp_path: Path, release: Release, port: Port, size: Size, workers: int = 2, more: str = "", **rest: Any
) -> Iterator[tuple[Instance, Crowd]]:
    """An instance and its crowd, of whom nobody may have been let down in the end."""
    config = f"{PATIENT}{more}"
    with running(
        tmp_path / "i", release, binds=[port.address], workers=workers, config=config, **rest
    ) as instance:
        with Crowd(instance.target, size) as crowd:
            yield instance, crowd
            crowd.assert_well()
        instance.wait_status(lambda status: held(status) == 0)


def held(status: dict[str, Any]) -> int:
    """Connections of all workers, and those that lie in a lane."""
    workers = sum(worker["connections"]["open"] for worker in status["workers"])
    return workers + sum(release["lane"] for release in status["releases"])


def everybody(crowd: Crowd, size: Size, release: str) -> None:
    """One request on each connection that is not busy anyway: this release answers."""
    for kind in ("half_heads", "fresh", "idle"):
        count = getattr(size, kind)
        if count:
            assert crowd.ask(kind) == {release: count}, kind


def not_answered_by(crowd: Crowd, release: str, since: float) -> None:
    """No request that was sent after ``since``."""
    late = [run for run in crowd.look()["runs"] if run[3] == release and run[2] > since]
    assert not late, late[:5]


def kept(outcome: Outcome) -> tuple[int, int]:
    """What `upgrade` says: (connections kept, closed)."""
    found = re.search(r"; ([\d,]+) connections? kept, ([\d,]+) closed", outcome.text)
    assert found is not None, outcome
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


# -- a rollout that goes well -----------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["wsgi", "asgi", "native"])
def test_an_upgrade_and_a_rollback_on_the_same_sockets(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2 = (build(tmp_path, name, notes, flavour) for name in ("v1", "v2"))
    with serving(tmp_path, v1, port, SIZE) as (instance, crowd):
        everybody(crowd, SIZE, "v1")
        for release, command in ((v2, ("upgrade", "--release", str(v2.path))), (v1, ("rollback",))):
            old = "v1" if release is v2 else "v2"
            outcome = instance.ok(*command)
            everybody(crowd, SIZE, release.name)
            not_answered_by(crowd, old, outcome.ended)
            count, closed = kept(outcome)
            assert sum(SIZE) - SIZE.busy <= count and closed == 0, outcome
        status = instance.settled(2)
        counters = status["counters"]
        assert counters["handed_out_total"] == counters["handed_in_total"] >= 2 * (sum(SIZE) - SIZE.busy)
        assert sum(worker["taken_in"] for worker in status["workers"]) >= sum(SIZE) - SIZE.busy
        assert counters["accepted_total"] < sum(SIZE) + 20, "nobody had to connect again"


def test_many_upgrades_in_a_row(tmp_path: Path, notes: Notes, port: Port) -> None:
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2")]
    with serving(tmp_path, releases[0], port, SIZE, rollout={"max_generations": "30"}) as (instance, crowd):
        for turn in range(1, 9):
            release = releases[turn % 2]
            outcome = instance.ok("upgrade", "--release", str(release.path), "--bake", "0.1")
            everybody(crowd, SIZE, release.name)
            not_answered_by(crowd, releases[1 - turn % 2].name, outcome.ended)


def test_old_workers_leave_at_once(tmp_path: Path, notes: Notes, port: Port) -> None:
    """There is nobody left whose keep-alive timeout would have to pass."""
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=300)
    with serving(tmp_path, v1, port, size, rollout={"drain_timeout": LONG}) as (instance, crowd):
        outcome = instance.ok("upgrade", "--release", str(v2.path), "--wait-drained", "--bake", "0")
        assert outcome.ended - outcome.began < 30, "not the 60 s of drain_timeout"
        assert kept(outcome) == (300, 0)
        everybody(crowd, size, "v2")


# -- a rollout that does not ------------------------------------------------------------------


def test_an_abort_in_the_middle_of_the_bake(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with serving(tmp_path, v1, port, SIZE, bake="60") as (instance, crowd):
        instance.expect(r"upgrade aborted")
        pending = instance.begin("upgrade", "--release", str(v2.path))
        instance.wait_status(lambda status: status["releases"][0]["state"] == "quiesced")
        everybody(crowd, SIZE, "v2")
        instance.ok("abort")
        outcome = pending.finish()
        assert outcome.code == 1
        instance.settled(2)
        everybody(crowd, SIZE, "v1")


def test_a_new_release_that_dies_in_its_bake_loses_what_it_held_and_says_how_much(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """What is in its lane, and what the other new worker holds, comes back."""
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=100)
    with running(tmp_path / "i", v1, binds=[port.address], bake="60", config=PATIENT) as instance:
        instance.expect(r"upgrade failed", r"worker lost")
        with Crowd(instance.target, size) as crowd:
            pending = instance.begin("upgrade", "--release", str(v2.path))
            status = instance.wait_status(
                lambda status: sum(w["taken_in"] for w in status["workers"]) == size.idle
            )
            new = [worker for worker in status["workers"] if worker["taken_in"]]
            victim = max(new, key=lambda worker: worker["connections"]["open"])
            count = victim["connections"]["open"]
            kill(victim["pid"], signal.SIGKILL)
            outcome = pending.finish()
            assert outcome.code == 1, outcome
            assert f"; {count} connection" in outcome.text and "went with it" in outcome.text, outcome
            instance.settled(2)
            # Who reads a packet is chance: it may have held all of them.
            assert crowd.ask("idle") == ({"v1": size.idle - count} if count < size.idle else {})
            seen = crowd.look()
            assert len(seen["failures"]) == count and seen["open"] == size.idle - count, seen["failures"][:3]


def test_a_bad_release_is_undone_by_itself_and_everybody_is_back(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """It answers its probes, and nobody else well: whoever asked it meanwhile was answered badly, but not closed."""
    good = build(tmp_path, "v1", notes)
    bad = build(tmp_path, "v2", notes, behaviour=Behaviour(serves=500))
    size = Size(idle=50)
    with serving(tmp_path, good, port, size, bake="60") as (instance, crowd):
        instance.expect(r"upgrade failed")
        pending = instance.begin("upgrade", "--release", str(bad.path))
        instance.wait_status(lambda status: sum(w["taken_in"] for w in status["workers"]) == size.idle)
        for _ in range(80):
            instance.get("/")
        assert pending.finish().code == 1
        instance.settled(2)
        everybody(crowd, size, "v1")


# -- without a rollout -------------------------------------------------------------------------


def test_scaling_setting_aside_and_recycling_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with serving(tmp_path, release, port, SIZE, workers=4) as (instance, crowd):
        instance.ok("scale", "1")
        instance.settled(1)
        everybody(crowd, SIZE, "v1")
        instance.ok("scale", "2")
        status = instance.settled(2)
        quiet = status["workers"][0]["id"]
        instance.ok("quiesce", quiet)
        status = instance.wait_status(lambda status: worker_of(status, quiet)["connections"]["open"] == 0)
        assert worker_of(status, quiet)["state"] == "quiesced"
        everybody(crowd, SIZE, "v1")
        instance.ok("resume", quiet)
        instance.settled(2)


@pytest.mark.parametrize("flavour", ["wsgi", "asgi"])
def test_somebody_sends_each_worker_sigterm_and_nobody_is_closed(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    release = build(tmp_path, "v1", notes, flavour)
    with serving(tmp_path, release, port, SIZE) as (instance, crowd):
        for pid in instance.worker_pids():
            kill(pid, signal.SIGTERM)
            instance.wait_status(
                lambda status, pid=pid: (
                    pid not in [worker["pid"] for worker in status["workers"]]
                    and [worker["state"] for worker in status["workers"]] == ["accepting", "accepting"]
                )
            )
            everybody(crowd, SIZE, "v1")
        log = instance.log_text()
        assert log.count("worker is recycled") == 2 and "SIGTERM" in log
        assert instance.status()["counters"]["accepted_total"] < sum(SIZE) + 20, "nobody had to connect again"


def test_the_supervisor_dies_with_a_worker_s_wish_to_go(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Its successor hears of it: from the state if it was written down, from the worker if it was not."""
    release = build(tmp_path, "v1", notes)
    size = Size(idle=50, busy=4)
    with serving(tmp_path, release, port, size) as (instance, crowd):
        instance.expect(r"supervisor died")
        first, second = instance.worker_pids()
        supervisor = instance.supervisor_pid
        kill(supervisor, signal.SIGSTOP)
        kill(first, signal.SIGTERM)  # read by nobody
        kill(second, signal.SIGTERM)
        kill(supervisor, signal.SIGKILL)
        instance.wait_restarted(supervisor)
        instance.wait_status(
            lambda status: (
                not {first, second} & {worker["pid"] for worker in status["workers"]}
                and [worker["state"] for worker in status["workers"]] == ["accepting", "accepting"]
            )
        )
        everybody(crowd, size, "v1")


def worker_of(status: dict[str, Any], identity: str) -> dict[str, Any]:
    (found,) = [worker for worker in status["workers"] if worker["id"] == identity]
    return dict(found)


def test_workers_are_recycled_by_their_requests_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    more = "[worker]\nmax_requests = 300\n"
    with serving(tmp_path, release, port, SIZE, more=more) as (instance, crowd):
        first = set(instance.worker_pids())
        least: list[int] = []

        def all_are_new(status: dict[str, Any]) -> bool:
            least.append(sum(worker["state"] == "accepting" for worker in status["workers"]))
            return not first & {worker["pid"] for worker in status["workers"]}

        instance.wait_status(all_are_new, 60.0)
        assert min(least) >= 2, "start before stop"
        everybody(crowd, SIZE, "v1")
        assert "max_requests is 300" in instance.log_text()
        history = instance.ok("history", "--json").json["entries"]
        assert [entry["command"] for entry in history] == ["start"], "it is no rollout"


def test_after_a_scale_up_the_load_spreads_and_then_rests(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    size = Size(idle=400)
    with serving(tmp_path, release, port, size, workers=1) as (instance, crowd):
        instance.ok("scale", "4")
        began = time.monotonic()
        share = size.idle / 4
        instance.wait_status(
            lambda status: (
                held(status) == size.idle
                and max(worker["connections"]["open"] for worker in status["workers"]) <= 1.5 * share
            ),
            15.0,
        )
        print(f"even after {time.monotonic() - began:.1f} s")
        moved = still(instance, 3.0)
        time.sleep(10)  # what must not happen in this time
        status = instance.status()
        assert status["counters"]["handed_out_total"] == moved, "it does not come to rest"
        assert held(status) == size.idle
        everybody(crowd, size, "v1")


def still(instance: Instance, seconds: float) -> int:
    """Connections that were handed over so far, once none has been for so long."""
    seen, since = -1, 0.0

    def rests(status: dict[str, Any]) -> bool:
        nonlocal seen, since
        moved = status["counters"]["handed_out_total"]
        if moved != seen:
            seen, since = moved, time.monotonic()
        return time.monotonic() - since > seconds

    instance.wait_status(rests, 40.0)
    return seen


# -- deaths -------------------------------------------------------------------------------------


def by_connections(instance: Instance, count: int) -> list[dict[str, Any]]:
    """The workers, once they hold so many connections together; the one with the most is the last."""
    status = instance.wait_status(lambda status: held(status) == count)
    return sorted(status["workers"], key=lambda worker: int(worker["connections"]["open"]))


def test_a_lane_survives_its_only_reader(tmp_path: Path, notes: Notes, port: Port) -> None:
    """What waits in it is read by the worker that takes the dead one's place."""
    release = build(tmp_path, "v1", notes)
    size = Size(idle=60)
    with running(tmp_path / "i", release, binds=[port.address], config=PATIENT) as instance:
        instance.expect(r"worker lost")
        with Crowd(instance.target, size) as crowd:
            reader, writer = by_connections(instance, size.idle)
            kill(reader["pid"], signal.SIGSTOP)
            instance.ok("quiesce", writer["id"])
            status = instance.wait_status(lambda status: status["releases"][0]["lane"] > 0)
            waiting = status["releases"][0]["lane"]
            lost = reader["connections"]["open"]
            kill(reader["pid"], signal.SIGKILL)
            instance.wait_status(
                lambda status: (
                    status["releases"][0]["lane"] == 0
                    and sum(worker["taken_in"] for worker in status["workers"]) >= waiting
                )
            )
            assert crowd.ask("idle") == {"v1": size.idle - lost}
            assert len(crowd.look()["failures"]) == lost
            instance.ok("resume", writer["id"])


def test_stop_with_connections_in_a_lane_serves_them_first(tmp_path: Path, notes: Notes, port: Port) -> None:
    """They are read, and closed politely: not by a reset, and not before a request that was on its way is answered."""
    release = build(tmp_path, "v1", notes)
    with running(
        tmp_path / "i", release, binds=[port.address], config=PATIENT, rollout={"drain_timeout": '"3s"'}
    ) as instance:
        with Crowd(instance.target, Size(idle=40)) as crowd:
            reader, writer = by_connections(instance, 40)
            kill(reader["pid"], signal.SIGSTOP)
            instance.ok("quiesce", writer["id"])
            instance.wait_status(lambda status: status["releases"][0]["lane"] > 0)
            pending = instance.begin("stop")
            instance.wait_status(lambda status: status["text"].startswith("stopping"))
            kill(reader["pid"], signal.SIGCONT)
            assert pending.finish().code == 0
            seen = crowd.look()
            assert seen["open"] == 0 and all("closed by the server" in why for why in seen["failures"]), seen
        assert "connections lost" not in instance.log_text()


def test_what_is_left_in_a_lane_at_the_end_is_closed_and_counted(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    release = build(tmp_path, "v1", notes)
    with running(
        tmp_path / "i", release, binds=[port.address], config=PATIENT, rollout={"drain_timeout": '"3s"'}
    ) as instance:
        instance.expect(r"worker lost")
        with Crowd(instance.target, Size(idle=40)) as crowd:
            reader, writer = by_connections(instance, 40)
            kill(reader["pid"], signal.SIGSTOP)
            instance.ok("quiesce", writer["id"])
            count = instance.wait_status(lambda status: status["releases"][0]["lane"] > 0)["releases"][0][
                "lane"
            ]
            kill(writer["pid"], signal.SIGSTOP)
            pending = instance.begin("stop")
            instance.wait_status(lambda status: status["text"].startswith("stopping"))
            for worker in (writer, reader):
                kill(worker["pid"], signal.SIGKILL)
            assert pending.finish().code == 0
            assert crowd.look()["open"] == 0, "nobody holds them for ever"
        said = f"nobody was left to take them out of the lane lane=r1-[0-9a-f]+ count={count}\\b"
        assert re.search(said, instance.log_text()), instance.log_text()[-3000:]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("undone", [False, True], ids=["goes well", "is undone"])
def test_the_supervisor_is_killed_anywhere_in_a_hand_over(
    undone: bool, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """At each point at which it writes its state down: the same sockets, the right release."""
    trigger = Trigger(tmp_path / "fatal")
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=60, busy=4, half_heads=4, fresh=4, pipelining=1)
    with serving(tmp_path, v1, port, size, env=trigger.env) as (instance, crowd):
        instance.expect(r"supervisor died", r"upgrade aborted")
        for turn, writes in enumerate(range(1, 200, STEP), 1):
            instance.settled(2)
            trigger.arm(writes, "after" if turn % 2 else "before")
            if undone:
                pending = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
                abort_when_it_bakes(instance)
                assert pending.finish().code == 1
                expected = "v1"
            else:
                release = v2 if turn % 2 else v1
                outcome = instance.ok("upgrade", "--release", str(release.path), "--bake", "0.1")
                not_answered_by(crowd, "v1" if turn % 2 else "v2", outcome.ended)
                expected = release.name
            everybody(crowd, size, expected)
            crowd.assert_well()
            if trigger.disarm():
                break
        else:
            raise AssertionError("an upgrade has no end")


def abort_when_it_bakes(instance: Instance) -> None:
    instance.wait_status(lambda status: any(r["state"] == "quiesced" for r in status["releases"]))
    instance("abort")


def test_the_supervisor_dies_while_connections_lie_in_a_lane(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """The next one finds the lane in the store, and with it who is in there."""
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=80)
    with serving(tmp_path, v1, port, size, bake="60", workers=1) as (instance, crowd):
        instance.expect(r"supervisor died", r"upgrade aborted")
        pending = instance.begin("upgrade", "--release", str(v2.path))
        status = instance.wait_status(lambda status: len(status["workers"]) == 2)
        new = status["workers"][-1]
        instance.wait_status(lambda status: sum(w["taken_in"] for w in status["workers"]) == size.idle)
        kill(new["pid"], signal.SIGSTOP)
        abort = instance.begin("abort")
        instance.kill_supervisor()
        kill(new["pid"], signal.SIGCONT)
        abort.finish()
        assert pending.finish().code == 1
        assert wait_gone(new["pid"])
        instance.settled(1)
        everybody(crowd, size, "v1")
