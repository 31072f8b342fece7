"""The supervisor dies and replaces itself, in the full counts, with the figures that the documentation quotes.

    ./dev soak tests/soak/test_survival_soak.py

What ./dev test does with few counts is in the stories test_survival.py and test_reexec.py.  The sweep over every
moment at which a supervisor can die is that of stories/test_supervisor_killed_anywhere.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, footprint, prepared, running
from harness.deaths import HEAD, Deaths, die_again_and_again, printed, pss_kib, restarts
from harness.processes import descriptors
from harness.users import give, ordinary_user
from harness.verdict import assert_all_well
from load import LoadClient, busy, download, fresh, idle, late, pipelined, post, upload

FULL = os.environ.get("QUIESCE_SOAK") == "full"
KILLS, FIRST_KILLS, REEXECS = 20, 5, 50
pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not FULL, reason="./dev soak runs it; the stories do the same with few counts"),
]
LINE = 1024
# As in test_soak.py: it asks whether anything is lost, not how fast two cores are.
MIX = (
    busy(1, think_s=0.002),
    fresh(2, think_s=0.02),
    pipelined(1, think_s=0.1),
    post(1, think_s=0.02),
    upload(1, 3.0),
    download(1, 3.0),
    late(2, 0.3),
    idle(4, 0.7),
)
WAYS = [(who, mode) for who in ("root", "an ordinary user") for mode in ("run", "start")]


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of the table, which is printed at the end."""
    rows: list[str] = []
    yield rows
    if rows:
        print("", HEAD, *rows, sep="\n", flush=True)


@pytest.mark.parametrize(("who", "mode"), WAYS)
def test_deaths(who: str, mode: str, tmp_path: Path, notes: Notes, port: Port, table: list[str]) -> None:
    """As stories/test_survival.py has it, each way of running, all by SIGKILL, at least twenty times."""
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(print_bytes=LINE))
    directory, options, command = tmp_path / "i", (), {}
    if who != "root":
        user = ordinary_user(tmp_path / "home")
        directory.mkdir()
        tmp_path.chmod(0o755)
        give(directory, user.uid)
        give(notes.path, user.uid)
        options, command = ("--python", user.python), {"command": user.command, "env": user.env}
    with prepared(directory, release, *options, binds=[port.address], mode=mode, **command) as instance:
        instance.must_start()
        with LoadClient(instance.target, *MIX, max_seconds=3500) as load:
            deaths = die_again_and_again(instance, load, [9] * KILLS)
            deaths.report = report = load.stop()
        assert instance.stop() == 0
    log = instance.log_text()
    deaths.delays_s = [delay for _, _, delay in restarts(log)]
    table.append(deaths.row(f"SIGKILL, {who}, `{mode}`"))
    assert_all_well(report, notes)
    assert report.idle_closed == 0
    assert printed(log, LINE) == report.total


def test_first_deaths(tmp_path: Path, notes: Notes, port: Port, table: list[str]) -> None:
    """What a supervisor's death costs that comes alone: no back-off, in `status`'s eyes."""
    release = build(tmp_path, "v1", notes)
    together = Deaths()
    for number in range(FIRST_KILLS):
        with (
            running(tmp_path / f"i{number}", release, binds=[port.address]) as instance,
            LoadClient(instance.target, *MIX) as load,
        ):
            deaths = die_again_and_again(instance, load, [9])
            report = load.stop()
            assert_all_well(report)
            assert report.idle_closed == 0
        together.recovered_s += deaths.recovered_s
        together.delays_s += [delay for _, _, delay in restarts(instance.log_text())]
        together.keeper_pss_kib = deaths.keeper_pss_kib
        together.report.answers["all"] = together.report.total + report.total
        together.report.longest_gap_s = max(together.report.longest_gap_s, report.longest_gap_s)
    assert together.delays_s == [0.0] * len(together.recovered_s)
    table.append(together.row("a first SIGKILL"))


def test_reexecs(tmp_path: Path, notes: Notes, port: Port, table: list[str]) -> None:
    release = build(tmp_path, "v1", notes)
    took: list[float] = []
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        status = instance.settled(2)
        pid, keeper = status["supervisor"]["pid"], status["keeper"]
        with LoadClient(instance.target, *MIX, max_seconds=3500) as load:
            first = kept = None
            for done in range(1, REEXECS + 1):
                began = time.monotonic()
                assert instance.ok("reexec", "--json").json["pid"] == pid
                took.append(time.monotonic() - began)
                load.wait_answers(30)
                if done == REEXECS // 5:
                    instance.wait_status(lambda status: status["crash_safe"])
                    first, kept = footprint(pid), len(descriptors(keeper))
            instance.wait_status(lambda status: status["crash_safe"])
            assert first is not None
            grown = footprint(pid) - first
            keeper_grown = len(descriptors(keeper)) - (kept or 0)
            pss = pss_kib(keeper)
            report = load.stop()
    deaths = Deaths(took, [0.0] * len(took), pss, report)
    table.append(deaths.row("`reexec`, the whole command"))
    assert_all_well(report, notes)
    assert report.idle_closed == 0
    assert (grown.descriptors, grown.threads, grown.children, keeper_grown) == (0, 0, 0, 0), grown
    # Executing anew leaves nothing in memory: no run has more than the one before.
    assert grown.rss_kib < 1024, grown
