"""Who becomes a keeper, how it begins, and whether its supervisor finds the package."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quiesce.shared.fdpass import WANTED_FILES
from quiesce.supervisor import launch

# Stands in for the supervisor: says how it, and its keeper, were started.
FOUND = """
import json, os, resource
status = dict(line.split(":", 1) for line in open(f"/proc/{os.getppid()}/status") if ":" in line)
print(json.dumps({
    "argv": open(f"/proc/{os.getppid()}/cmdline").read().split(chr(0))[:-1],
    "blocked": int(status["SigBlk"], 16), "caught": int(status["SigCgt"], 16),
    "names": os.environ["LISTEN_FDNAMES"], "told": os.read(3, 100).decode(),
    "soft": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "streams": [os.readlink(f"/proc/{os.getppid()}/fd/{fd}") for fd in (0, 1, 2)],
    "orphan": os.fork() or [os.setsid(), os.fork() and os._exit(0), __import__("time").sleep(0.2), os._exit(0)],
}), flush=True)
"""
BECOME = """
import os, sys
from quiesce.supervisor.launch import become_keeper
read, write = os.pipe()
os.write(write, b"hello")
os.close(write)
os.set_inheritable(0, False)  # as python-daemon leaves it
become_keeper([sys.executable, "-c", sys.argv[1]], [("quiesce.report", read)], 7.5)
"""


def test_how_a_keeper_begins() -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    argv = [sys.executable, "-c", BECOME, FOUND]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, preexec_fn=little
    ) as process:
        assert process.stdout is not None
        try:
            found = json.loads(process.stdout.readline())
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert found["argv"][:4] == [sys.executable, "-I", "-S", launch.KEEPER_FILE]
    assert found["argv"][4:6] == ["--watchdog", "7.5"] and found["argv"][8] == "--"
    assert (found["names"], found["told"]) == ("quiesce.report", "hello")
    assert found["blocked"] == 0, "the keeper hears nothing"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGWINCH):
        assert found["caught"] & 1 << number - 1, number
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found["soft"] == (WANTED_FILES if hard < 0 else min(hard, WANTED_FILES))
    assert found["streams"][0] == "/dev/null"


def test_orphans_come_to_the_keeper() -> None:
    code = (
        "import os, sys; from quiesce.supervisor.launch import adopt_orphans; adopt_orphans();"
        "read, write = os.pipe();"
        "pid = os.fork();"
        "pid or [os.fork() and os._exit(0), os.read(read, 1), os.write(1, b'%d' % os.getppid()), os._exit(0)];"
        "os.waitpid(pid, 0); os.write(write, b'x'); os.wait(); print(f' {os.getpid()}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    parent, itself = done.stdout.split()
    assert parent == itself, "it went to another"


def test_a_keeper_that_cannot_be_executed_is_an_error_and_signals_are_heard_again(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from quiesce.shared.errors import ControlError; from quiesce.supervisor import launch\n"
        "sys.executable = '/nowhere/python'\n"
        "try: launch.become_keeper(['x'])\n"
        "except ControlError as exc: print(exc, len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "cannot start the keeper, /nowhere/python: No such file or directory 0\n", (
        done.stderr
    )


def test_when_there_is_a_keeper() -> None:
    wants = launch.wants_keeper
    assert wants({}, 7, False)
    assert not wants({}, 7, True)
    assert not wants({"NOTIFY_SOCKET": "@x"}, 7, False)
    ours = {"QUIESCE_KEEPER": "6", "LISTEN_PID": "7", "NOTIFY_SOCKET": "@x"}
    assert launch.is_supervisor(ours, 7) and not launch.is_supervisor(ours, 8)
    assert launch.is_supervisor({"QUIESCE_KEPT": "7;a=3"}, 7) and not launch.is_supervisor(
        {"QUIESCE_KEPT": "77"}, 7
    )
    assert wants({"QUIESCE_KEEPER": "6"}, 7, False), "inherited from somebody else's supervisor"


@pytest.mark.parametrize("way", ["installed", "python path", "working directory"])
def test_the_supervisor_finds_the_package_as_its_launcher_did(tmp_path: Path, way: str) -> None:
    root = Path(launch.__file__).parents[1] if way == "installed" else tmp_path
    if way != "installed":
        (tmp_path / "quiesce").symlink_to(Path(launch.__file__).parents[1])
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if way == "python path":
        env["PYTHONPATH"] = str(root)
    code = (
        "import sys, subprocess; from quiesce.supervisor import launch; "
        "command = launch.supervisor_command(['--version']); "
        "print(' '.join(command)); sys.exit(subprocess.run(command, cwd='/').returncode)"
    )
    flags = ["-S"] if way != "installed" else []  # without the .pth file of an editable installation
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 and "quiesce 0." in done.stdout, done.stderr
    assert ("-m quiesce.supervisor.cli" in done.stdout) == (way != "working directory")
    assert " -P " in done.stdout
