"""Rollouts that reviewers found to hang, to lie, or to leave nobody accepting."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from apps import Behaviour, Notes, Release, build, link
from harness import Instance, Port, prepared, running
from harness.verdict import assert_serves, at_strength, serving
from load import LoadClient, fresh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

# A deadlock after the probes of the gate have passed.
HANGS_FROM_THE_THIRD_REQUEST_ON = """
import itertools
import threading

_shop, _asked = app, itertools.count(1)

def app(environ, start_response):
    if next(_asked) > 2:
        threading.Event().wait()
    return _shop(environ, start_response)
"""

# Both wait for the file `go`, so the test says when the work after the response ends.
WORKS_AFTER_THE_RESPONSE = {
    "asgi": """
import os

_shop = app

async def app(scope, receive, send):
    await _shop(scope, receive, send)
    if scope["type"] == "http" and scope["query_string"] == b"work":
        pages.note("begun", "begun")
        while not os.path.exists(os.path.join(pages.behaviour.NOTES, "go")):
            await asyncio.sleep(0.3)
        pages.note("done", "done")
""",
    "wsgi": """
import os

_shop = app

class Body(list):
    def close(self):
        pages.note("begun", "begun")
        while not os.path.exists(os.path.join(pages.behaviour.NOTES, "go")):
            time.sleep(0.3)
        pages.note("done", "done")

def app(environ, start_response):
    body = _shop(environ, start_response)
    return Body(body) if environ.get("QUERY_STRING") == "work" else body
""",
}


def with_code(release: Release, code: str) -> Release:
    """More code at the end of its shop."""
    shop = release.path / "shop.py"
    shop.write_text(shop.read_text() + code)
    return release


def client(port: Port, path: str = "/") -> socket.socket:
    """A kept connection that has sent its request."""
    sock = socket.create_connection((port.host, port.number), timeout=30)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: shop\r\nX-Nonce: 1\r\n\r\n".encode())
    return sock


def await_line(instance: Instance, *words: str) -> str:
    """The first line of the log that holds all these words."""
    line = instance.log.wait_for(lambda line: all(word in line for word in words), 30)
    assert line is not None, f"no line with {words}:\n{instance.log_text()[-6000:]}"
    return line


def states(status: dict[str, Any]) -> dict[int, str]:
    return {worker["pid"]: worker["state"] for worker in status["workers"]}


@pytest.mark.parametrize("ends", ["fails to start", "aborted in the bake"])
def test_an_undo_leaves_a_worker_quiesced_that_was_quiesced_by_hand(
    ends: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    bad = Behaviour(on_import="raise" if ends == "fails to start" else "ok")
    v2 = build(tmp_path, "v2", notes, behaviour=bad)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR", "Traceback")
        one, other = instance.status()["workers"]
        instance.ok("quiesce", one["id"])
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        if ends == "aborted in the bake":
            await_line(instance, "baking for")
            instance.ok("abort", timeout_s=20)
        outcome = upgrade.finish(20)
        assert outcome.code == 1, outcome
        wanted = {one["pid"]: "quiesced", other["pid"]: "accepting"}
        instance.wait_status(lambda status: states(status) == wanted)
        assert instance.get("/").release == "v1"
        instance.ok("resume", one["id"])
        at_strength(instance, list(wanted))


def test_hup_in_a_bake_that_winch_has_quiesced_is_ignored_with_a_line(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.signal(signal.SIGWINCH)
        instance.wait_status(lambda status: set(states(status).values()) == {"quiesced"})
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "60")
        await_line(instance, "baking for")
        instance.signal(signal.SIGHUP)
        await_line(instance, "SIGHUP ignored")
        instance.ok("promote")
        assert upgrade.finish().code == 0
        instance.ok("resume", "all")
        assert_serves(instance, v2, 2)


@pytest.mark.parametrize("flavour", ["asgi", "wsgi"])
def test_work_after_the_response_survives_an_upgrade(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = with_code(build(tmp_path, "v1", notes, flavour), WORKS_AFTER_THE_RESPONSE[flavour])
    v2 = build(tmp_path, "v2", notes, flavour)
    worker = (
        '[worker]\nexit_timeout = "0.1s"\n'  # it comes after the drain, and must not be what saves the work
    )
    with running(tmp_path / "instance", v1, binds=[port.address], config=worker) as instance:
        assert instance.get("/?work").status == 200
        instance.wait_status(lambda _: notes.lines("begun"))
        upgrade = instance.begin("upgrade", "--release", str(v2.path), "--wait-drained")
        instance.wait_status(lambda status: serving(status)["path"] == str(v2.path))
        # This lasts longer than a worker that believes to have drained would be left alive.
        assert instance.get("/slow?ms=1800").release == "v2"
        assert notes.lines("done") == []
        (notes.path / "go").touch()
        outcome = upgrade.finish(30)
        assert outcome.code == 0, outcome
        assert notes.lines("done") == ["done"]
        instance.settled(2)


def test_a_release_that_hangs_on_every_request_after_the_gate_is_an_undo(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Its bake is shorter than our patience with a probe, and still it is not committed."""
    v1 = build(tmp_path, "v1", notes)
    v2 = with_code(build(tmp_path, "v2", notes), HANGS_FROM_THE_THIRD_REQUEST_ON)
    rollout = {"start_timeout": '"3s"', "drain_timeout": '"1s"'}
    worker = '[worker]\nexit_timeout = "1s"\n'
    with running(tmp_path / "instance", v1, binds=[port.address], rollout=rollout, config=worker) as instance:
        instance.expect("ERROR")
        pids = instance.worker_pids()
        outcome = instance("upgrade", "--release", str(v2.path), "--bake", "2.5")
        assert outcome.code == 1, outcome
        assert "probe" in outcome.text, outcome
        at_strength(instance, pids)
        assert_serves(instance, v1)


