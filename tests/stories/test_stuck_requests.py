"""A request that does not end, and an address that must be free again."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from apps import Notes, build
from harness import Port, prepared, running
from harness.processes import kill, wait_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def connected(target: str, path: str) -> socket.socket:
    """A client that has sent its request and waits."""
    parts = urlsplit(target)
    sock = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


def test_a_worker_with_a_stuck_request_is_replaced_and_its_other_requests_finish(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(
        tmp_path / "instance",
        v1,
        binds=[port.address],
        rollout={"drain_timeout": '"1s"'},
        config='[worker]\nrequest_timeout = "1s"\n',
    ) as instance:
        instance.expect("worker is replaced")
        before = set(instance.worker_pids())
        stuck = connected(f"http://{port.address}", "/slow?ms=60000")
        instance.wait_status(
            lambda status: (
                [w["state"] for w in status["workers"]] == ["accepting"] * 2
                and len(before & {w["pid"] for w in status["workers"]}) == 1
            )
        )
        answer = stuck.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503")
        stuck.close()
        assert instance.get("/").status == 200
        assert "a request runs for more than 1 s" in instance.log_text()


def test_after_sigkill_of_supervisor_and_keeper_the_address_is_free_while_its_workers_still_drain(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "first", v1, binds=[port.address], rollout={"drain_timeout": '"60s"'}) as first:
        first.must_start()
        slow = connected(f"http://{port.address}", "/slow?ms=4000")  # a worker is busy for a while
        first.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) == 1)
        pid, keeper = first.supervisor_pid, first.keeper_pid
        kill(pid, signal.SIGSTOP)  # else it would have started another keeper before its own end
        for each in (keeper, pid):
            kill(each, signal.SIGKILL)
            assert wait_gone(each)
        with running(tmp_path / "second", v1, binds=[port.address]) as second:
            assert second.get("/").status == 200
        assert slow.recv(65536).startswith(b"HTTP/1.1 200"), "what was accepted was finished"
        slow.close()
