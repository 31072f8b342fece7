"""SIGKILL of the supervisor in each state of a rollout, while somebody waits: it ends as it would have ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from apps import Behaviour, Notes, build
from harness import Port, running
from harness.deaths import ask_status
from harness.instance import Instance, Outcome, Pending
from harness.processes import kill, wait_gone
from harness.verdict import assert_all_well, assert_serves
from load import LoadClient, Report, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MIX = (busy(1, think_s=0.002), fresh(2, think_s=0.01), idle(4, 0.2), post(1))
SLOW_PROBE = {"health_path": '"/slow?ms=1200"', "health_passes": "1"}


def wait_state(instance: Instance, state: str) -> dict[str, Any]:
    """Status as soon as the rollout is in this state."""
    return wait_for(instance, lambda status: status["rollout"]["state"] == state)


def wait_for(instance: Instance, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """As `Instance.wait_status`, quick enough for states that do not last."""
    for _ in range(20000):
        status = ask_status(instance.runtime_dir)
        if status is not None and wanted(status):
            return status
    raise AssertionError(f"{status}\n{instance.log_text()[-4000:]}")


def kill_in(instance: Instance, state: str) -> int:
    """SIGKILL the supervisor in this state; returns the pid that it had."""
    status = wait_state(instance, state)
    if state == "baking":  # the word stands for what comes just before, too
        begun = f"{status['rollout']['release']}: baking for"
        wait_for(instance, lambda _: begun in instance.log_text())
    pid = int(status["supervisor"]["pid"])
    kill(pid)
    assert wait_gone(pid)
    return pid


def assert_history(instance: Instance, *wanted: tuple[str, str]) -> list[dict[str, Any]]:
    """(command, outcome) of every change after the start, oldest first: each is there once."""
    entries = instance.ok("history", "--json").json["entries"]
    changes = [entry for entry in entries if entry["command"] != "start"]
    assert [(entry["command"], entry["outcome"]) for entry in changes] == list(wanted), changes
    return list(changes)


def assert_unnoticed(report: Report, notes: Notes) -> None:
    assert_all_well(report, notes)
    assert report.total > 50


CASES: dict[str, tuple[Behaviour, dict[str, str], tuple[str, ...]]] = {
    "starting": (Behaviour(import_s=1.5), {}, ()),
    "probing": (Behaviour(), SLOW_PROBE, ()),
    "baking": (Behaviour(), {}, ("--bake", "1.5")),
    "draining": (Behaviour(), {}, ("--wait-drained",)),
}


@pytest.mark.parametrize("state", CASES)
def test_an_upgrade_goes_on(state: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    behaviour, rollout, options = CASES[state]
    old = build(tmp_path, "v1", notes)
    new = build(tmp_path, "v2", notes, behaviour=behaviour)
    with running(tmp_path / "i", old, binds=[port.address], rollout=rollout) as instance:
        with LoadClient(instance.target, *MIX) as load:
            if state == "draining":
                slow = Slow(instance)
            pending = instance.begin("upgrade", "--release", str(new.path), *options)
            kill_in(instance, state)
            outcome = pending.finish()
            assert outcome.code == 0 and "r2 serves with 2 workers (was r1)" in outcome.text, outcome
            assert "waiting for the next one to take over" in outcome.text
            if state == "draining":
                slow.assert_answered()
            assert_serves(instance, new, 2)
            load.wait_answers(50)
            assert_unnoticed(load.stop(), notes)
        assert_history(instance, ("upgrade", "done"))
        assert instance.log_text().count("upgrade begins") == 1


class Slow:
    """A request that keeps an old worker from leaving for some seconds."""

    def __init__(self, instance: Instance) -> None:
        self._load = LoadClient(
            instance.target, fresh(1, path="/slow?ms=2500"), wait_started=False, max_answers=1
        )
        self._load.__enter__()
        wait_for(instance, lambda status: any(w["connections"]["busy"] for w in status["workers"]))

    def assert_answered(self) -> None:
        report = self._load.wait_report()
        self._load.__exit__(None, None, None)
        assert_all_well(report)
        assert report.total == 1


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (Behaviour(import_s=1.0, on_import="raise"), "the shelves are empty"),
        (Behaviour(import_s=1.0, health=500), "health probe"),
    ],
    ids=["its import", "its health"],
)
def test_a_bad_one_is_still_bad(
    behaviour: Behaviour, why: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """The command that asked hears why, as if nothing had happened."""
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes, behaviour=behaviour)
    with running(tmp_path / "i", old, binds=[port.address]) as instance:
        instance.expect("upgrade failed", "worker lost", "Traceback", "its last words")
        with LoadClient(instance.target, *MIX) as load:
            pending = instance.begin("upgrade", "--release", str(new.path))
            kill_in(instance, "starting")
            outcome = pending.finish()
            assert outcome.code == 1 and "r2 failed, r1 serves on" in outcome.text, outcome
            assert why in outcome.text, outcome
            assert_serves(instance, old, 2)
            assert_unnoticed(load.stop(), notes)
        assert_history(instance, ("upgrade", "rolled_back"))


def test_going_back_is_gone_on_with(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Killed while the old release is being resumed: an old worker that is stopped makes that last."""
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with running(tmp_path / "i", old, binds=[port.address]) as instance:
        frozen, _ = instance.worker_pids()
        with LoadClient(instance.target, *MIX) as load:
            pending = instance.begin("upgrade", "--release", str(new.path), "--bake", "60")
            wait_state(instance, "baking")
            wait_for(instance, lambda status: status["releases"][0]["state"] == "quiesced")
            load.wait_answers(50)
            kill(frozen, SIGSTOP)
            aborting = instance.begin("abort")
            kill_in(instance, "rolling_back")
            kill(frozen, SIGCONT)
            outcome = pending.finish()
            assert outcome.code == 1 and "r1 serves on" in outcome.text, outcome
            aborted = aborting.finish()
            assert aborted.code == 0, aborted
            assert_serves(instance, old, 2)
            report = load.stop()
        # A kept connection of the worker that was stopped waits, and is answered.
        assert_unnoticed(report, notes)
        assert frozen in instance.worker_pids()
        assert_history(instance, ("upgrade", "aborted"))


