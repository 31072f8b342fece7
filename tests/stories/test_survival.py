"""The supervisor dies, for whatever reason and as often as it likes: who is served does not notice."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGSEGV, SIGUSR1

import pytest

from apps import Behaviour, Notes, build
from harness import Port, prepared, running
from harness.deaths import die_again_and_again, name_of, printed, restarts
from harness.instance import Outcome
from harness.processes import descriptors, kill, wait_gone
from harness.users import User, give, ordinary_user, with_few_files
from harness.verdict import assert_all_well, assert_serves
from load import LoadClient, busy, download, fresh, idle, late, post, upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LINE = 1024
FEW = 110  # descriptors that a process may have; the keeper stores 46 of them
KEPT_PER_WORKER = 3
KEPT_PER_GENERATION = 2
# Some think time: the cores are for the supervisor that starts, too.
MIX = (
    busy(2, think_s=0.002),
    fresh(2, think_s=0.01),
    idle(4, 0.2),
    late(1, 0.3),
    post(1),
    upload(1, 2.0),
    download(1, 2.0),
)


def signals(kills: int) -> list[int]:
    """SIGKILL mostly; the watchdog's and a bug's once each."""
    return [SIGKILL, SIGABRT, SIGSEGV, *[SIGKILL] * kills][:kills]


@pytest.mark.parametrize(
    ("who", "mode", "kills"),
    [
        ("root", "run", 5),
        ("root", "start", 3),
        ("an ordinary user", "run", 3),
        ("an ordinary user", "start", 3),
    ],
)
def test_it_dies_under_load_and_nobody_notices(
    who: str, mode: str, kills: int, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Each line that the application printed is in the log exactly once.

    Workers that serve write to the log themselves, through a descriptor of their own, so no death of a
    supervisor comes between them and it.
    """
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(print_bytes=LINE))
    directory, options = tmp_path / "i", ()
    user: User | None = None
    if who == "an ordinary user":
        user = ordinary_user(tmp_path / "home")
        directory.mkdir()
        tmp_path.chmod(0o755)
        give(directory, user.uid)
        give(notes.path, user.uid)
        options = ("--python", user.python)
    rest = {"command": user.command, "env": user.env} if user is not None else {}
    wanted = signals(kills)
    with prepared(directory, release, *options, binds=[port.address], mode=mode, **rest) as instance:
        instance.must_start()
        if user is not None:
            assert_is(user, instance.supervisor_pid)
        with LoadClient(instance.target, *MIX) as load:
            deaths = die_again_and_again(instance, load, wanted)
            deaths.report = report = load.stop()
        code = instance.stop()
        assert code == 0
    log = instance.log_text()
    assert_all_well(report, notes)
    assert report.idle_closed == 0, "a kept connection was closed"
    assert [name for _, name, _ in restarts(log)] == [name_of(number) for number in wanted]
    assert log.count(" quiesce goes on ") == len(wanted)
    assert printed(log, LINE) == report.total
    assert deaths.keeper_pss_kib < 10 * 1024
    deaths.delays_s = [delay for _, _, delay in restarts(log)]
    print(deaths.row(f"{who}, {mode}"))


def assert_is(user: User, pid: int) -> None:
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{user.uid}\t{user.uid}\t{user.uid}\t{user.uid}" in status
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (files,) = [line.split()[3:5] for line in limits if line.startswith("Max open files")]
    assert files == ["1024", "1024"]


# Others die with it


