"""`reexec`: another code for the supervisor, in the same process, and nobody notices; nor when it is no good."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from apps import Notes, Release, build
from harness import Port, footprint, running
from harness.deaths import restarts
from harness.installation import Installation, install
from harness.instance import QUIESCE, Instance, held
from harness.processes import descendants, descriptors, kill, wait_gone
from harness.verdict import assert_all_well, assert_serves
from load import LoadClient, Report, busy, download, fresh, idle, post, upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TIMES = 8
LONG_S = 3.0  # a download and an upload that see several
MIX = (busy(2, think_s=0.002), fresh(2, think_s=0.01), idle(4, 0.2), post(1))
LIVE = (download(1, LONG_S), upload(1, LONG_S))


def version(instance: Instance) -> str:
    return str(instance.status()["supervisor"]["version"])


def assert_unnoticed(report: Report, notes: Notes | None = None) -> None:
    assert_all_well(report, notes)
    assert report.idle_closed == 0, "a kept connection was closed"


def test_again_and_again_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        before = instance.settled(2)
        pid, keeper = before["supervisor"]["pid"], before["keeper"]
        first = kept = None
        with LoadClient(instance.target, *MIX, *LIVE) as load:
            for done in range(1, TIMES + 1):
                outcome = instance.ok("reexec", "--json")
                assert outcome.json["pid"] == pid, outcome
                load.wait_answers(20)
                if done == 3:
                    instance.wait_status(lambda status: status["crash_safe"])
                    first, kept = footprint(pid), len(descriptors(keeper))
            after = instance.wait_status(lambda status: status["crash_safe"])
            last = footprint(pid)
            report = load.stop()
        assert_unnoticed(report, notes)
        assert first is not None
        grown = last - first
        assert (grown.descriptors, grown.threads, grown.children) == (0, 0, 0), f"{grown}\n{held(pid)}"
        assert len(descriptors(keeper)) == kept
        assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]
        assert after["keeper"] == keeper and after["supervisor"]["pid"] == pid
        for name, count in before["counters"].items():
            assert after["counters"][name] >= count
        assert restarts(instance.log_text()) == []
    print(
        f"{TIMES} times, {report.total} answers, grown {grown}, longest gap {report.longest_gap_s * 1000:.0f} ms"
    )


def test_by_signal_and_in_the_background(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], mode="start") as instance:
        before = instance.status()
        pid = before["supervisor"]["pid"]
        with LoadClient(instance.target, *MIX) as load:
            kill(before["keeper"], signal.SIGUSR2)  # it passes it on
            instance.wait_status(lambda _: "quiesce goes on" in instance.log_text())
            load.wait_answers(50)
            assert_unnoticed(load.stop(), notes)
        assert instance.supervisor_pid == pid
        assert instance.worker_pids() == [worker["pid"] for worker in before["workers"]]


# Code that is no good

_NEVER_COMES_UP = """

def serve(*args, **rest):
    raise SystemExit(3)
"""
_DIES_IN_PLACE = """

_serve = serve

def serve(*args, **rest):
    if "QUIESCE_KEPT" in os.environ:
        {how}
    return _serve(*args, **rest)
"""


def test_what_cannot_go_on_is_refused(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Before the point of no return: exit code 1, with the reason, and the very same supervisor goes on."""
    good, used = install(tmp_path / "good"), install(tmp_path / "used")
    used.edit("supervisor/reexec.py", "PATIENCE_S = 30.0", "PATIENCE_S = 2.0")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        instance.command = (str(QUIESCE),)  # of the other one nothing may work
        instance.expect(r"reexec refused")
        before = instance.status()
        with LoadClient(instance.target, *MIX) as load:
            for module, spoil, said in (
                (
                    "supervisor/main.py",
                    lambda: used.append("supervisor/main.py", "\ndef (:\n"),
                    "SyntaxError",
                ),
                ("supervisor/crew.py", lambda: used.append("supervisor/crew.py", "\nimport nix\n"), "'nix'"),
                (
                    "supervisor/core/snapshot.py",
                    lambda: used.edit("supervisor/core/snapshot.py", "SCHEMA = 1", "SCHEMA = 9"),
                    "understands 9 to 9",
                ),
                (
                    "supervisor/daemonize.py",
                    lambda: used.append("supervisor/daemonize.py", "\nimport time; time.sleep(60)\n"),
                    "did not answer within 2 s",
                ),
                (
                    "supervisor/cli.py",
                    lambda: used.append("supervisor/cli.py", "\nraise SystemExit(0)\n"),
                    "",
                ),
            ):
                spoil()
                outcome = instance("reexec")
                assert outcome.code == 1 and said in outcome.text, f"{module}: {outcome}"
                assert "nothing was replaced" in outcome.text, outcome
                now = instance.status()
                assert {**now["supervisor"]} == before["supervisor"], outcome
                assert now["crash_safe"]
                shutil.copyfile(good.package / module, used.package / module)
                used.append(module, "")  # no stale bytecode
            outcome = instance("reexec", "--python", str(tmp_path / "nowhere"))
            assert outcome.code == 2 and "nowhere" in outcome.text, outcome
            load.wait_answers(20)
            assert_unnoticed(load.stop(), notes)
        assert "goes on in process" in instance.ok("reexec").text, "nothing of all that is left"
        assert instance.worker_pids() == [worker["pid"] for worker in before["workers"]]


