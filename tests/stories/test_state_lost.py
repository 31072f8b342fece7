"""A supervisor dies whose state nobody can read: the service starts anew, and no request fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, running
from harness.processes import kill
from harness.verdict import assert_all_well
from load import LoadClient, busy, fresh, post

pytestmark = pytest.mark.slow


def state_of(pid: int) -> str:
    """The supervisor's state memfd, as a path that can be opened."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "quiesce-state" in os.readlink(entry):
            return str(entry)
    raise AssertionError("no state")


def test_a_destroyed_state_costs_no_request(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with (
        running(tmp_path / "i", release, binds=[port.address]) as instance,
        LoadClient(instance.target, busy(1), fresh(2, think_s=0.005), post(1, close=True)) as load,
    ):
        instance.expect("the state that was left cannot be read")
        before = set(instance.worker_pids())
        load.wait_answers(100)
        pid = instance.supervisor_pid
        kill(pid, signal.SIGSTOP)  # or it would write the next state over our damage
        os.truncate(state_of(pid), 0)
        kill(pid, signal.SIGKILL)
        instance.wait_restarted(pid)
        status = instance.settled(2, timeout_s=60)
        load.wait_answers(100)
        report = load.stop()
        assert not before & {worker["pid"] for worker in status["workers"]}
        assert any("cannot be read" in notice for notice in status["notices"])
    assert_all_well(report, notes)
