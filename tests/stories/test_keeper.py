"""Outside systemd: the keeper above the supervisor, as an operator meets it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, prepared, running
from harness.instance import QUIESCE, Instance, environment
from harness.processes import descendants, kill, read_proc, wait_gone
from harness.verdict import assert_all_well, assert_serves, at_strength
from load import LoadClient, busy, fresh, idle, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def command_of(pid: int) -> str:
    proc = read_proc(pid)
    assert proc is not None
    return proc.command


# Surviving


@pytest.mark.parametrize("mode", ["run", "start"])
def test_the_death_of_the_supervisor_is_nobodys_business(
    mode: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[port.address], mode=mode) as instance:
        pids = instance.worker_pids()
        with LoadClient(instance.target, fresh(2, think_s=0.002), busy(1), post(1), idle(2, 0.2)) as load:
            keeper = instance.keeper_pid
            for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT):
                instance.kill_supervisor(number)
                load.wait_answers(50)
            report = load.stop()
        assert_all_well(report, notes)
        at_strength(instance, pids)
        assert instance.keeper_pid == keeper
        assert "keeper.py" in command_of(keeper)


def test_both_killed_at_once_leave_nobody_and_a_free_port(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        instance.must_start()
        keeper, supervisor, workers = instance.keeper_pid, instance.supervisor_pid, instance.worker_pids()
        kill(keeper, signal.SIGSTOP)  # at once: it must not see the other's death
        kill(supervisor)
        kill(keeper)
        for pid in (keeper, supervisor, *workers):
            assert wait_gone(pid, 30), command_of(pid)
        instance.must_start()
        assert_serves(instance, v1, 2)
        assert instance.stop() == 0


def test_without_a_keeper_when_it_is_not_wanted(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    for mode in ("run", "start"):
        with running(tmp_path / mode, v1, "--no-keeper", binds=[port.address], mode=mode) as instance:
            status = instance.status()
            assert not status["crash_safe"] and "keeper" in status["crash_safe_reason"]
            assert not any("keeper.py" in proc.command for proc in descendants().values())


# Starts and their ends


def test_how_a_start_fails_is_passed_on(tmp_path: Path, notes: Notes, port: Port) -> None:
    good = build(tmp_path, "v1", notes)
    bad = build(tmp_path, "bad", notes, behaviour=Behaviour(on_import="raise"))
    with socket.create_server((port.host, port.number)) as taken:
        for mode in ("run", "start"):
            with prepared(tmp_path / f"port-{mode}", good, binds=[port.address], mode=mode) as instance:
                refused = instance.start()
                assert refused is not None and refused.code == 3, refused
                assert str(taken.getsockname()[1]) in refused.text
                if mode == "start":  # whoever asked may not have listened: cron closes everything
                    instance.expect("start failed")
                    assert str(taken.getsockname()[1]) in instance.log_text()
    for mode in ("run", "start"):
        with prepared(tmp_path / f"bad-{mode}", bad, binds=[port.address], mode=mode) as instance:
            instance.expect(".*")
            refused = instance.start()
            assert refused is not None and refused.code == 3 and "Traceback" in refused.text, refused


def test_stop_and_start_again_at_once(tmp_path: Path, notes: Notes, port: Port) -> None:
    """Nothing is left when `stop` returns that the next `start` could meet: no lock, no port."""
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        for _ in range(4):
            instance.must_start()
            keeper = instance.keeper_pid
            instance.ok("stop")
            assert wait_gone(keeper, 5.0), "it has let go of everything, and lingers"


def test_start_as_cron_would(tmp_path: Path, notes: Notes, port: Port) -> None:
    """No terminal, closed streams, an empty environment, a relative configuration, a directory that vanishes."""
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        here = tmp_path / "here"
        here.mkdir()
        shutil.copy(instance.directory / "quiesce.toml", here / "cron.toml")
        argv = [str(QUIESCE), "start", v1.app, "--config", "cron.toml", "--bind", port.address]
        argv += ["--runtime-dir", "../instance/rt", "--release", os.path.relpath(v1.path, here)]
        argv += ["--workers", "2", "--interface", v1.interface]
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv], cwd=here, env={}, start_new_session=True
        )
        assert done.returncode == 0
        shutil.rmtree(here)
        instance.kill_supervisor()
        assert_serves(instance, v1, 2)
        for pid in (instance.supervisor_pid, instance.keeper_pid):
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert instance.stop() == 0


def test_it_is_found_as_a_module_too(tmp_path: Path, notes: Notes, port: Port) -> None:
    """`python -m quiesce`, in a directory that has modules of our names."""
    v1 = build(tmp_path, "v1", notes)
    for name in ("signal.py", "select.py", "os.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')\n")
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        argv = [sys.executable, "-P", "-m", "quiesce", "start", "--bind", port.address, *instance.arguments]
        argv += ["--runtime-dir", str(instance.runtime_dir)]
        subprocess.run(argv, cwd=tmp_path, env=instance.env, check=True, timeout=60)
        instance.kill_supervisor()
        assert_serves(instance, v1, 2)
        instance.ok("stop")


def test_a_socket_that_was_passed_survives_too(tmp_path: Path, notes: Notes, port: Port) -> None:
    """systemd-socket-activate, s6, or a shell of one's own: LISTEN_FDS without a service manager."""
    v1 = build(tmp_path, "v1", notes)
    code = (
        "import os, socket, sys\n"
        "sock = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=64)\n"
        "os.dup2(os.dup(sock.fileno()), 3)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'web'}\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        argv = [str(QUIESCE), "run", "--bind", "fd://web", "--runtime-dir", str(instance.runtime_dir)]
        argv += instance.arguments
        launcher = [sys.executable, "-c", code, str(port.number)]
        with (
            (instance.directory / "run.log").open("wb") as log,
            subprocess.Popen(
                [*launcher, *argv], env=instance.env, stdout=subprocess.PIPE, stderr=log
            ) as process,
        ):
            instance.mode = "start"  # as far as logs go
            assert process.stdout is not None
            process.stdout.readline()
            assert instance.get("/").release == "v1"
            instance.kill_supervisor()
            assert_serves(instance, v1, 2)
            kill(process.pid, signal.SIGTERM)
            assert process.wait(30) == 0


# Terminals


@contextlib.contextmanager
def in_terminal(instance: Instance) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`quiesce run` in the foreground of a terminal; yields the master's end once it serves."""
    master, slave = pty.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    argv = [str(QUIESCE), "run", "--runtime-dir", str(instance.runtime_dir)]
    argv += ["--bind", *instance.binds, *instance.arguments]
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env=instance.env, preexec_fn=take
    )
    os.close(slave)
    instance.mode = "start"  # its log is the terminal
    try:
        seen = read_until(master, b"next:")
        assert b"quiesce serves" in seen
        yield master, process
    finally:
        with contextlib.suppress(OSError):
            os.close(master)
        process.wait(60)


