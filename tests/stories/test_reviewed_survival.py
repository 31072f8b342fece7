"""What a reviewer of the survival machinery found: each was a fault once."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, running
from harness.manager import Manager
from harness.processes import descriptors
from quiesce.supervisor.state_store import HALF_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def interpreter(path: Path, before: str, after: str = "") -> Path:
    """This Python behind a script, with shell commands before it starts and after it has ended."""
    path.write_text(f'#!/bin/sh\n{before}\n{sys.executable} "$@"\nended=$?\n{after}\nexit $ended\n')
    path.chmod(0o755)
    return path


def test_a_change_that_begins_while_the_new_code_is_asked(tmp_path: Path, notes: Notes, port: Port) -> None:
    """`reexec` is refused as busy, and says so."""
    gate, asked = tmp_path / "gate", tmp_path / "asked"
    for fifo in (gate, asked):
        os.mkfifo(fifo)
    slow = interpreter(tmp_path / "python", f"echo > {asked}; read line < {gate}")
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2")]
    with running(tmp_path / "i", releases[0], binds=[port.address]) as instance:
        reexec = instance.begin("reexec", "--python", str(slow))
        asked.read_text()  # it has begun
        upgrade = instance.begin("upgrade", "--release", str(releases[1].path), "--bake", "60")
        instance.wait_status(lambda status: status["rollout"]["state"] == "baking")
        gate.write_text("go on\n")
        outcome = reexec.finish(30)
        assert outcome.code == 5 and "upgrade to r2 is under way" in outcome.text, outcome
        instance.ok("promote")
        assert upgrade.finish().code == 0
        instance.ok("reexec")


def test_an_interpreter_that_is_gone_when_it_is_executed(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Nothing was replaced, and the reload that the service manager was told of has an end."""
    file = tmp_path / "python"
    once = interpreter(file, "", f"rm {file}")
    release = build(tmp_path, "v1", notes)
    address = str(tmp_path / "notify")
    with (
        contextlib.closing(Manager(address)) as manager,
        reading(manager),
        running(
            tmp_path / "i", release, binds=[port.address], mode="start", env={"NOTIFY_SOCKET": address}
        ) as instance,
    ):
        instance.expect("reexec refused")
        outcome = instance("reexec", "--python", str(once))
        assert outcome.code == 1 and "nothing was replaced" in outcome.text, outcome
        instance.wait_status(lambda status: last_state(manager) == "READY", 10)
        assert any("RELOADING" in said for said in manager.heard)


def last_state(manager: Manager) -> str:
    """What the manager takes the service for."""
    states = [name for said in list(manager.heard) for name in said if name in ("READY", "RELOADING")]
    return states[-1] if states else ""


@contextlib.contextmanager
def reading(manager: Manager) -> Iterator[None]:
    """Deal with everything that is said to it, as it comes."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            select.select([manager], [], [], 0.05)
            manager.read()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_lock_whose_file_was_removed(tmp_path: Path, notes: Notes, port: Port) -> None:
    """By whoever tidies temporary directories.  The next supervisor has a new one, and so has the one after it."""
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        before = instance.worker_pids()
        (instance.runtime_dir / "lock").unlink()
        for _ in range(3):
            instance.kill_supervisor()
        assert instance.worker_pids() == before


def test_a_service_that_started_anew_is_adopted_with_its_own_scoreboard(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Not with the one that was left to those before, in which its workers write nothing."""
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address]) as instance:
        instance.expect("the state that was left cannot be read")
        spoil_state(instance.keeper_pid)
        after = instance.kill_supervisor()
        instance.settled(2)
        instance.kill_supervisor()
        for _ in range(5):
            instance.get("/")
        instance.wait_status(lambda status: sum(w["requests"] for w in status["workers"]) >= 5)
        held = descriptors(after["keeper"])
        assert sum("quiesce-scoreboard" in target for target in held) == 1, held


def spoil_state(keeper: int) -> None:
    """Overwrite both halves of what the next supervisor is to find."""
    (path,) = [path for path in Path(f"/proc/{keeper}/fd").iterdir() if "quiesce-state" in os.readlink(path)]
    with path.open("r+b") as file:
        for half in (0, HALF_BYTES):
            file.seek(half)
            file.write(b"x" * 64)
