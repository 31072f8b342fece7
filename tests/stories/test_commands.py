"""Commands tell the truth: what happened, by exit code, while traffic goes on."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import socket
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build, link
from harness import Instance, Port, running
from harness.verdict import assert_all_well, assert_serves, at_strength, serving
from load import LoadClient, busy, fresh, idle, late, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MIX = (fresh(2, think_s=0.005), busy(1), post(1), idle(2, 0.3), late(2, 0.3))


def test_two_upgrades_race_and_one_is_busy(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2, v3 = (build(tmp_path, name, notes, behaviour=Behaviour(import_s=1.0)) for name in ("v2", "v3"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        racers = {
            release: instance.begin("upgrade", "--release", str(release.path), "--bake", "0.5")
            for release in (v2, v3)
        }
        outcomes = {release: racer.finish() for release, racer in racers.items()}
        assert sorted(outcome.code for outcome in outcomes.values()) == [0, 5], list(
            map(str, outcomes.values())
        )
        (winner,) = [release for release, outcome in outcomes.items() if outcome.code == 0]
        assert_serves(instance, winner, 2)


def test_an_upgrade_to_a_missing_directory_touches_nothing(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        before, history = instance.status(), instance.ok("history", "--json").json
        outcome = instance("upgrade", "--release", str(tmp_path / "nowhere"))
        assert outcome.code == 2, outcome
        assert str(tmp_path / "nowhere") in outcome.text
        after = instance.status()
        assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]
        assert after["releases"] == before["releases"]
        assert instance.ok("history", "--json").json == history


def test_rollback_by_default_by_id_by_label_and_by_directory(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2, v3 = (build(tmp_path, name, notes) for name in ("v1", "v2", "v3"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        first = serving(instance.status())["id"]
        instance.ok("upgrade", "--release", str(v2.path), "--label", "autumn")
        instance.ok("rollback")
        assert_serves(instance, v1, 2)
        instance.ok("rollback", "autumn")
        assert_serves(instance, v2, 2)
        instance.ok("upgrade", "--release", str(v3.path))
        instance.ok("rollback", str(v2.path))
        assert_serves(instance, v2, 2)
        instance.ok("rollback", first)
        assert_serves(instance, v1, 2)
        outcome = instance("rollback", "no-such-release")
        assert outcome.code == 2, outcome
        assert_serves(instance, v1, 2)


def test_a_release_directory_that_is_gone_cannot_be_rolled_back_to(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.ok("upgrade", "--release", str(v2.path))
        instance.settled(2)
        shutil.rmtree(v1.path)
        assert instance("rollback").code == 2
        assert_serves(instance, v2, 2)


def test_abort_during_the_bake(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        pids = instance.worker_pids()
        with LoadClient(instance.target, *MIX) as load:
            upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
            instance.wait_status(lambda status: status["rollout"]["state"] == "baking")
            abort = instance.ok("abort")
            waiting = upgrade.finish()
            load.wait_answers(50)
            report = load.stop()
        assert waiting.code == 1, waiting
        assert_all_well(report, notes)
        assert report.stale_answers(abort.ended, float("inf"), "v1") == []
        at_strength(instance, pids)
        assert_serves(instance, v1)
        assert instance("abort").code != 0, "there is nothing to abort any more"


def test_promote_ends_the_bake(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with (
        running(tmp_path / "instance", v1, binds=[port.address]) as instance,
        LoadClient(instance.target, *MIX) as load,
    ):
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        instance.wait_status(lambda status: status["rollout"]["state"] == "baking")
        promote = instance.ok("promote")
        waiting = upgrade.finish()
        load.wait_answers(50)
        report = load.stop()
        assert waiting.code == 0, waiting
        assert waiting.ended - waiting.began < 50
        assert_all_well(report, notes)
        assert report.stale_answers(promote.ended, float("inf"), "v2") == []
        assert_serves(instance, v2, 2)


def test_ctrl_c_in_a_command_leaves_the_rollout_alone(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "2")
        instance.wait_status(lambda status: status["rollout"]["state"] == "baking")
        upgrade.process.send_signal(signal.SIGINT)
        assert upgrade.finish().code == 130
        instance.wait_status(lambda status: serving(status)["path"] == str(v2.path))
        assert_serves(instance, v2, 2)


def test_upgrade_follows_the_current_link(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    current = tmp_path / "current"
    link(current, v1.path)
    with running(tmp_path / "instance", v1, binds=[port.address], path=current) as instance:
        assert_serves(instance, v1, 2)
        link(current, v2.path)
        assert_serves(instance, v1, 2)
        instance.ok("upgrade")
        assert_serves(instance, v2, 2)
        pids = instance.worker_pids()
        instance.ok("upgrade", "--if-changed")
        assert instance.worker_pids() == pids, "nothing has changed, and yet it was rolled out"


def test_no_wait_returns_before_the_outcome(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(import_s=2.0))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.ok("upgrade", "--release", str(v2.path), "--no-wait")
        assert instance.status()["rollout"]["state"] != "idle"
        instance.wait_status(lambda status: serving(status)["path"] == str(v2.path))
        assert_serves(instance, v2, 2)


def test_an_upgrade_beyond_max_generations_waits_for_the_oldest(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Half an upload holds r1 until its drain deadline; nobody is cut to make room, unless by --force."""
    v1, v2, v3 = (build(tmp_path, name, notes) for name in ("v1", "v2", "v3"))
    rollout = {"max_generations": "2", "drain_timeout": '"3s"'}
    with running(tmp_path / "instance", v1, binds=[port.address], rollout=rollout) as instance:
        with contextlib.closing(half_an_upload(instance, port)) as kept:
            first = instance.ok("upgrade", "--release", str(v2.path))
            second = instance.ok("upgrade", "--release", str(v3.path))
            assert "max_generations" in second.text, second
            # r1 was told to drain when its bake ended, a moment before `first` did.
            assert second.ended - first.began >= 3.0
            while kept.recv(4096):
                pass  # its drain deadline has passed: it is told so, and closed
        assert_serves(instance, v3, 2)
        with contextlib.closing(half_an_upload(instance, port)):
            instance.ok("upgrade", "--release", str(v2.path))
            forced = instance.ok("upgrade", "--release", str(v1.path), "--force")
            assert forced.ended - forced.began < 2.5, forced
        assert_serves(instance, v1, 2)


