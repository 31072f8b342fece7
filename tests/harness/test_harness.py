"""The harness itself: each check is seen to fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import Instance, Outcome, footprint, get, reserved_port
from harness.leaks import holdings, leaks_since
from harness.output import Output
from harness.processes import descendants, kill, read_proc, subreaper, sweep, wait_gone
from harness.venvs import file_lock
from harness.verdict import Change, Changes
from load import Fresh, Report
from load.fake import FakeServer


def test_a_reserved_port_can_be_listened_on_by_another() -> None:
    with reserved_port() as port, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((port.host, port.number))
        server.listen()
        with socket.create_connection((port.host, port.number)):
            pass


def test_an_orphan_cannot_hide_from_the_sweep() -> None:
    program = (
        "import os, signal; pid = os.fork(); pid and (print(pid, flush=True), os._exit(0)); signal.pause()"
    )
    keep = set(descendants())
    with subreaper():
        parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        parent.wait()
        parent.stdout.close()
        proc = read_proc(orphan)
        assert proc is not None and proc.parent == os.getpid()
        assert [proc.pid for proc in sweep(keep)] == [orphan]
    assert read_proc(orphan) is None
    assert set(descendants()) == keep


def test_kill_and_wait_by_pidfd() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        assert not wait_gone(process.pid, 0.0)
        kill(process.pid, signal.SIGKILL)
        assert wait_gone(process.pid)
        assert process.wait() == -signal.SIGKILL
    assert wait_gone(process.pid)


def test_output_is_kept_and_waited_for() -> None:
    read, write = os.pipe()
    output = Output(read, "test")
    os.write(write, b"one\ntw")
    assert output.wait_for(lambda line: line == "one", 5) == "one"
    assert output.wait_for(lambda line: line == "two", 0.0) is None
    os.write(write, b"o\nthree")
    os.close(write)
    assert output.wait_for(lambda line: line == "three", 5) == "three"
    assert output.wait_for(lambda line: line == "never", 5) is None  # EOF ends the wait
    output.close()
    assert output.lines == ["one", "two", "three"]


def test_output_lets_go_of_a_pipe_that_somebody_holds() -> None:
    read, write = os.pipe()
    output = Output(read, "test")
    output.close(timeout_s=0.0)
    os.close(write)


def test_footprint_counts() -> None:
    # In a process of its own: here, a thread of the test before may still be leaving the kernel.
    program = (
        "import subprocess, sys, threading\n"
        "print(flush=True); sys.stdin.readline()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "file, child = open('/dev/null'), subprocess.Popen(['sleep', '100'])\n"
        "print(flush=True); sys.stdin.readline(); child.kill(); child.wait()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        before = footprint(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        more = footprint(process.pid) - before
    assert (more.descriptors, more.threads, more.children) == (1, 1, 1)
    assert before.rss_kib > 1000


@pytest.mark.slow
def test_leaks_are_seen() -> None:
    before = holdings()
    assert leaks_since(before) == []
    fd = os.open(os.devnull, os.O_RDONLY)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left over")
    thread.start()
    child = subprocess.Popen(["sleep", "100"])
    leaked = "; ".join(leaks_since(before))
    os.close(fd)
    stop.set()
    thread.join()
    child.kill()
    child.wait()
    assert "/dev/null" in leaked and "left over" in leaked and "sleep 100" in leaked
    assert leaks_since(before) == []


def test_one_plain_get() -> None:
    with FakeServer() as server:
        reply = get(server.target, "/")
    assert (reply.status, reply.release, reply.payload) == (200, "v1", "hello")


def test_a_file_lock_excludes_another_process(tmp_path: Path) -> None:
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    argv = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with file_lock(tmp_path / "lock"):
        assert subprocess.run(argv, capture_output=True).returncode != 0
    assert subprocess.run(argv, capture_output=True).returncode == 0


def test_a_surprise_in_the_log_is_a_failure_unless_expected(tmp_path: Path) -> None:
    instance = Instance(tmp_path, ("127.0.0.1:1",), {}, mode="start")
    log = tmp_path / "shop.log"
    log.write_text("12:00 INFO worker ready\n12:01 ERROR worker lost\n")
    with pytest.raises(AssertionError, match="worker lost"):
        instance.check_log()
    instance.expect("ERROR worker lost")
    instance.check_log()
    log.write_text("Traceback (most recent call last):\n")
    with pytest.raises(AssertionError, match="Traceback"):
        instance.check_log()


def test_old_answers_after_a_command_are_found() -> None:
    def outcome(began: float, ended: float) -> Outcome:
        return Outcome(("upgrade",), 0, "", "", began, ended)

    changes = Changes([Change(outcome(1, 2), "v2"), Change(outcome(3, 4), "v3"), Change(outcome(5, 6), "v2")])
    good = Report(
        fresh=[Fresh(2.1, 2.2, "v2"), Fresh(3.9, 4.0, "v3"), Fresh(5.5, 5.6, "v2"), Fresh(7, 7, "v2")]
    )
    changes.assert_no_old_answers(good)
    for began, release in ((2.5, "v1"), (3.5, "v1"), (4.5, "v2"), (6.5, "v3")):
        with pytest.raises(AssertionError, match=f"{release} .* s after"):
            changes.assert_no_old_answers(Report(fresh=[*good.fresh, Fresh(began, began, release)]))
