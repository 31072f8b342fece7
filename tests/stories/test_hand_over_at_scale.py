"""A crowd on its own sockets, while releases come and go: nobody is closed, nobody hears of the old release again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apps import Notes, build
from harness import Port, running
from harness.instance import Instance, Outcome
from harness.processes import kill, read_proc, wait_gone
from harness.sockets import client_ports
from harness.users import FEW_FILES, give, ordinary_user, with_few_files
from load.crowd import Crowd, Size
from load.wire import parse_target

FULL = os.environ.get("QUIESCE_SOAK") == "full"
pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(3000 if FULL else 300)]
CHANGES = 50 if FULL else 8
KILLS = 100 if FULL else 10
#: Nobody leaves by himself in the time that a test takes.
PATIENT = '[limits]\nheader_timeout = "3000s"\nidle_timeout = "3000s"\nconnections = 20000\n'
EVERYBODY = Size(idle=1000, busy=64, half_heads=10, fresh=10, pipelining=1)


def _assert_nobody_heard_of_the_old(runs: list[list[Any]], changes: list[tuple[Outcome, str]]) -> None:
    """No request that was sent after a change had returned was answered by another release, until the next began."""
    for (done, release), (following, _) in pairwise(changes):
        for connection, first, last, who in runs:
            if who != release:
                inside = [at for at in (first, last) if done.ended < at < following.began]
                assert not inside, (
                    f"{connection} heard {who} {inside[0] - done.ended:.3f} s after {release} served"
                )


@pytest.mark.parametrize("flavour", ["wsgi", "asgi", "native"])
def test_a_crowd_lives_through_upgrades_and_rollbacks(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, _ = (build(tmp_path, name, notes, flavour) for name in ("v1", "v2"))
    changes: list[tuple[Outcome, str]] = []
    with (
        running(tmp_path / "instance", v1, binds=[port.address], config=PATIENT, bake=None) as instance,
        Crowd(instance.target, EVERYBODY) as crowd,
    ):
        serves = "v1"
        for turn in range(CHANGES):
            serves = "v2" if serves == "v1" else "v1"
            way = ("rollback",) if turn % 3 == 2 else ("upgrade", "--release", str(tmp_path / serves))
            changes.append((instance.ok(*way, "--bake", "0.1"), serves))
            crowd.assert_well()
            if turn % 4 == 3:
                assert crowd.ask("idle") == {serves: EVERYBODY.idle}
                assert crowd.ask("half_heads") == {serves: EVERYBODY.half_heads}
        assert crowd.ask("idle") == {serves: EVERYBODY.idle}
        assert crowd.ask("half_heads") == {serves: EVERYBODY.half_heads}
        assert crowd.ask("fresh") == {serves: EVERYBODY.fresh}
        seen = crowd.assert_well()
        assert seen["open"] == sum(EVERYBODY)
        _assert_nobody_heard_of_the_old(seen["runs"], changes)
        print(
            f"{flavour}: {CHANGES} changes, {seen['answers']} answers, {changes[-1][0].text.splitlines()[-1]}"
        )


def test_ten_thousand_and_one_upgrade(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=10_000, busy=4)
    with (
        running(tmp_path / "instance", v1, binds=[port.address], config=PATIENT) as instance,
        Crowd(instance.target, size) as crowd,
    ):
        outcome = instance.ok("upgrade", "--release", str(v2.path), "--bake", "0.1")
        crowd.assert_well()
        instance.settled(2)  # the old workers have left
        assert crowd.ask("idle") == {"v2": size.idle}
        assert crowd.assert_well()["open"] == sum(size)
        print(f"10,000: {outcome.text.splitlines()[-1]}")


def test_five_hundred_with_few_descriptors(tmp_path: Path, notes: Notes, port: Port) -> None:
    """An ordinary user whose limit of descriptors is 1024: what is in flight counts for him, and the bounds hold."""
    user = ordinary_user(tmp_path / "home", FEW_FILES)
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    directory = tmp_path / "i"
    directory.mkdir()
    tmp_path.chmod(0o755)
    for each in (directory, notes.path):
        give(each, user.uid)
    size = Size(idle=500, busy=4, half_heads=4, fresh=4)
    with (
        running(
            directory, v1, "--python", user.python, binds=[port.address], config=PATIENT,
            command=user.command, env=user.env,
        ) as instance,
        Crowd(instance.target, size) as crowd,
    ):  # fmt: skip
        for release in (v2, v1, v2):
            instance.ok("upgrade", "--release", str(release.path), "--bake", "0.1")
            crowd.assert_well()
        assert crowd.ask("idle") == {"v2": size.idle}
        assert crowd.ask("half_heads") == {"v2": size.half_heads}
        assert crowd.ask("fresh") == {"v2": size.fresh}
        assert crowd.assert_well()["open"] == sum(size)


def test_a_worker_that_is_full_is_upgraded_like_others(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Who connects does not get the last descriptors: the order to hand over brings some along, and must be read."""
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with (
        running(
            tmp_path, v1, "--workers", "1", binds=[port.address], config=PATIENT, command=with_few_files(256),
        ) as instance,
        contextlib.ExitStack() as clients,
    ):  # fmt: skip
        instance.expect("accepting pauses: Too many open files")
        _, address = parse_target(instance.target)
        crowd = [clients.enter_context(socket.create_connection(address)) for _ in range(250)]
        instance.wait_status(lambda status: status["workers"][0]["connections"]["open"] > 200)
        time.sleep(1)  # one more comes in with each try, where that is not prevented
        outcome = instance.ok("upgrade", "--release", str(v2.path), "--bake", "0.1")
        assert " connections kept, 0 closed" in outcome.text
        for sock in crowd[150:]:
            sock.close()  # those from the queue have taken room in the new worker
        for sock in crowd[:150]:
            sock.settimeout(20)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """The process stands still, so that what it holds can be looked at; it is not continued."""
    kill(pid, signal.SIGSTOP)
    try:
        # The signal is only pending at first: it might take a packet more.
        while (proc := read_proc(pid)) is not None and proc.state not in "TZ":
            pass
        yield
    finally:
        kill(pid, signal.SIGKILL)
        assert wait_gone(pid)


