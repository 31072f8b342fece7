"""SIGKILL of the supervisor between any two of its steps: nobody notices, and every command learns its own outcome."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, prepared, running
from harness.fatal import Trigger
from harness.verdict import assert_all_well
from load import LoadClient, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]

FULL = os.environ.get("QUIESCE_SOAK") == "full"
STEP = 1 if FULL else 7  # every moment in the soak, some of them here; which ones moves with the command
MOST = 200  # no command writes its state down so often
DIED = r"supervisor died"
TRAFFIC = (busy(2), fresh(2, think_s=0.005), idle(4, 0.2), post(1))


def moments(first: int) -> range:
    return range(first, MOST, STEP)


@pytest.mark.parametrize("when", ["before", "after"])
def test_in_an_upgrade_that_goes_well(when: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    """At each point: exit code 0, the new release serves, and it was rolled out once."""
    trigger = Trigger(tmp_path / "fatal")
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2")]
    with (
        running(tmp_path / "i", releases[0], binds=[port.address], env=trigger.env) as instance,
        LoadClient(instance.target, *TRAFFIC) as load,
    ):
        done = 1
        for turn, writes in enumerate(moments(1 if when == "after" else 3), 1):
            release = releases[turn % 2]
            instance.settled(2)
            trigger.arm(writes, when)
            outcome = instance.ok("upgrade", "--release", str(release.path), "--label", f"turn-{turn}")
            done += 1
            assert instance.get("/").release == release.name, outcome
            if trigger.disarm():
                break  # it was over before that moment came
        else:
            raise AssertionError("an upgrade has no end")
        entries = instance.ok("history", "--json", "--limit", "50").json["entries"]
        upgrades = [entry for entry in entries if entry["command"] == "upgrade"]
        assert [entry["label"] for entry in upgrades] == [f"turn-{n}" for n in range(1, done)][-50:]
        assert {entry["outcome"] for entry in upgrades} == {"done"}
        load.wait_answers(200)
        report = load.stop()
    assert_all_well(report, notes)
    print(f"{done - 1} upgrades, {report.total} answers, longest gap {report.longest_gap_s:.3f} s")


@pytest.mark.parametrize("fault", ["boot", "bake"])
def test_in_an_upgrade_that_must_be_undone(fault: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    """At each point: exit code 1 for the command that asked, and the old release serves."""
    trigger = Trigger(tmp_path / "fatal")
    good = build(tmp_path, "v1", notes)
    bad = build(
        tmp_path,
        "v2",
        notes,
        behaviour=Behaviour(on_import="raise") if fault == "boot" else Behaviour(serves=500),
    )
    with (
        running(tmp_path / "i", good, binds=[port.address], env=trigger.env) as instance,
        LoadClient(instance.target, *TRAFFIC) as load,
    ):
        instance.expect(r"upgrade failed", r"worker lost", r"Traceback", r"RuntimeError", r"its last words")
        for writes in moments(2):
            instance.settled(2)
            trigger.arm(writes)
            outcome = instance("upgrade", "--release", str(bad.path), "--bake", "20")
            assert outcome.code == 1, f"{outcome}\n{instance.log_text()[-4000:]}"
            if trigger.disarm():
                break
        else:
            raise AssertionError("an upgrade has no end")
        instance.settled(2)
        assert instance.get("/").release == "v1"
        report = load.stop()
    if fault == "boot":
        assert_all_well(report, notes)
    else:
        # What a bad release answered in its bake is its own.
        others = [failure for failure in report.failed if failure.trouble != "status"]
        assert not others, others[:5]


@pytest.mark.parametrize("mode", ["run", "start"])
def test_in_a_cold_start(mode: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    """At each point: the command that starts it says that it serves, and it does."""
    trigger = Trigger(tmp_path / "fatal")
    release = build(tmp_path, "v1", notes)
    for writes in moments(1):
        directory = tmp_path / f"i{writes}"
        with prepared(directory, release, binds=[port.address], mode=mode, env=trigger.env) as instance:
            trigger.arm(writes)
            instance.must_start()
            over = trigger.disarm()
            instance.settled(2)
            assert instance.get("/").release == "v1"
            assert instance.stop() == 0
            if over:
                return
    raise AssertionError("a start has no end")


def test_in_a_stop(tmp_path: Path, notes: Notes, port: Port) -> None:
    """At each point: `stop` exits 0, nothing is left, and nobody starts it again."""
    trigger = Trigger(tmp_path / "fatal")
    release = build(tmp_path, "v1", notes)
    for writes in moments(1):
        with running(tmp_path / f"i{writes}", release, binds=[port.address], env=trigger.env) as instance:
            trigger.arm(writes)
            outcome = instance.ok("stop")
            assert "has stopped" in outcome.text
            assert instance.wait() == 0
            if trigger.disarm():
                return
    raise AssertionError("a stop has no end")


@pytest.mark.parametrize("command", [("scale", "3"), ("quiesce", "all"), ("resume", "all"), ("reconfigure",)])
def test_in_a_small_change(command: tuple[str, ...], tmp_path: Path, notes: Notes, port: Port) -> None:
    trigger = Trigger(tmp_path / "fatal")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], env=trigger.env) as instance:
        for writes in moments(1):
            instance.ok("resume", "all")
            instance.ok("scale", "2")
            instance.settled(2)
            if command[0] == "resume":
                instance.ok("quiesce", "all")
            trigger.arm(writes)
            instance.ok(*command)
            if trigger.disarm():
                break
        else:
            raise AssertionError("a command has no end")
        instance.ok("resume", "all")
        assert instance.get("/").release == "v1"