def test_a_short_bake_full_of_errors_is_an_undo(tmp_path: Path, notes: Notes, port: Port) -> None:
    """So many clients, because each waits a moment after an error, and few answers prove nothing."""
    v1 = build(tmp_path, "v1", notes)
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(serves=500))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        pids = instance.worker_pids()
        with LoadClient(instance.target, fresh(60)) as load:
            load.wait_answers(100)
            outcome = instance("upgrade", "--release", str(v2.path), "--bake", "0.2")
            report = load.stop()
        assert outcome.code == 1, f"{outcome}\n{report.explain()}"
        assert "5xx" in outcome.text, outcome
        at_strength(instance, pids)


def test_an_upgrade_that_fails_does_not_resize_the_old_set(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v3 = (build(tmp_path, name, notes) for name in ("v1", "v3"))
    v2 = build(tmp_path, "v2", notes, behaviour=Behaviour(on_import="raise"))
    table = "[service]\nworkers = 3\n"
    with prepared(tmp_path / "instance", v1, binds=[port.address], config=table) as instance:
        instance.expect("ERROR", "Traceback")
        at = instance.arguments.index("--workers")  # an option would win over the file
        instance.arguments = instance.arguments[:at] + instance.arguments[at + 2 :]
        instance.must_start()
        instance.settled(3)
        pids = instance.worker_pids()
        file = instance.directory / "quiesce.toml"
        file.write_text(file.read_text().replace("workers = 3", "workers = 1"))
        outcome = instance("upgrade", "--release", str(v2.path))
        assert outcome.code == 1, outcome
        assert instance.status()["wanted_workers"] == 3
        at_strength(instance, pids)
        instance.ok("upgrade", "--release", str(v3.path))  # one that is good brings it into force
        assert_serves(instance, v3, 1)
        assert instance.status()["wanted_workers"] == 1
        assert instance.stop() == 0


def test_abort_answers_at_once_while_an_upgrade_waits_for_max_generations(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2, v3 = (build(tmp_path, name, notes) for name in ("v1", "v2", "v3"))
    rollout = {"max_generations": "2", "drain_timeout": '"60s"'}
    with running(tmp_path / "instance", v1, binds=[port.address], rollout=rollout) as instance:
        with contextlib.closing(client(port, "/slow?ms=20000")):  # holds r1
            instance.wait_status(lambda status: any(w["connections"]["busy"] for w in status["workers"]))
            instance.ok("upgrade", "--release", str(v2.path))
            upgrade = instance.begin("upgrade", "--release", str(v3.path))
            await_line(instance, "max_generations is 2")
            abort = instance.ok("abort", timeout_s=20)
            assert upgrade.finish(10).code == 1
            assert abort.ended - abort.began < 10, abort
            kinds = {(w["release"], w["state"]) for w in instance.status()["workers"]}
            assert kinds == {("r1", "draining"), ("r2", "accepting")}, "nothing else was touched"
        assert_serves(instance, v2, 2)


def test_stop_in_the_bake_does_not_decide_for_the_new_release(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """A slow request outlives the bake, so a timer that was forgotten would fire in the stop."""
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.expect("ERROR")
        instance.must_start()
        with contextlib.closing(client(port, "/slow?ms=5000")) as slow:
            instance.wait_status(lambda status: any(w["connections"]["busy"] for w in status["workers"]))
            upgrade = instance.begin("upgrade", "--release", str(v2.path), "--bake", "2")
            await_line(instance, "baking for")
            stop = instance.begin("stop")
            outcome = upgrade.finish(20)
            assert outcome.code == 3, outcome
            assert slow.recv(4096).startswith(b"HTTP/1.1 200 "), "what was accepted was answered"
        assert stop.finish(30).code == 0
        assert instance.wait(10) == 0
        state = instance.runtime_dir / "state"
        entries = [json.loads(line) for line in (state / "history.jsonl").read_text().splitlines()]
        assert [entry["release"] for entry in entries if entry["outcome"] == "done"] == ["r1"], entries
        assert json.loads((state / "last_good.json").read_text())["id"] == "r1"


def test_a_release_that_was_rolled_back_by_hand_is_not_started_again(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    current = tmp_path / "current"
    link(current, v1.path)
    with prepared(tmp_path / "instance", v1, binds=[port.address], path=current) as instance:
        instance.expect("was rolled back before")
        instance.must_start()
        link(current, v2.path)
        instance.ok("upgrade")
        instance.ok("rollback")
        assert_serves(instance, v1, 2)
        assert instance.stop() == 0
        instance.close()
        instance.must_start()  # `current` still names v2
        status = assert_serves(instance, v1, 2)
        (notice,) = status["notices"]
        assert str(v2.path) in notice and "rolled back" in notice
        instance.ok("upgrade")  # somebody's word counts for more
        assert_serves(instance, v2, 2)
        assert instance.stop() == 0


def test_a_second_rollback_goes_further_back(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2, v3 = (build(tmp_path, name, notes) for name in ("v1", "v2", "v3"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.ok("upgrade", "--release", str(v2.path))
        instance.ok("upgrade", "--release", str(v3.path))
        for release in (v2, v1):
            instance.ok("rollback")
            assert_serves(instance, release, 2)
