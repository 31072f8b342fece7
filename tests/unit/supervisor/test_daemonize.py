"""Real daemons: what the launching process learns, and what the daemon finds around it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# A program that starts a daemon and prints what start_in_background() returned.
PROGRAM = """
import json, os, resource, signal, sys, time
from quiesce.supervisor.daemonize import Surroundings, start_in_background
from quiesce.supervisor.starting import StartReport

def serve(report):
    {body}

listener = os.pipe()
report = start_in_background(serve, Surroundings(sys.argv[1]))
print(json.dumps(report.as_dict()))
"""


def start(tmp_path: Path, body: str, log: str = "log", **options: Any) -> dict[str, Any]:
    program = PROGRAM.format(body="\n    ".join(body.strip().splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / log)],
        **{"capture_output": True, "text": True, "timeout": 30, "cwd": tmp_path, **options},
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wait_gone(pid: int) -> None:
    """Returns when the process has: a pidfd becomes readable."""
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], 10)[0], "the daemon did not exit"
    os.close(fd)


def test_a_good_start_is_reported_and_the_daemon_lives_on(tmp_path: Path) -> None:
    report = start(
        tmp_path,
        """
print("to the log", flush=True)
report(StartReport(0, "accepts", data={"pid": os.getpid(), "ppid": os.getppid()}))
signal.pause()
""",
    )
    pid = report["data"]["pid"]
    assert (report["code"], report["text"]) == (0, "accepts")
    os.kill(pid, 0)
    assert (tmp_path / "log").read_text() == "to the log\n"
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


def test_what_the_daemon_finds_around_it(tmp_path: Path) -> None:
    report = start(
        tmp_path,
        """
os.umask(before := os.umask(0))
here = "/proc/self/fd/"
fds = {int(fd): os.readlink(here + fd) for fd in os.listdir(here) if os.path.exists(here + fd)}
report(StartReport(0, "", data={
    "umask": before, "cwd": os.getcwd(), "fds": fds, "sid": os.getsid(0), "pid": os.getpid(),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGTTIN, signal.SIGTSTP)],
    "inheritable": [fd for fd in fds if fd > 2 and os.get_inheritable(fd)],
    "append": bool(__import__("fcntl").fcntl(1, 3) & os.O_APPEND),
}))
return 0
""",
    )
    found = report["data"]
    assert found["umask"] == 0o022 and found["cwd"] == "/"
    assert found["core"] != 0, "python-daemon forbade core files to the workers"
    assert found["signals"] == ["Handlers.SIG_DFL"] * 3 or found["signals"] == ["0"] * 3
    assert found["append"] and found["inheritable"] == []
    assert found["sid"] != found["pid"], "a session leader could get a terminal"
    log = str(tmp_path / "log")
    assert (found["fds"]["0"], found["fds"]["1"], found["fds"]["2"]) == ("/dev/null", log, log)
    assert len(found["fds"]) == 4 and "pipe" in found["fds"][max(found["fds"])]  # the report's own
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


def test_a_failed_start_is_reported_with_its_reason(tmp_path: Path) -> None:
    report = start(tmp_path, 'report(StartReport(3, "no", "Traceback\\n  x"))\nreturn 3')
    assert (report["code"], report["text"], report["detail"]) == (3, "no", "Traceback\n  x")


def test_a_long_reason_arrives_whole(tmp_path: Path) -> None:
    assert len(start(tmp_path, 'report(StartReport(3, "no", "x" * 300000))\nreturn 3')["detail"]) == 300000


def test_a_daemon_that_dies_without_a_word_shows_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier run\n")
    report = start(tmp_path, 'print(*range(100), sep="\\n", flush=True)\nos._exit(1)')
    assert report["code"] == 3
    assert report["text"] == f"the supervisor died before it served; its log is {tmp_path}/log"
    assert report["detail"].splitlines() == [str(number) for number in range(80, 100)]


def test_a_program_that_is_executed_in_its_place_can_report(tmp_path: Path) -> None:
    """A keeper passes the pipe on; and its own copy of it, still open, keeps nobody waiting."""
    began = time.monotonic()
    report = start(
        tmp_path,
        """
os.set_inheritable(report.fd, True)
code = "import os, sys, time; os.write(int(sys.argv[1]), sys.argv[2].encode()); time.sleep(100)"
line = '{"code": 0, "text": "serves", "detail": "", "data": {"pid": ' + str(os.getpid()) + '}}\\\\n'
os.execv(sys.executable, [sys.executable, "-c", code, str(report.fd), line])
""".replace("\\\\n", "\\n"),
    )
    assert report["text"] == "serves" and time.monotonic() - began < 60
    os.kill(report["data"]["pid"], signal.SIGKILL)
    wait_gone(report["data"]["pid"])


def test_a_killed_daemon_is_noticed(tmp_path: Path) -> None:
    assert start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")["code"] == 3


def test_a_bug_is_reported_with_its_traceback(tmp_path: Path) -> None:
    report = start(tmp_path, "raise RuntimeError('boom')")
    assert (
        report["code"] == 3 and "RuntimeError('boom')" in report["text"] and "Traceback" in report["detail"]
    )
    assert "RuntimeError: boom" in (tmp_path / "log").read_text()


def test_a_daemon_that_cannot_detach_says_why(tmp_path: Path) -> None:
    """python-daemon has closed standard error by the time that it opens /dev/null."""
    before = "import daemon.daemon; daemon.daemon.redirect_stream = lambda *_: os.open('/no/such/device', os.O_RDWR)"
    program = PROGRAM.replace("listener =", f"{before}\nlistener =").format(body="pass")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, timeout=30
    )
    report = json.loads(done.stdout)
    assert report["code"] == 3
    assert "FileNotFoundError" in report["text"] and "/no/such/device" in report["detail"]


def test_a_second_report_and_a_reader_that_went_away_are_no_matter(tmp_path: Path) -> None:
    report = start(tmp_path, 'report(StartReport(0, "first"))\nreport(StartReport(1, "second"))\nreturn 0')
    assert report["text"] == "first"


def test_it_starts_without_any_standard_stream(tmp_path: Path) -> None:
    program = PROGRAM.format(body='report(StartReport(0, "", data={"pid": os.getpid()}))\n    return 0')
    program = program.replace("print(json.dumps", "open(sys.argv[2], 'w').write(json.dumps")
    command = [sys.executable, "-c", program, str(tmp_path / "log"), str(tmp_path / "report")]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=True, timeout=30)
    assert json.loads((tmp_path / "report").read_text())["code"] == 0


def test_a_log_that_cannot_be_opened_starts_nothing(tmp_path: Path) -> None:
    from quiesce.shared.errors import ControlError
    from quiesce.supervisor.daemonize import Surroundings, start_in_background

    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="cannot open the log"):
        start_in_background(lambda report: 0, Surroundings(str(tmp_path / "file/log")))
