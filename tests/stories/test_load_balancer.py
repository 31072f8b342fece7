"""An instance behind a load balancer: it says first that it leaves, serves on, and only then goes."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from apps import Notes, build
from harness import Port, prepared, running
from harness.processes import kill, wait_gone
from harness.verdict import assert_all_well, assert_serves
from load import LoadClient, fresh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

READY = "/ready"


def rollout(delay_s: float) -> dict[str, str]:
    return {"ready_path": f'"{READY}"', "drain_delay": f'"{delay_s}s"'}


class Balancer:
    """One kept connection that asks whether the instance is ready, and as long as it is sends it requests.

    Attributes:
        checks: What it was told, in order, without repetitions.
        failed: Requests that were not answered as they should be.
        last: Header ``Connection`` of the answer to its last request.
    """

    def __init__(self, port: Port) -> None:
        self.checks: list[int] = []
        self.failed: list[str] = []
        self.requests = 0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Balancer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._port.host, self._port.number, timeout=20)
        try:
            while not self._stop.wait(0.01):
                status = ask(connection, READY)[0]
                if self.checks[-1:] != [status]:
                    self.checks.append(status)
                if status == 503:
                    return
                self.requests += 1
                answer = ask(connection, "/")[0]
                if answer != 200:
                    self.failed.append(str(answer))
        except (OSError, http.client.HTTPException) as exc:
            self.failed.append(repr(exc))
        finally:
            connection.close()

    def wait_checked(self, status: int) -> None:
        wait_until(lambda: status in self.checks or self.failed, f"no {status}")
        assert self.failed == []


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, str | None]:
    """One request on a kept connection; its status and its ``Connection``."""
    connection.request("GET", path, headers={"X-Nonce": "1"})
    response = connection.getresponse()
    response.read()
    return response.status, response.headers.get("Connection")


def wait_until(fact: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < deadline, why
        time.sleep(0.005)


def connect(port: Port) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(port.host, port.number, timeout=20)
    connection.connect()
    return connection


def states(status: dict[str, Any]) -> set[str]:
    return {worker["state"] for worker in status["workers"]}


def wait_not_ready(port: Port) -> None:
    """Each time on a connection of its own, which is closed by the 503 anyway."""

    def is_503() -> bool:
        connection = connect(port)
        try:
            return ask(connection, READY)[0] == 503
        finally:
            connection.close()

    wait_until(is_503, "still ready")


def test_it_leaves_and_comes_back(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], rollout=rollout(5.0)) as instance:
        kept = connect(port)
        assert ask(kept, READY) == (200, None)
        with LoadClient(
            instance.target, fresh(1, path="/slow?ms=8000"), wait_started=False, max_answers=1
        ) as slow:
            instance.wait_status(lambda status: any(w["connections"]["busy"] for w in status["workers"]))
            with Balancer(port) as balancer:
                balancer.wait_checked(200)
                pending = instance.begin("drain")
                balancer.wait_checked(503)
                # Not ready, and yet whoever comes is served, for the last time on his connection.
                assert states(instance.status()) == {"accepting"}
                assert ask(kept, "/") == (200, "close")
                assert_serves(instance, release)
            assert balancer.checks == [200, 503] and balancer.failed == [] and balancer.requests > 0
            outcome = pending.finish()
            assert outcome.code == 0 and "drained" in outcome.text and "left" not in outcome.out, outcome
            report = slow.wait_report()
            assert_all_well(report)
            assert report.ended <= outcome.ended, "it returned before the last request was answered"
        kept.close()
        status = instance.status()
        assert status["unready"] and states(status) == {"quiesced"}
        assert "accepting goes on for 5 s" in outcome.text
        late = connect(port)  # by the kernel: nobody accepts it
        late.request("GET", "/")
        instance.ok("resume", "all")
        assert late.getresponse().status == 200
        late.close()
        instance.settled(2)
        assert not instance.status()["unready"]
        kept = connect(port)
        assert ask(kept, READY) == (200, None)
        kept.close()


def test_an_idle_connection_holds_nobody_up(tmp_path: Path, notes: Notes, port: Port) -> None:
    """A proxy keeps it for minutes: neither `drain` nor the `stop` after it waits for drain_timeout."""
    release = build(tmp_path, "v1", notes)
    patience = {**rollout(0.0), "drain_timeout": '"300s"'}
    with prepared(tmp_path / "i", release, binds=[port.address], rollout=patience) as instance:
        instance.must_start()
        idle = connect(port)
        assert ask(idle, "/") == (200, None)
        outcome = instance.ok("drain", timeout_s=60)
        assert "1 idle connection left" in outcome.text
        assert ask(idle, "/") == (200, "close"), "it is served all the same, for the last time"
        idle.close()
        again = instance.ok("drain", timeout_s=60)
        assert "left" not in again.out
        instance.ok("resume", "all")
        idle = connect(port)
        assert ask(idle, "/") == (200, None)
        instance.ok("drain", timeout_s=60)
        assert instance.stop(timeout_s=60) == 0
        idle.close()


def test_it_is_undone_in_its_delay(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], rollout=rollout(30.0)) as instance:
        pending = instance.begin("drain")
        wait_not_ready(port)
        instance.ok("resume", "all")
        outcome = pending.finish(10)
        assert outcome.code != 0 or "ended by" in outcome.text, outcome
        kept = connect(port)
        assert ask(kept, READY) == (200, None)
        kept.close()
        assert_serves(instance, release, 2)


@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "no-wait"])
def test_the_supervisor_dies_in_its_delay(wait: bool, tmp_path: Path, notes: Notes, port: Port) -> None:
    """The next one goes on with it: not ready all the time, quiesced in the end."""
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], rollout=rollout(1.5)) as instance:
        pending = instance.begin("drain", *(() if wait else ("--no-wait",)))
        wait_not_ready(port)
        if not wait:
            assert pending.finish().code == 0
        pid = instance.supervisor_pid
        kill(pid)
        assert wait_gone(pid)
        kept = connect(port)
        assert ask(kept, READY)[0] == 503
        kept.close()
        instance.wait_restarted(pid)
        if wait:
            outcome = pending.finish()
            assert outcome.code == 0 and "drained" in outcome.text, outcome
        status = instance.wait_status(lambda status: states(status) == {"quiesced"}, 10)
        assert status["unready"]
        # And what is quiesced by hand stays so under the next one.
        status = instance.kill_supervisor()
        assert status["unready"] and states(status) == {"quiesced"}
        instance.ok("resume", "all")
        assert_serves(instance, release, 2)


def test_a_stop_is_not_ready_either(tmp_path: Path, notes: Notes, port: Port) -> None:
    release = build(tmp_path, "v1", notes)
    with running(tmp_path / "i", release, binds=[port.address], rollout=rollout(0)) as instance:
        with socket.create_connection((port.host, port.number), 20) as sock:
            sock.sendall(f"GET {READY} HTTP/1.1\r\n".encode())  # begun: it will be answered
            instance.wait_status(lambda status: any(w["connections"]["busy"] for w in status["workers"]))
            kill(instance.supervisor_pid, 15)
            assert instance.log.wait_for(lambda line: "waiting for 1 connection" in line, 20)
            sock.sendall(b"Host: lb\r\n\r\n")
            answer = b""
            try:
                while data := sock.recv(65536):
                    answer += data
            except TimeoutError:
                raise AssertionError(f"{answer!r}\n{instance.log_text()}") from None
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Connection: close\r\n" in answer, answer
        assert instance.wait() == 0


def test_an_upgrade_is_nothing_that_a_balancer_sees(tmp_path: Path, notes: Notes, port: Port) -> None:
    old, new = build(tmp_path, "v1", notes), build(tmp_path, "v2", notes)
    with (
        running(tmp_path / "i", old, binds=[port.address], rollout=rollout(5.0)) as instance,
        Balancer(port) as balancer,
    ):
        balancer.wait_checked(200)
        instance.ok("upgrade", "--release", str(new.path), "--bake", "0.5", "--wait-drained")
        pid = instance.supervisor_pid
        pending = instance.begin("rollback")
        kill(pid)
        assert pending.finish().code == 0
        instance.wait_restarted(pid)
        assert balancer.checks == [200] and balancer.failed == []
        assert_serves(instance, old, 2)
