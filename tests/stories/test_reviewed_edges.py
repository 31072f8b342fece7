"""What reviewers did to a running instance: odd requests, odd applications, signals from somebody else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps import Notes, Release, build
from harness import Instance, Port, prepared, running
from harness.processes import kill
from harness.verdict import assert_serves, at_strength

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

MIB = 1 << 20

# While the file `mute` is there, every new process goes without a word.
DIES_WORDLESS = """
import os
if os.path.exists(os.path.join(pages.behaviour.NOTES, "mute")):
    os._exit(9)
"""

# While the FIFO `gate` is there, the import waits until the test has opened it and closed it again.
WAITS_AT_THE_GATE = """
import os
if os.path.exists(os.path.join(pages.behaviour.NOTES, "gate")):
    with open(os.path.join(pages.behaviour.NOTES, "gate")) as gate:
        gate.read()
"""

HAS_ITS_OWN_ALARM = """
import signal

def alarm(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, alarm)
_shop = app

def app(environ, start_response):
    if environ.get("QUERY_STRING") != "alarm":
        return _shop(environ, start_response)
    mine = signal.getsignal(signal.SIGALRM) is alarm
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"alarm\\n{mine} {signal.getitimer(signal.ITIMER_REAL)}".encode()]
"""

NEVER_STOPS_TALKING = """
import os
while True:
    os.write(1, b"y" * 65535 + b"\\n")
"""


def with_code(release: Release, code: str) -> Release:
    """More code at the end of its shop."""
    shop = release.path / "shop.py"
    shop.write_text(shop.read_text() + code)
    return release


@contextlib.contextmanager
def somebody_at_the_gate(notes: Notes) -> Iterator[None]:
    """A worker is in its import for the length of the block: opening a FIFO waits for the other side."""
    with (notes.path / "gate").open("w"):
        yield


def control(instance: Instance, command: str, **args: object) -> dict[str, Any]:
    """One request on the control socket as somebody else's client might send it; its result."""
    request = {"v": 1, "id": uuid.uuid4().hex, "command": command, "args": args}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(instance.runtime_dir / "control.sock"))
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as answers:
            for line in answers:
                answer: dict[str, Any] = json.loads(line)
                if answer["kind"] == "result":
                    return answer
    raise AssertionError(f"no result for {request}")


