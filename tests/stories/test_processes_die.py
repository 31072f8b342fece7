"""Workers die, supervisors die: what is left behaves."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, prepared, running
from harness.processes import kill, wait_gone
from harness.verdict import assert_all_well, assert_serves, now
from load import LoadClient, busy, fresh, idle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_crashed_worker_comes_back_through_the_probe(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect(r"SIGKILL|signal|killed|crash|died")
        before = instance.worker_pids()
        with LoadClient(instance.target, fresh(2, think_s=0.005), busy(2), idle(2, 0.2)) as load:
            death = now()
            kill(before[0], signal.SIGKILL)
            assert wait_gone(before[0])
            instance.wait_status(
                lambda status: (
                    [w["state"] for w in status["workers"]] == ["accepting"] * 2
                    and before[0] not in [w["pid"] for w in status["workers"]]
                )
            )
            load.wait_answers(50)
            report = load.stop()
        after = instance.worker_pids()
        assert before[1] in after
        (new,) = set(after) - set(before)
        assert str(new) in notes.lines("probes"), "it accepts without having answered a probe"
        assert report.failures_outside([death]) == [], report.explain()
        assert sum(report.failures().values()) <= 6


def test_a_crash_loop_is_said_once_and_ends_with_the_fault(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect(".*")
        notes.path.joinpath("poison").touch()
        for pid in instance.worker_pids():
            kill(pid, signal.SIGKILL)
            assert wait_gone(pid)
        said = instance.log.wait_for(
            lambda line: re.search("crash loop", line, re.IGNORECASE) is not None, 60
        )
        assert said is not None, instance.log_text()
        with LoadClient(instance.target, fresh(2), wait_started=False, timeout_s=60) as load:
            # Nobody serves, nobody is refused: the supervisor holds the listener.
            instance.ok("status")
            notes.path.joinpath("poison").unlink()
            load.wait_started(90)
            assert_all_well(load.stop())
        instance.settled(2, 60)
        loops = [
            line for line in instance.log_text().splitlines() if re.search("crash loop", line, re.IGNORECASE)
        ]
        assert len(loops) == 1, loops


def test_without_a_keeper_the_workers_of_a_killed_supervisor_drain_and_leave(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(
        tmp_path / "instance", v1, "--no-keeper", binds=[port.address], rollout={"drain_timeout": '"5s"'}
    ) as instance:
        instance.must_start()
        status = instance.status()
        pids = [worker["pid"] for worker in status["workers"]]
        with LoadClient(
            instance.target, fresh(2, path="/slow?ms=1000"), wait_started=False, max_answers=2
        ) as load:
            instance.wait_status(lambda s: sum(w["connections"]["busy"] for w in s["workers"]) == 2)
            kill(status["supervisor"]["pid"], signal.SIGKILL)
            load.wait_started()  # what was accepted is answered
            report = load.stop()
        for pid in pids:
            assert wait_gone(pid, 20), "an orphan"
        assert report.total >= 2 and report.failures().keys() <= {"refused", "reset"}, report.explain()
        assert instance.wait(10) != 0


def test_the_next_supervisor_starts_over_what_a_killed_one_left(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    binds = [port.address, f"unix:{tmp_path}/shop.sock"]
    directory = tmp_path / "instance"
    with prepared(directory, v1, "--no-keeper", binds=binds) as instance:
        instance.must_start()
        status = instance.status()
        kill(status["supervisor"]["pid"], signal.SIGKILL)
        for worker in status["workers"]:
            assert wait_gone(worker["pid"], 20)
        instance.wait()
    with running(directory, v1, binds=binds) as instance:
        assert_serves(instance, v1, 2)
        assert instance.get("/", bind=1).release == "v1"
