"""The supervisor's signals, for those who script with kill(1)."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from apps import Notes, build, link
from harness import Port, prepared, running
from harness.processes import kill
from harness.verdict import assert_all_well, assert_serves, now, serving
from load import LoadClient, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MIX = (fresh(2, think_s=0.005), busy(1), post(1), idle(2, 0.3))


def test_ttin_and_ttou_are_one_worker_more_and_less(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        with LoadClient(instance.target, *MIX) as load:
            instance.signal(signal.SIGTTIN)
            instance.settled(3)
            instance.signal(signal.SIGTTOU)
            instance.settled(2)
            report = load.stop()
        assert_all_well(report, notes)


def test_hup_is_an_upgrade(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    current = tmp_path / "current"
    link(current, v1.path)
    with running(tmp_path / "instance", v1, binds=[port.address], path=current) as instance:
        with LoadClient(instance.target, *MIX) as load:
            link(current, v2.path)
            instance.signal(signal.SIGHUP)
            instance.wait_status(lambda status: serving(status)["path"] == str(v2.path))
            report = load.stop()
        assert_all_well(report, notes)
        assert_serves(instance, v2, 2)


def test_winch_quiesces_all_and_hup_resumes(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        pids = instance.worker_pids()
        instance.signal(signal.SIGWINCH)
        instance.wait_status(lambda status: {w["state"] for w in status["workers"]} == {"quiesced"})
        with LoadClient(instance.target, fresh(2), wait_started=False) as load:
            instance.signal(signal.SIGHUP)
            load.wait_started()
            assert_all_well(load.stop())
        instance.settled(2)
        assert instance.worker_pids() == pids, "resumed, not replaced"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_answers_what_was_accepted(
    number: signal.Signals, tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Requests in the application when the signal comes get their answers."""
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.must_start()
        with LoadClient(
            instance.target, fresh(3, path="/slow?ms=1500"), wait_started=False, max_answers=3
        ) as load:
            instance.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) == 3)
            assert instance.process is not None
            told = now()
            kill(instance.process.pid, number)
            load.wait_started()
            assert instance.wait() == 0
            report = load.stop()
        # A client that came back for more found the door closed, as it should: nothing else may have failed.
        assert not [failure for failure in report.failed if failure.began < told], report.explain()
        assert report.total >= 3


def test_stop_waits_for_requests_and_not_for_connections(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Idle clients do not hold a service that serves nobody else for its `drain_timeout`."""
    v1 = build(tmp_path, "v1", notes)
    rollout = {"drain_timeout": '"100s"'}
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(
            prepared(tmp_path / "instance", v1, binds=[port.address], rollout=rollout)
        )
        instance.must_start()
        clients = [
            stack.enter_context(socket.create_connection((port.host, port.number), timeout=60))
            for _ in range(20)
        ]
        *asked, silent, slow = clients
        for client in asked:
            client.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"GET /slow?ms=3000 HTTP/1.1\r\nHost: shop\r\n\r\n")
        instance.wait_status(
            lambda status: (
                sum(w["connections"]["open"] for w in status["workers"]) == 20
                and sum(w["connections"]["busy"] for w in status["workers"]) == 1
            )
        )
        pending = instance.begin("stop")
        for client in (*asked, silent):
            assert client.recv(1) == b""  # not `drain_timeout` later, or this would have timed out
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert pending.finish().code == 0
        assert instance.wait() == 0


def test_quit_is_fast(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.must_start()
        with LoadClient(
            instance.target, fresh(1, path="/slow?ms=20000"), wait_started=False, max_failures=1
        ) as load:
            instance.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) == 1)
            assert instance.process is not None
            kill(instance.process.pid, signal.SIGQUIT)
            assert instance.wait(timeout_s=15) == 0
            load.wait_report()


def test_a_second_term_is_fast(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        instance.must_start()
        with LoadClient(
            instance.target, fresh(1, path="/slow?ms=20000"), wait_started=False, max_failures=1
        ) as load:
            instance.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) == 1)
            assert instance.process is not None
            kill(instance.process.pid, signal.SIGTERM)
            instance.log.wait_for(lambda line: "TERM" in line, 10)
            kill(instance.process.pid, signal.SIGTERM)
            assert instance.wait(timeout_s=15) == 0
            load.wait_report()
