"""What somebody found who had never seen it: what is missing comes back, and commands say what they did."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, prepared, running
from harness.processes import kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_file_that_is_missing_when_a_supervisor_takes_over_is_read_when_it_is_back(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Workers cannot be made without their environment; once it is there again, nobody has to repair anything."""
    release = build(tmp_path, "v1", notes)
    env_file, away = tmp_path / "shop.env", tmp_path / "away"
    env_file.write_text("A=1\n")
    with running(
        tmp_path / "i", release, "--env-file", str(env_file), binds=[port.address], workers=1
    ) as instance:
        instance.expect("can be started at present", "cannot spawn", "worker lost")
        env_file.rename(away)
        instance.kill_supervisor()
        assert any("can be started at present" in notice for notice in instance.status()["notices"])
        outcome = instance("scale", "2", timeout_s=60)
        assert outcome.code == 3 and "No such file" in outcome.text, "it says why, at once"
        assert instance.get("/").status == 200
        away.rename(env_file)
        instance.ok("scale", "3", timeout_s=60)
        status = instance.settled(3)
        assert status["notices"] == []


def test_usr2_after_a_reexec_is_another_reexec(tmp_path: Path, notes: Notes, port: Port) -> None:
    """And not the answer to the command before it."""
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        instance.ok("reexec")
        pid = instance.supervisor_pid
        instance.ok("reexec")
        kill(pid, signal.SIGUSR2)  # with no command in between
        taken = instance.log.wait_for(lambda line: "SIGUSR2: replacing" in line, 30)
        assert taken is not None, instance.log_text()
        assert instance.supervisor_pid == pid
        instance.settled(2)


def test_start_of_a_bad_release_is_a_failure_also_if_an_old_one_serves(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """A script that deploys by stop and start must not believe that it has."""
    good = build(tmp_path, "v1", notes)
    bad = build(tmp_path, "v2", notes, behaviour=Behaviour(on_import="raise"))
    with prepared(tmp_path / "i", good, binds=[port.address], mode="start") as instance:
        instance.expect("failed", "Traceback", "RuntimeError", "start failed")
        instance.must_start()
        assert instance.stop() == 0
        instance.arguments = tuple(
            str(bad.path) if word == str(good.path) else word for word in instance.arguments
        )
        outcome = instance.start()
        assert outcome is not None and outcome.code == 1, outcome
        assert "Traceback" in outcome.text and "instead r1 serves" in outcome.text
        assert "nothing serves" not in outcome.text
        assert instance.get("/").release == "v1"
        assert instance.stop() == 0


def test_resume_counts_those_who_came_quiesced(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "i", v1, binds=[port.address]) as instance:
        instance.ok("drain")
        instance.ok("upgrade", "--release", str(v2.path))
        assert "2 workers accept" in instance.ok("resume").out
        assert instance.get("/").release == "v2"


def test_a_refused_change_is_in_the_log_too(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        assert instance("upgrade", "--release", str(tmp_path / "nowhere")).code == 2
        assert "command upgrade refused" in instance.log_text()