def test_code_that_hangs_does_not_outlive_its_judge(tmp_path: Path, notes: Notes, port: Port) -> None:
    """The supervisor is killed while it asks code that never answers: that ends all the same."""
    used = install(tmp_path / "used")
    used.edit("supervisor/reexec.py", "PATIENCE_S = 30.0", "PATIENCE_S = 2.0")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        instance.command = (str(QUIESCE),)
        instance.settled(2)
        used.edit("supervisor/preflight.py", '"""Could this', 'import time; time.sleep(600)\n"""Could this')
        pending = instance.begin("reexec")
        judged = wait_for_preflight()
        instance.kill_supervisor()
        outcome = pending.finish()
        assert outcome.code == 1, outcome
        assert wait_gone(judged, 20), "it hangs for ever"


def wait_for_preflight() -> int:
    """The pid of the process that is asked whether it could go on."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for proc in descendants().values():
            if "supervisor.preflight" in proc.command:
                return proc.pid
    raise AssertionError("no preflight")


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "raise RuntimeError('new code')"])
def test_what_dies_after_the_point_of_no_return_is_undone_by_the_keeper(
    how: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    used = install(tmp_path / "used")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        instance.expect("Traceback", "RuntimeError: new code", "bug in quiesce")
        before = instance.settled(2)
        used.append("supervisor/main.py", _DIES_IN_PLACE.format(how=how))
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance("reexec")
            assert outcome.code == 1 and "died while it was being replaced" in outcome.text, outcome
            after = instance.wait_restarted(before["supervisor"]["pid"])
            load.wait_answers(50)
            assert_unnoticed(load.stop(), notes)
        assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]
        assert "starting it again" in instance.log_text()
        assert_serves(instance, release, 2)


def test_another_interpreter_that_never_comes_up_is_left_again(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """The keeper starts the one that worked last."""
    used, other = install(tmp_path / "used"), install(tmp_path / "other", "0.2.0")
    other.append("supervisor/main.py", _NEVER_COMES_UP)
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        before = instance.settled(2)
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance("reexec", "--python", str(other.python))
            assert outcome.code == 1 and "last code that worked" in outcome.text, outcome
            after = instance.wait_restarted(before["supervisor"]["pid"])
            assert_unnoticed(load.stop(), notes)
        assert after["supervisor"]["version"] == before["supervisor"]["version"]


def test_a_supervisor_that_cannot_come_up_for_a_while_costs_nobody_anything(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Broken code, installed over the good one, that passes every check: until it is mended workers serve alone."""
    good, used = install(tmp_path / "good"), install(tmp_path / "used")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        instance.command = good.command
        before = instance.settled(2)
        used.append("supervisor/main.py", _NEVER_COMES_UP)
        with LoadClient(instance.target, *MIX) as load:
            pending = instance.begin("reexec")
            instance.log.wait_for(lambda line: "starting it again" in line and "delay_s=0.5" in line, 30)
            load.wait_answers(100)
            shutil.copyfile(good.package / "supervisor/main.py", used.package / "supervisor/main.py")
            used.append("supervisor/main.py", "")
            outcome = pending.finish()
            assert outcome.code == 1, outcome
            after = instance.wait_restarted(before["supervisor"]["pid"])
            load.wait_answers(50)
            assert_unnoticed(load.stop(), notes)
        assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]


# Other code


def test_another_interpreter(tmp_path: Path, notes: Notes, port: Port) -> None:
    """It stays the supervisor's after a crash, too, and after a `reexec` that names none."""
    used, other = install(tmp_path / "used"), install(tmp_path / "other", "0.2.0")
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=used.command) as instance:
        before = instance.settled(2)
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance.ok("reexec", "--python", str(other.python))
            assert re.search(r"quiesce 0\.2\.0 on Python .* \(was 0\.1", outcome.text), outcome
            assert instance.supervisor_pid == before["supervisor"]["pid"]
            assert version(instance) == "0.2.0"
            after = instance.kill_supervisor()
            assert after["supervisor"]["version"] == "0.2.0"
            instance.ok("reexec")
            assert version(instance) == "0.2.0"
            instance.ok("reexec", "--python", str(used.python))
            assert version(instance) == before["supervisor"]["version"]
            load.wait_answers(50)
            assert_unnoticed(load.stop(), notes)
        assert instance.worker_pids() == [w["pid"] for w in before["workers"]]