def test_requests_that_cannot_be_meant_are_answered_2_however_many(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    odd: list[tuple[str, dict[str, object]]] = [
        ("upgrade", {"release": "a\0b"}),
        ("upgrade", {"release": "\ud800"}),
        ("upgrade", {"python": "a\0b"}),
        ("upgrade", {"bake": 10**400}),
        ("rollback", {"which": "a\0b"}),
        ("quiesce", {"what": "\ud800"}),
    ]
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        pid, pids = instance.supervisor_pid, instance.worker_pids()
        for command, args in odd * 10:
            answer = control(instance, command, **args)
            assert answer["code"] == 2, (command, args, answer)
        at_strength(instance, pids)
        assert instance.supervisor_pid == pid
        assert_serves(instance, v1)


def test_scale_says_why_when_the_new_worker_dies_without_a_word(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = with_code(build(tmp_path, "v1", notes), DIES_WORDLESS)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        (notes.path / "mute").touch()
        outcome = instance("scale", "3", timeout_s=20)
        assert outcome.code == 3, outcome
        assert re.search(r"exit\w* .*9", outcome.text), outcome
        (notes.path / "mute").unlink()
        instance.settled(3)


def test_scale_does_not_claim_success_when_the_instance_stops(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = with_code(build(tmp_path, "v1", notes), WAITS_AT_THE_GATE)
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        instance.must_start()
        os.mkfifo(notes.path / "gate")
        scale = instance.begin("scale", "3")
        with somebody_at_the_gate(notes):
            stop = instance.ok("stop", "--now", timeout_s=20)
            outcome = scale.finish(20)
        assert outcome.code in (3, 5), f"{outcome}\n{stop}"
        assert instance.wait(10) == 0


def test_an_application_with_its_own_alarm_handler_gets_no_alarm_of_ours(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = with_code(build(tmp_path, "v1", notes), HAS_ITS_OWN_ALARM)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        assert instance.get("/?alarm").payload == "True (0.0, 0.0)"


def test_a_worker_that_somebody_else_terms_drains_while_its_successor_accepts(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    rollout = {"drain_timeout": '"60s"'}
    with running(tmp_path / "instance", v1, binds=[port.address], workers=1, rollout=rollout) as instance:
        (old,) = instance.worker_pids()
        with contextlib.closing(socket.create_connection((port.host, port.number), timeout=20)) as kept:
            kept.sendall(b"POST / HTTP/1.1\r\nHost: shop\r\nX-Nonce: 1\r\nContent-Length: 2\r\n\r\n1")
            instance.wait_status(lambda status: status["workers"][0]["connections"]["busy"] == 1)
            kill(old, signal.SIGTERM)
            status = instance.wait_status(
                lambda status: sorted(w["state"] for w in status["workers"]) == ["accepting", "draining"]
            )
            assert {w["pid"]: w["state"] for w in status["workers"]}[old] == "draining"
            assert instance.get("/", timeout_s=10).status == 200
            kept.sendall(b"2")
            assert kept.recv(4096).startswith(b"HTTP/1.1 200 "), "who cannot move is answered where it is"
        assert old not in [worker["pid"] for worker in instance.settled(1)["workers"]]


def test_a_release_that_writes_without_end_at_import_is_refused_and_costs_no_memory(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = with_code(build(tmp_path, "v2", notes), NEVER_STOPS_TALKING)
    log = f'[log]\nfile = "{tmp_path}/shop.log"\n'
    rollout = {"start_timeout": '"8s"'}
    with running(
        tmp_path / "instance", v1, binds=[port.address], workers=1, rollout=rollout, config=log
    ) as instance:
        (pid,) = instance.worker_pids()
        upgrade = instance.begin("upgrade", "--release", str(v2.path))
        slowest = 0.0
        while upgrade.process.poll() is None and slowest < 30:
            look = instance.ok("status")
            slowest = max(slowest, look.ended - look.began)
        outcome = upgrade.finish(30)
        assert outcome.code == 1, outcome
        assert re.search("of output|within 8 s|start_timeout", outcome.text), outcome
        assert slowest < 5, f"`status` took {slowest:.1f} s meanwhile"
        assert peak_memory(instance.supervisor_pid) < 200 * MIB
        at_strength(instance, [pid])
        assert_serves(instance, v1)
    assert (tmp_path / "shop.log").stat().st_size < 300 * MIB


def peak_memory(pid: int) -> int:
    """VmHWM in bytes: proc_pid_status(5)."""
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def test_no_descriptor_left_when_the_probe_is_asked_is_a_failed_probe(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    v2 = with_code(build(tmp_path, "v2", notes), WAITS_AT_THE_GATE)
    with running(tmp_path / "instance", v1, binds=[port.address], workers=1) as instance:
        instance.expect("ERROR")
        (worker,), supervisor = instance.worker_pids(), instance.supervisor_pid
        os.mkfifo(notes.path / "gate")
        upgrade = instance.begin("upgrade", "--release", str(v2.path))
        with somebody_at_the_gate(notes):
            soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (lowest_free(supervisor), hard))
        try:
            outcome = upgrade.finish(30)
        finally:
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
        assert outcome.code == 1, outcome
        assert "could not be asked" in outcome.text, outcome
        at_strength(instance, [worker])
        instance.ok("upgrade", "--release", str(build(tmp_path, "v3", notes).path))


def lowest_free(pid: int) -> int:
    """The number that its next descriptor would get."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(taken) + 1)) - taken)
