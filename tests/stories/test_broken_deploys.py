"""A bad version never serves: each way of being bad is refused, with its reason, and nobody is disturbed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, prepared, running
from harness.verdict import assert_all_well, assert_serves, at_strength, serving
from load import LoadClient, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MIX = (fresh(2, think_s=0.005), busy(1), post(1), idle(2, 0.3))
EXPECTED = (r"Traceback", r"\bERROR\b", r"level=error")

BROKEN = {
    "exits on import": (Behaviour(on_import="exit"), "the shop has no configuration"),
    "exits 0 on import": (Behaviour(on_import="exit 0", prints=True), "is being imported"),
    "raises on import": (Behaviour(on_import="raise"), r"(?s)Traceback.*RuntimeError: the shelves are empty"),
    "is killed on import": (Behaviour(on_import="kill", prints=True), "SIGKILL|killed"),
    "hangs on import": (Behaviour(on_import="hang", prints=True), "(?s)start_timeout|ready"),
    "answers 500 to the probe": (Behaviour(health=500), r"(?s)/healthz.*500|500.*/healthz"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_release_that(what: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    behaviour, reason = BROKEN[what]
    good, bad = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes, behaviour=behaviour)
    rollout = {"start_timeout": '"3s"'} if "hang" in what else {}
    with running(tmp_path / "instance", good, binds=[port.address], rollout=rollout) as instance:
        instance.expect(*EXPECTED)
        pids = instance.worker_pids()
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance("upgrade", "--release", str(bad.path))
            load.wait_answers(20)
            report = load.stop()
        assert outcome.code == 1, outcome
        assert re.search(reason, outcome.text), outcome
        assert_all_well(report, notes)
        assert report.releases.keys() == {"v1"}
        at_strength(instance, pids)
        assert_serves(instance, good)
        history = instance.ok("history").out
        assert "v2" in history or str(bad.path) in history, history


@pytest.mark.parametrize("flavour", ["wsgi", "asgi", "native"])
def test_death_in_the_bake_brings_the_old_release_back_at_once(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    dying = Behaviour(dies_after_requests=30)
    good = build(tmp_path, "v1", notes, flavour)
    bad = build(tmp_path, "v2", notes, flavour, dying)
    with running(tmp_path / "instance", good, binds=[port.address]) as instance:
        instance.expect(*EXPECTED)
        pids = instance.worker_pids()
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance("upgrade", "--release", str(bad.path), "--bake", "20")
            load.wait_answers(50)
            report = load.stop()
        assert outcome.code == 1, outcome
        assert outcome.ended - outcome.began < 15, "it came back at the end of the bake, not at once"
        assert re.search("died|exit|crash", outcome.text), outcome
        deaths = notes.deaths
        assert deaths, "nobody died: the story did not happen"
        assert report.failures_outside(deaths) == [], report.explain()
        # Each client holds one connection, so a process that dies fails one request of each at most.
        assert sum(report.failures().values()) <= len(deaths) * 6, report.explain()
        assert report.stale_answers(outcome.ended, float("inf"), "v1") == []
        in_doubt = set(report.tokens_in_doubt)
        assert report.judge_tokens(t for t in notes.tokens if t not in in_doubt) == {}
        at_strength(instance, pids)
        assert_serves(instance, good)


def test_the_fix_goes_out_after_the_broken_one(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(on_import="raise"))
    v3 = build(tmp_path, "v3", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect(*EXPECTED)
        assert instance("upgrade", "--release", str(v2.path)).code == 1
        instance.ok("upgrade", "--release", str(v3.path))
        assert_serves(instance, v3, 2)


@pytest.mark.parametrize("mode", ["run", "start"])
def test_a_first_start_of_a_broken_application(mode: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    broken = build(tmp_path, "v1", notes, behaviour=Behaviour(on_import="raise"))
    with prepared(tmp_path / "instance", broken, binds=[port.address], mode=mode) as instance:
        instance.expect(*EXPECTED)
        outcome = instance.start()
        assert outcome is not None and outcome.code == 3, outcome
        assert re.search(r"(?s)Traceback.*RuntimeError: the shelves are empty", outcome.text), outcome
        assert instance("status").code == 4


def test_a_cold_start_refuses_the_release_that_was_rolled_back(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    good = build(tmp_path, "v1", notes)
    bad = build(tmp_path, "v2", notes, behaviour=Behaviour(health=500))
    directory = tmp_path / "instance"
    with running(directory, good, binds=[port.address]) as instance:
        instance.expect(*EXPECTED)
        assert instance("upgrade", "--release", str(bad.path)).code == 1
    # The reboot: the configuration names the bad one now.
    with running(directory, bad, binds=[port.address]) as instance:
        instance.expect(*EXPECTED, r"WARN")
        status = assert_serves(instance, good, 2)
        assert serving(status)["path"] == str(good.path)
        assert re.search(r"(?i)warn|error", instance.log_text()), instance.log_text()
        said = instance.ok("status").out + instance.log_text()
        assert str(bad.path) in said, said


def test_a_cold_start_of_a_broken_release_serves_the_last_good_one(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    good = build(tmp_path, "v1", notes)
    bad = build(tmp_path, "v2", notes, behaviour=Behaviour(on_import="raise"))
    directory = tmp_path / "instance"
    with running(directory, good, binds=[port.address]):
        pass
    with running(directory, bad, binds=[port.address]) as instance:
        instance.expect(*EXPECTED)
        assert_serves(instance, good, 2)
        assert "the shelves are empty" in instance.log_text()