def read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], 40)[0], seen
        try:
            seen += os.read(fd, 65536)
        except OSError:  # EIO: nobody has it open any more
            return seen
    return seen


def test_ctrl_c_drains_and_leaves(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with (
        prepared(tmp_path / "instance", v1, binds=[port.address]) as instance,
        in_terminal(instance) as (master, process),
    ):
        termios.tcsetwinsize(master, (50, 120))
        instance.ok("status")
        with LoadClient(
            instance.target, fresh(1, path="/slow?ms=1000"), wait_started=False, max_answers=1
        ) as load:
            instance.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) == 1)
            os.write(master, b"\x03")
            said = read_until(master, b"Ctrl-C again cuts them")
            assert said.count(b"SIGINT: stopping") == 1, "heard twice"
            load.wait_started()
            read_until(master, b"has stopped")
            assert process.wait(30) == 0
            report = load.stop()
        assert report.total >= 1


def test_a_closed_terminal_ends_it_gracefully(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with (
        prepared(tmp_path / "instance", v1, binds=[port.address]) as instance,
        in_terminal(instance) as (master, process),
    ):
        os.close(master)
        assert process.wait(30) == 0, "a hangup is no upgrade when the terminal has gone"


# Containers


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace here")
def test_as_process_1_of_a_container(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address]) as instance:
        env = environment({})
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", str(QUIESCE), "run"]
        argv += ["--runtime-dir", str(instance.runtime_dir), "--bind", port.address, *instance.arguments]
        with (
            (instance.directory / "container.log").open("wb") as log,
            subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=log) as process,
        ):
            instance.mode = "start"
            assert process.stdout is not None
            process.stdout.readline()
            init = next(proc for proc in descendants(process.pid).values() if proc.parent == process.pid)
            assert "keeper.py" in init.command
            with LoadClient(instance.target, fresh(2, think_s=0.002), idle(2, 0.2)) as load:
                supervisor = next(
                    proc.pid for proc in descendants(init.pid).values() if proc.parent == init.pid
                )
                kill(supervisor)
                assert wait_gone(supervisor)
                load.wait_answers(100)
                assert_all_well(load.stop())
            assert instance.wait_restarted(2)["supervisor"]["pid"] != 2
            zombies = [proc for proc in descendants(init.pid).values() if proc.state == "Z"]
            assert zombies == []
            kill(init.pid, signal.SIGTERM)
            assert process.wait(30) == 0