# Words to the next supervisor, about a bake that it has adopted


def in_an_adopted_bake(instance: Instance, *argv: str) -> Pending:
    """An upgrade whose supervisor has died in its bake, and another one has taken over."""
    pending = instance.begin("upgrade", *argv)
    pid = kill_in(instance, "baking")
    instance.wait_restarted(pid)
    assert wait_state(instance, "baking")["supervisor"]["pid"] != pid
    return pending


@pytest.mark.parametrize("word", ["promote", "abort"])
def test_the_next_one_is_told_how_the_bake_ends(word: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with running(tmp_path / "i", old, binds=[port.address]) as instance:
        with LoadClient(instance.target, *MIX) as load:
            pending = in_an_adopted_bake(instance, "--release", str(new.path), "--bake", "600")
            refused = instance("rollback")
            assert refused.code == 5 and "quiesce abort" in refused.text, refused
            assert instance("upgrade").code == 5
            told = instance.ok(word)
            outcome = pending.finish()
            assert outcome.code == (0 if word == "promote" else 1), (outcome, told)
            assert_serves(instance, new if word == "promote" else old, 2)
            assert_unnoticed(load.stop(), notes)
        assert_history(instance, ("upgrade", "done" if word == "promote" else "aborted"))
        if word == "promote":
            instance.ok("rollback")
            assert_serves(instance, old, 2)


def test_the_bake_ends_when_it_would_have_ended(tmp_path: Path, notes: Notes, port: Port) -> None:
    """It does not begin anew: then it would last as long again as it had lasted when its supervisor was killed.

    And nobody need wait for it: `--no-wait` has returned before.
    """
    bake_s, enough_s = 4.0, 2.5
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with running(tmp_path / "i", old, binds=[port.address]) as instance:
        instance.ok("upgrade", "--release", str(new.path), "--bake", str(bake_s), "--no-wait")
        since = wait_state(instance, "baking")["rollout"]["since"]
        status = wait_for(instance, lambda _: time.time() - since > enough_s)
        pid = status["supervisor"]["pid"]
        kill(pid)
        assert wait_gone(pid)
        instance.wait_restarted(pid)
        assert_serves(instance, new, 2)
        (entry,) = assert_history(instance, ("upgrade", "done"))
        assert bake_s <= entry["duration_s"] < bake_s + enough_s, entry
        assert instance.log_text().count(f"baking for {bake_s:g} s") == 1


def test_one_that_waits_for_the_drain_is_told_after_two_deaths(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """`--wait-drained`: once in the bake, once while the old workers drain."""
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with running(tmp_path / "i", old, binds=[port.address]) as instance:
        with socket.create_connection((port.host, port.number), timeout=30) as upload:
            # An old worker is at it until we say the rest.
            upload.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nX-Nonce: 1\r\nContent-Length: 8\r\n\r\nhalf")
            wait_for(instance, lambda status: any(w["connections"]["busy"] for w in status["workers"]))
            options = ("--bake", "600", "--wait-drained")
            pending = in_an_adopted_bake(instance, "--release", str(new.path), *options)
            instance.ok("promote")
            kill_in(instance, "draining")
            upload.sendall(b"rest")
            assert upload.recv(4096).startswith(b"HTTP/1.1 200 ")
            outcome = pending.finish()
        assert outcome.code == 0 and "r2 serves" in outcome.text, outcome
        assert {worker["release"] for worker in instance.status()["workers"]} == {"r2"}
        assert_history(instance, ("upgrade", "done"))


def test_a_rollback_goes_on(tmp_path: Path, notes: Notes, port: Port) -> None:
    releases = [build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)]
    with running(tmp_path / "i", releases[0], binds=[port.address]) as instance:
        instance.ok("upgrade", "--release", str(releases[1].path))
        (tmp_path / "i" / "quiesce.toml").write_text(
            (tmp_path / "i" / "quiesce.toml").read_text().replace('bake = "0.1s"', 'bake = "1.5s"')
        )
        instance.ok("reconfigure")
        with LoadClient(instance.target, *MIX) as load:
            pending = instance.begin("rollback")
            kill_in(instance, "baking")
            outcome: Outcome = pending.finish()
            assert outcome.code == 0, outcome
            assert_serves(instance, releases[0], 2)
            assert_unnoticed(load.stop(), notes)
        assert_history(instance, ("upgrade", "done"), ("rollback", "done"))