def test_scaling_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        with LoadClient(instance.target, *MIX) as load:
            for workers in (4, 1, 3):
                instance.ok("scale", str(workers))
                load.wait_answers(20)
                instance.settled(workers)
            report = load.stop()
        assert_all_well(report, notes)
        assert instance("scale", "-1").code == 2


def test_quiesced_connections_wait_in_the_queue_and_are_answered_after_resume(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.ok("quiesce", "all")
        assert {w["state"] for w in instance.status()["workers"]} == {"quiesced"}
        waiting = [say(port) for _ in range(4)]
        try:
            # The kernel completes their connects and keeps what they say: nobody refuses, nobody answers.
            instance.ok("status")
            assert select.select(waiting, [], [], 0.2)[0] == []
            instance.ok("resume", "all")
            for sock in waiting:
                assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        finally:
            for sock in waiting:
                sock.close()
        instance.settled(2)


def say(port: Port) -> socket.socket:
    """A connection that has said its request."""
    sock = socket.create_connection((port.host, port.number), timeout=20)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Nonce: 1\r\nConnection: close\r\n\r\n")
    return sock


def half_an_upload(instance: Instance, port: Port) -> socket.socket:
    """A connection with a request under way that cannot move: a worker is at it."""
    sock = socket.create_connection((port.host, port.number), timeout=20)
    sock.sendall(b"POST /upload HTTP/1.1\r\nHost: shop\r\nX-Nonce: 1\r\nContent-Length: 10\r\n\r\nhalf")
    instance.wait_status(lambda status: any(w["connections"]["busy"] for w in status["workers"]))
    return sock


def test_one_worker_can_be_quiesced(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        one = instance.status()["workers"][0]
        instance.ok("quiesce", str(one["id"]))
        with LoadClient(instance.target, fresh(2)) as load:
            load.wait_answers(50)
            assert_all_well(load.stop())
        states = {w["pid"]: w["state"] for w in instance.status()["workers"]}
        assert states.pop(one["pid"]) == "quiesced" and set(states.values()) == {"accepting"}
        instance.ok("resume", str(one["id"]))
        instance.settled(2)


def test_counters_never_go_back(tmp_path: Path, notes: Notes, port: Port) -> None:
    def requests(status: dict) -> int:  # type: ignore[type-arg]
        return int(status["counters"]["requests_total"])

    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        with LoadClient(instance.target, fresh(2), max_answers=200) as load:
            report = load.wait_report()
        before = requests(instance.wait_status(lambda status: requests(status) >= report.total))
        instance.ok("upgrade", "--release", str(v2.path))
        instance.settled(2)
        assert requests(instance.status()) >= before


def test_no_such_instance(tmp_path: Path) -> None:
    import os
    import subprocess

    from harness.instance import QUIESCE

    for command in (["status"], ["upgrade"], ["stop"]):
        done = subprocess.run(
            [str(QUIESCE), *command, "--runtime-dir", str(tmp_path / "rt")],
            capture_output=True,
            env=os.environ,
        )
        assert done.returncode == 4, (command, done)
