"""Things that happen at the wrong moment of a rollout."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps import Behaviour, Notes, Release, build
from harness import Instance, Port, prepared, running
from harness.processes import kill, wait_gone
from harness.verdict import assert_all_well, assert_serves, at_strength, serving
from load import LoadClient, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MIX = (fresh(2, think_s=0.005), busy(1, think_s=0.002), post(1), idle(2, 0.3))


@pytest.fixture
def releases(tmp_path: Path, notes: Notes) -> Iterator[tuple[Release, Release]]:
    yield build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)


def baking(status: dict[str, Any]) -> bool:
    return bool(status["rollout"]["state"] == "baking" and status["rollout"].get("release"))


def pids_of(instance: Instance, release: str) -> list[int]:
    return [w["pid"] for w in instance.status()["workers"] if w["release"] == release]


def test_the_client_of_an_upgrade_is_killed(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "1")
        instance.wait_status(baking)
        upgrade.process.kill()
        upgrade.finish()
        instance.wait_status(lambda status: serving(status)["path"] == str(v2.path))
        assert_serves(instance, v2, 2)


def test_an_old_worker_that_does_not_answer_quiesce_is_killed_and_said(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        deaf = instance.worker_pids()[0]
        kill(deaf, signal.SIGSTOP)
        outcome = instance.ok("upgrade", "--release", str(v2.path))
        assert wait_gone(deaf, 0.0), "upgrade reported success while an old worker could still accept"
        assert re.search("quiesce|killed", outcome.text + instance.log_text())
        with LoadClient(instance.target, fresh(2), max_answers=200) as load:
            report = load.wait_report()
        assert_all_well(report)
        assert report.releases.keys() == {"v2"}
        instance.settled(2)


def test_a_new_worker_is_killed_while_it_starts(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(on_import="hang"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        pids = instance.worker_pids()
        upgrade = instance.begin("upgrade", "--release", str(v2.path))
        instance.wait_status(lambda _: len(notes.lines("hanging")) >= 1)
        kill(int(notes.lines("hanging")[0]), signal.SIGKILL)
        outcome = upgrade.finish()
        assert outcome.code == 1, outcome
        assert re.search("SIGKILL|signal 9|killed", outcome.text), outcome
        at_strength(instance, pids)


def test_an_old_worker_dies_in_the_bake(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        old = instance.worker_pids()
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "1")
        instance.wait_status(baking)
        kill(old[0], signal.SIGKILL)
        outcome = upgrade.finish()
        assert outcome.code == 0, outcome
        assert_serves(instance, v2, 2)


def test_a_rollback_from_the_bake_after_an_old_worker_died_is_at_full_strength(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        old = instance.worker_pids()
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        instance.wait_status(baking)
        kill(old[0], signal.SIGKILL)
        assert wait_gone(old[0])
        instance.ok("abort")
        assert upgrade.finish().code == 1
        status = assert_serves(instance, v1, 2)
        assert old[1] in [worker["pid"] for worker in status["workers"]]


def test_a_new_worker_that_stops_turning_in_the_bake_is_an_undo(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    config = '[worker]\nstall_timeout = "2s"\n'
    with running(tmp_path / "instance", v1, binds=[port.address], config=config) as instance:
        instance.expect("ERROR")
        pids = instance.worker_pids()
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        status = instance.wait_status(baking)
        kill(pids_of(instance, status["rollout"]["release"])[0], signal.SIGSTOP)
        outcome = upgrade.finish()
        assert outcome.code == 1, outcome
        assert outcome.ended - outcome.began < 30, "not before the end of the bake"
        at_strength(instance, pids)
        assert_serves(instance, v1)


@pytest.mark.parametrize("when", ["starting", "baking"])
def test_stop_in_the_middle_of_a_rollout(when: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(import_s=30.0 if when == "starting" else 0.0))
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        instance.must_start()
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        instance.wait_status(lambda status: status["rollout"]["state"] == when)
        instance.ok("stop", timeout_s=40)
        assert instance.wait(5) == 0
        assert upgrade.finish().code not in (0, 2, 5)


def test_hup_a_hundred_times(tmp_path: Path, releases: tuple[Release, Release], port: Port) -> None:
    v1, _ = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("SIGHUP: no upgrade")  # one change at a time
        pid = instance.supervisor_pid
        with LoadClient(instance.target, *MIX) as load:
            for _ in range(100):
                kill(pid, signal.SIGHUP)
            load.wait_answers(200)
            instance.settled(2)
            report = load.stop()
        assert_all_well(report)
        assert instance.supervisor_pid == pid


def test_scale_while_an_upgrade_runs_is_busy_or_done_but_never_a_mixture(
    tmp_path: Path, releases: tuple[Release, Release], port: Port
) -> None:
    v1, v2 = releases
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "1")
        instance.wait_status(baking)
        scaled = instance("scale", "3")
        assert scaled.code in (0, 5), scaled
        assert upgrade.finish().code == 0
        assert_serves(instance, v2, 3 if scaled.code == 0 else 2)


def test_too_many_errors_in_the_bake_are_an_undo(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(serves=500))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        pids = instance.worker_pids()
        with LoadClient(instance.target, fresh(4), busy(1)) as load:
            load.wait_answers(100)
            outcome = instance("upgrade", "--release", str(v2.path), "--bake", "60")
            load.wait_answers(100)
            report = load.stop()
        assert outcome.code == 1, outcome
        assert outcome.ended - outcome.began < 30
        assert re.search("5xx|error", outcome.text), outcome
        assert report.failures().keys() == {"status"}, report.explain()
        at_strength(instance, pids)


def test_a_failing_service_can_receive_its_fix_and_even_another_failure(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2 = (build(tmp_path, name, notes, behaviour=Behaviour(serves=500)) for name in ("v1", "v2"))
    v3 = build(tmp_path, "v3", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        with LoadClient(instance.target, fresh(2), busy(1), wait_started=False) as load:
            instance.wait_status(lambda status: status["counters"]["resp_5xx_total"] > 100)
            # No worse than what it replaces.
            instance.ok("upgrade", "--release", str(v2.path), "--bake", "1")
            instance.ok("upgrade", "--release", str(v3.path), "--bake", "1")
            load.wait_started()
            report = load.stop()
        assert report.failures().keys() == {"status"}, report.explain()
        assert_serves(instance, v3, 2)


def test_the_old_directory_is_removed_while_it_serves(tmp_path: Path, notes: Notes, port: Port) -> None:
    import shutil

    v1, v2 = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        shutil.rmtree(v1.path)
        assert instance.get("/").release == "v1"
        instance.ok("upgrade", "--release", str(v2.path))
        assert_serves(instance, v2, 2)


def test_a_process_that_the_application_forked_holds_no_listener(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """A child that outlives its worker: what it inherited must not keep the port, nor a client, alive."""
    v1 = build(tmp_path, "v1", notes)
    # It is forked in the first request, so it has the listeners, the channel and a client's connection to lose.
    shop = v1.path / "pages.py"
    shop.write_text(
        shop.read_text().replace(
            'if path == "/pid":',
            'if path == "/fork":\n'
            "        read, write = os.pipe()\n"
            "        child = os.fork()\n"
            "        if child == 0:\n"
            "            os.write(write, b'x')  # what is to be closed in a child is closed by now\n"
            "            signal.pause()\n"
            "        os.read(read, 1)\n"
            "        return Page(nonce, str(child).encode())\n"
            '    if path == "/pid":',
        )
    )
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.must_start()
        child = int(instance.get("/fork").payload)
        try:
            held = subprocess.run(["ls", "-l", f"/proc/{child}/fd"], capture_output=True, text=True).stdout
            assert "socket:" not in held, held
            assert instance.stop() == 0
            with pytest.raises(ConnectionRefusedError):
                instance.get("/")
        finally:
            kill(child, signal.SIGKILL)
            wait_gone(child)
