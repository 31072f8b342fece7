"""Processes die under systemd: the supervisor (killed, hung), a worker, PID 1's own image, and the descriptor store.

Reduced counts; QUIESCE_SOAK=full for those of the issue.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from apps.releases import Behaviour
from harness.verdict import assert_all_well
from load import LoadClient, busy, fresh, idle
from sdbox.fixtures import host, instance
from sdbox.service import Instance, wait_gone

__all__ = ["host", "instance"]  # pytest finds fixtures by name

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

FULL = os.environ.get("QUIESCE_SOAK") == "full"
KILLS = 20 if FULL else 3
LINE_BYTES = 1024
WAIT_S = 60.0


def wait_until(fact: Callable[[], bool], what: str) -> None:
    """For facts that send no message to anybody."""
    end = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < end, f"waited {WAIT_S} s for {what}"


def kill(instance: Instance, signal: str = "KILL") -> None:
    """Send it to the supervisor; return when the next one has said READY."""
    pid, before = instance.supervisor(), int(instance.shown("NRestarts")["NRestarts"])
    assert instance.box.run("kill", f"-{signal}", pid).returncode == 0
    wait_next(instance, pid, before)


def wait_next(instance: Instance, pid: str, before: int) -> None:
    def next_one_is_ready() -> bool:
        shown = instance.shown("MainPID", "ActiveState", "NRestarts")
        return shown["MainPID"] not in ("0", pid) and shown["ActiveState"] == "active"

    wait_until(next_one_is_ready, f"the supervisor after {pid}")
    assert int(instance.shown("NRestarts")["NRestarts"]) == before + 1


def assert_crash_safe(instance: Instance) -> None:
    status = instance.status()
    assert status["crash_safe"] is True, status


@pytest.mark.soak
def test_the_supervisor_is_killed_again_and_again(instance: Instance) -> None:
    """No failed request, no closed connection, the same workers, every line in the journal."""
    instance.build("chatty", Behaviour(print_bytes=LINE_BYTES))
    instance.deploy("chatty")
    instance.start()
    assert_crash_safe(instance)
    workers = instance.workers()
    assert len(workers) == 2
    with LoadClient(instance.target, busy(4, think_s=0.002), fresh(4, think_s=0.004), idle(2)) as load:
        for _ in range(KILLS):
            load.wait_answers(100)
            kill(instance)
            assert instance.workers() == workers
        load.wait_answers(200)
        report = load.stop()
    assert_all_well(report)
    assert report.idle_closed == 0
    kept = report.connects - len(report.fresh)
    assert kept == 6, f"{kept} connections for 6 clients that keep theirs"
    line = "x" * (LINE_BYTES - 1)
    assert instance.messages().count(line) == report.total
    for pid in map(str, workers.values()):  # its temporary directories are still there
        for folder in ("/tmp", "/var/tmp"):
            made = instance.box.run("nsenter", "-t", pid, "-m", "touch", f"{folder}/by-{pid}")
            assert made.returncode == 0, made.stderr
    assert_crash_safe(instance)
    code, said = instance.ctl("stop", instance.socket, instance.service)
    assert code == 0 and "Deactivated successfully" in said, said[-3000:]
    assert instance.pids() == []


def test_the_supervisor_hangs_and_the_watchdog_ends_it(instance: Instance) -> None:
    instance.drop_in("watchdog", "[Service]\nWatchdogSec=2s\n")
    instance.start()
    workers = instance.workers()
    with LoadClient(instance.target, busy(2, think_s=0.002), fresh(2, think_s=0.004)) as load:
        load.wait_answers(50)
        kill(instance, "STOP")
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    assert "Watchdog timeout" in "\n".join(instance.messages())
    assert instance.workers() == workers


def test_the_supervisor_is_killed_while_a_release_bakes(instance: Instance) -> None:
    """The next one finishes the rollout, one way or the other, and says which."""
    instance.config.write_text(instance.config.read_text().replace('bake = "0.2s"', 'bake = "4s"'))
    instance.start()
    instance.deploy("b")
    with LoadClient(instance.target, busy(2, think_s=0.002), fresh(2, think_s=0.004)) as load:
        load.wait_answers(50)
        assert instance.quiesce("upgrade", "--no-wait")[0] == 0
        wait_until(lambda: instance.rollout() == "baking", "the bake")
        kill(instance)
        wait_until(lambda: instance.rollout() == "idle", "the end of the rollout")
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    code, said = instance.quiesce("history")
    assert code == 0, said
    assert report.fresh[-1].release == "b", said


def test_a_worker_is_killed(instance: Instance) -> None:
    """As by the kernel, for its memory: it is replaced, and the service goes on."""
    instance.start()
    supervisor, workers = instance.supervisor(), instance.workers()
    victim = next(iter(workers.values()))
    with LoadClient(instance.target, fresh(4, think_s=0.002)) as load:
        load.wait_answers(50)
        killed = time.monotonic()
        assert instance.box.run("kill", "-KILL", str(victim)).returncode == 0
        wait_until(
            lambda: len(instance.workers()) == 2 and victim not in instance.workers().values(), "a successor"
        )
        load.wait_answers(50)
        report = load.stop()
    assert report.failures_outside([killed], slack_s=1.0) == [], (
        report.explain()
    )  # what was inside it is lost
    assert instance.supervisor() == supervisor
    shown = instance.shown("ActiveState", "NRestarts", "OOMPolicy")
    assert shown == {"ActiveState": "active", "NRestarts": "0", "OOMPolicy": "continue"}


def test_systemd_itself_is_replaced(instance: Instance) -> None:
    """daemon-reexec, as a package upgrade of systemd does it, and then the supervisor dies."""
    instance.start()
    workers = instance.workers()
    with LoadClient(instance.target, busy(2, think_s=0.002), fresh(2, think_s=0.004)) as load:
        load.wait_answers(20)
        # Its answer may get lost: the connection to systemd ends with the old image.
        instance.box.run("systemctl", "daemon-reexec")
        kill(instance)
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    assert instance.workers() == workers
    assert_crash_safe(instance)


def test_a_manager_without_a_store_is_said_and_clients_wait(instance: Instance) -> None:
    instance.drop_in("no-store", "[Service]\nFileDescriptorStoreMax=0\n")
    instance.start()
    status = instance.status()
    assert status["crash_safe"] is False, status
    code, said = instance.quiesce("status")
    assert code == 0 and "FileDescriptorStoreMax" in said, said
    old = set(instance.pids())
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        kill(instance)
        load.wait_answers(20)
        for pid in old:
            wait_gone(instance.host, pid)
        report = load.stop()
    assert_all_well(
        report
    )  # they drained what they had; who connected meanwhile waited in the socket unit's queue


def test_stop_between_two_supervisors_leaves_nothing(instance: Instance) -> None:
    """In the pause before the restart nobody is there to end the workers: they see the end of their channels."""
    instance.drop_in("pause", "[Service]\nRestartSec=300s\n")
    instance.start()
    pids = instance.pids()
    assert instance.box.run("kill", "-KILL", instance.supervisor()).returncode == 0
    wait_until(lambda: instance.shown("SubState")["SubState"] == "auto-restart", "the pause")
    code, said = instance.ctl("stop", instance.socket, instance.service)
    assert code == 0, said
    for pid in pids:
        wait_gone(instance.host, pid)


def test_killed_in_the_middle_of_a_reload(instance: Instance) -> None:
    """systemctl's own client is ended with the supervisor; the service comes back with one release or the other."""
    instance.config.write_text(instance.config.read_text().replace('bake = "0.2s"', 'bake = "4s"'))
    instance.drop_in("watchdog", "[Service]\nWatchdogSec=5s\n")
    instance.start()
    instance.deploy("b")
    with LoadClient(instance.target, busy(2, think_s=0.002), fresh(2, think_s=0.004)) as load:
        load.wait_answers(20)
        reload = subprocess.Popen(
            instance.box.inside("systemctl", "reload", instance.service), stderr=subprocess.PIPE
        )
        try:
            wait_until(lambda: instance.rollout() == "baking", "the bake")
            kill(instance)
        finally:
            reload.communicate(timeout=60)
        wait_until(lambda: instance.rollout() == "idle", "the end of the rollout")
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    assert instance.shown("ActiveState")["ActiveState"] == "active"
    assert "Watchdog timeout" not in "\n".join(instance.messages())