@pytest.mark.parametrize("how_many", [1, 2], ids=["one of two", "all"])
def test_workers_that_die_with_it_are_replaced_by_the_next_one(
    how_many: int, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Nobody is refused either: the listener lives, and who comes meanwhile waits in its queue."""
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        instance.expect(r"worker lost")
        instance.get("/")
        before = instance.status()
        pids = [worker["pid"] for worker in before["workers"]]
        victims, rest = pids[:how_many], set(pids[how_many:])
        supervisor = before["supervisor"]["pid"]
        kill(supervisor)
        for pid in victims:
            kill(pid)
        assert all(wait_gone(pid) for pid in (supervisor, *victims))
        assert instance.get("/").release == "v1"
        instance.wait_restarted(supervisor)
        after = instance.settled(2)
        now = {worker["pid"] for worker in after["workers"]}
        assert now > rest if rest else now.isdisjoint(pids)
        assert now.isdisjoint(victims)
        for name, count in before["counters"].items():
            assert after["counters"][name] >= count, "the dead one's work is forgotten"
        lost = [line for line in instance.log_text().splitlines() if "worker lost" in line]
        assert len(lost) == how_many, lost


# What could not survive is refused


def test_more_than_can_survive_is_refused_with_the_number(tmp_path: Path, notes: Notes, port: Port) -> None:
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2")]
    with running(tmp_path / "i", releases[0], binds=[port.address], command=with_few_files(FEW)) as instance:
        assert instance.wait_status(lambda status: status["crash_safe"])
        pids = instance.worker_pids()
        refused = instance("scale", "20")
        limit = assert_refused(refused, 18 * KEPT_PER_WORKER)
        assert instance.worker_pids() == pids and instance.status()["wanted_workers"] == 2
        instance.ok("scale", "8")
        instance.settled(8)
        pids = instance.worker_pids()
        refused = instance("upgrade", "--release", str(releases[1].path))
        assert_refused(refused, 8 * KEPT_PER_WORKER + KEPT_PER_GENERATION)
        assert_serves(instance, releases[0], 8)
        assert instance.worker_pids() == pids
        assert instance.status()["crash_safe"]
        # What fits survives, as it says.
        instance.kill_supervisor()
        assert sorted(instance.worker_pids()) == sorted(pids)
        instance.ok("scale", "2")
        instance.settled(2)
        instance.ok("upgrade", "--release", str(releases[1].path))
        assert_serves(instance, releases[1], 2)
    with running(
        tmp_path / "j", releases[0], binds=[port.address], command=with_few_files(limit)
    ) as instance:
        instance.ok("scale", "20")
        assert instance("scale", "21").code == 2, "it was the exact number"


def assert_refused(refused: Outcome, places: int) -> int:
    """It says what is needed, what is there, and what would do; returns that."""
    found = re.search(r"would need (\d+) places .*, and (\d+) are free", refused.text)
    assert refused.code == 2 and found is not None, refused
    needed, free = map(int, found.groups())
    assert needed == places and free < needed
    limit = FEW - free + needed
    assert f"ulimit -n`) to {limit} or more" in refused.text, refused
    return limit


# The log


@pytest.mark.parametrize("by", ["the command", "USR1"])
def test_the_log_is_rotated_under_load(by: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(print_bytes=LINE))
    with prepared(tmp_path / "i", release, binds=[port.address], mode="start") as instance:
        instance.must_start()
        log = Path(instance.status()["log"])
        old = log.with_name("rotated.log")
        with LoadClient(instance.target, *MIX) as load:
            load.wait_answers(100)
            log.rename(old)
            if by == "USR1":
                kill(instance.keeper_pid, SIGUSR1)  # what `kill $(cat pid)` of a habit reaches
                wait_for_line(log, "is re-opened")
            else:
                instance.ok("reopen")
            status = instance.status()
            for pid in (status["keeper"], status["supervisor"]["pid"], *instance.worker_pids()):
                assert os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2") == str(log), pid
                assert str(old) not in descriptors(pid)
            size = old.stat().st_size
            load.wait_answers(200)
            # The keeper's own lines, and those of the next supervisor.
            instance.kill_supervisor()
            load.wait_answers(100)
            report = load.stop()
        assert instance.stop() == 0
    assert_all_well(report, notes)
    assert old.stat().st_size == size, "somebody writes to the old one"
    assert printed(old.read_text(), LINE) > 0
    assert printed(old.read_text(), LINE) + printed(log.read_text(), LINE) == report.total
    assert len(restarts(log.read_text())) == 1 and "quiesce goes on" in log.read_text()


def wait_for_line(log: Path, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while not (log.exists() and wanted in log.read_text()):
        assert time.monotonic() < deadline, f"no {wanted!r} in {log}"
        time.sleep(0.02)  # nothing tells when a file has grown, short of inotify