def test_another_version_is_installed_over_a_running_one(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Modules have other names in it.  Every command works, of the old version and of the new one."""
    used, old, new = install(tmp_path / "used"), install(tmp_path / "old"), install(tmp_path / "new", "0.1.1")
    for module in ("render", "rollouts", "worker_link", "control_protocol", "places", "units"):
        new.rename_module(module, f"{module}_of_today")
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2")]
    with running(
        tmp_path / "i", releases[0], binds=[port.address], mode="start", command=used.command
    ) as instance:
        before = instance.settled(2)["supervisor"]
        with LoadClient(instance.target, *MIX) as load:
            used.become(new)
            for installation in (used, old):
                every_command(instance, installation, releases)
            load.wait_answers(50)
            assert_all_well(load.stop())
        assert instance.status()["supervisor"] == before
        instance.command = used.command
        (victim, _) = instance.worker_pids()
        instance.expect("worker lost")
        kill(victim)
        assert wait_gone(victim)
        instance.wait_status(
            lambda status: (
                [w["state"] for w in status["workers"]] == ["accepting"] * 2
                and victim not in [w["pid"] for w in status["workers"]]
            )
        )
        with LoadClient(instance.target, *MIX) as load:
            outcome = instance.ok("reexec")
            assert "quiesce 0.1.1" in outcome.text, outcome
            assert instance.supervisor_pid == before["pid"] and version(instance) == "0.1.1"
            assert instance.kill_supervisor()["supervisor"]["version"] == "0.1.1"
            every_command(instance, old, releases)
            assert_all_well(load.stop())


def every_command(instance: Instance, installation: Installation, releases: list[Release]) -> None:
    """What an operator may say, from this installation; ends where it began: the first release, two workers."""
    instance.command = installation.command
    instance.ok("status")
    for argv in (("scale", "2"), ("reopen",), ("reconfigure",), ("history",)):
        instance.ok(*argv)
    first, second = releases
    instance.ok("upgrade", "--release", str(second.path), "--wait-drained")
    assert instance.get("/").release == second.name
    assert instance("abort").code != 3
    instance.ok("rollback")
    assert instance.get("/").release == first.name
    pending = instance.begin("upgrade", "--release", str(second.path), "--bake", "60")
    instance.wait_status(lambda status: status["rollout"]["state"] == "baking")
    instance.ok("abort")
    assert pending.finish().code == 1
    instance.settled(2)
    instance.ok("quiesce", instance.status()["workers"][0]["id"])
    instance.ok("resume", "all")
    assert instance.ok("status", "--json").json["supervisor"]["pid"] > 0


# Workers that speak another protocol

PROTOCOLS = {"a newer supervisor": ((1, 1), (2, 1)), "an older supervisor": ((2, 1), (1, 1))}
TOO_FAR = {"a newer supervisor": ((1, 1), (3, 2)), "an older supervisor": ((3, 2), (1, 1))}


def speaking(path: Path, newest: int, oldest: int) -> Installation:
    installation = install(path)
    installation.edit("shared/messages.py", "\nPROTOCOL = 1", f"\nPROTOCOL = {newest}")
    installation.edit("shared/messages.py", "\nOLDEST_PROTOCOL = 1", f"\nOLDEST_PROTOCOL = {oldest}")
    return installation


@pytest.mark.parametrize("case", PROTOCOLS)
def test_workers_whose_protocol_is_one_older_or_newer_are_adopted(
    case: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """And served on: no request is lost, they stay, a crash afterwards changes nothing, and they can be upgraded."""
    theirs, ours = (
        speaking(tmp_path / name, *speaks)
        for name, speaks in zip(("theirs", "ours"), PROTOCOLS[case], strict=True)
    )
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=theirs.command) as instance:
        before = [worker["pid"] for worker in instance.settled(2)["workers"]]
        with LoadClient(instance.target, *MIX) as load:
            instance.ok("reexec", "--python", str(ours.python))
            instance.settled(2)
            instance.kill_supervisor()
            instance.settled(2)
            load.wait_answers(100)
            assert instance.worker_pids() == before
            instance.ok("upgrade", "--wait-drained")
            assert_unnoticed(load.stop(), notes)


@pytest.mark.parametrize("case", TOO_FAR)
def test_a_supervisor_that_would_not_understand_the_workers_is_refused(
    case: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    theirs, ours = (
        speaking(tmp_path / name, *speaks)
        for name, speaks in zip(("theirs", "ours"), TOO_FAR[case], strict=True)
    )
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], command=theirs.command) as instance:
        instance.expect("reexec refused")
        before = instance.settled(2)
        for _ in range(2):
            outcome = instance("reexec", "--python", str(ours.python))
            assert outcome.code == 1 and "speaks protocol" in outcome.text, outcome
            instance.kill_supervisor()  # the next one knows it, too
        assert instance.worker_pids() == [worker["pid"] for worker in before["workers"]]
