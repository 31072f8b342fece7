"""The keeper dies: its supervisor puts another one above itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, prepared
from harness.processes import kill, wait_gone
from harness.verdict import assert_all_well, at_strength
from load import LoadClient, fresh, idle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_the_death_of_the_keeper_is_noticed_and_repaired(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        instance.must_start()
        pids, supervisor, keeper = instance.worker_pids(), instance.supervisor_pid, instance.keeper_pid
        with LoadClient(instance.target, fresh(2, think_s=0.002), idle(2, 0.2)) as load:
            kill(keeper)
            status = instance.wait_status(
                lambda status: status["crash_safe"] and status["keeper"] not in (None, keeper)
            )
            assert status["supervisor"]["pid"] == supervisor
            assert instance.kill_supervisor()["keeper"] == status["keeper"]
            load.wait_answers(50)
            report = load.stop()
        assert_all_well(report)
        at_strength(instance, pids)
        keeper = instance.keeper_pid
        instance.ok("stop")
        assert wait_gone(keeper)