def test_sigkill_at_random_moments_of_hand_overs(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Only what the killed process alone held is lost, and nobody is answered twice."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    size = Size(idle=200, half_heads=5, fresh=5)
    lost_in_all = 0
    with running(tmp_path / "instance", v1, binds=[port.address], config=PATIENT) as instance:
        instance.expect(".*")  # workers are killed: the log says so, loudly
        for turn in range(KILLS):
            release = (v2, v1)[turn % 2]
            instance.settled(2)
            with Crowd(instance.target, size) as crowd:
                upgrade = instance.begin("upgrade", "--release", str(release.path), "--bake", "0.1")
                try:
                    held, lost = _kill_one(instance, chance, upgrade, crowd)
                finally:
                    upgrade.finish()
                assert lost <= held, (
                    f"turn {turn}: {len(lost - held)} others than the {len(held)} of the killed process were lost: "
                    f"{crowd.look()['failures'][:3]}\n{instance.log_text()[-3000:]}"
                )
                lost_in_all += len(lost)
                instance.settled(2)
                crowd.ask("idle")
                crowd.ask("half_heads")
                crowd.ask("fresh")
                seen = crowd.look()
                assert set(seen["lost"]) <= held, f"turn {turn}: {seen['failures'][:5]}"
                assert not [
                    text
                    for text in seen["failures"]
                    if "nobody asked" in text or "answers" in text.partition(":")[2]
                ]
    print(f"{KILLS} workers killed, {lost_in_all} connections that they held were lost, no other")


def _kill_one(
    instance: Instance, chance: random.Random, upgrade: Any, crowd: Crowd
) -> tuple[set[int], set[int]]:
    """Kill one of the workers at some moment of the upgrade; what it held, and what has been lost by then."""
    until = time.monotonic() + chance.uniform(0.1, 0.6)  # a random moment is what this is about
    pids: list[int] = []
    while time.monotonic() < until and upgrade.process.poll() is None:
        pids = instance.worker_pids()
    port = int(instance.target.rpartition(":")[2])
    for victim in chance.sample(pids, len(pids)):  # the first of them may have left by now
        try:
            with _stopped(victim):
                held = client_ports(victim, port)
        except FileNotFoundError:
            continue
        return held, set(crowd.look()["lost"])
    return set(), set(crowd.look()["lost"])
