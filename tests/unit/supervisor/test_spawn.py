"""Starting a process: what it has, what it has not, and what it says when it cannot start."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from quiesce.shared.channel import make_pair
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.spawn import Identity, Spawned, Spawner, Spec

REPORT = """
import json, os, resource, signal, sys
status = dict(l.rstrip("\\n").split(":\\t") for l in open("/proc/self/status") if ":\\t" in l)
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "sid": os.getsid(0) == os.getpid(), "umask": os.umask(0),
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")), "env": dict(os.environ),
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "uid": os.getresuid(), "gid": os.getresgid(),
    "groups": os.getgroups(), "stdin": os.readlink("/proc/self/fd/0"),
    "nnp": [l for l in open("/proc/self/status") if l.startswith("NoNewPrivs")],
    "hup": str(signal.getsignal(signal.SIGHUP)), "SigBlk": status["SigBlk"], "SigIgn": int(status["SigIgn"], 16),
    "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
    "oom": int(open("/proc/self/oom_score_adj").read()),
}))
"""


def inheritable_here(fd: int) -> bool:
    """Was it given to this test process by whoever started it?"""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def finish(spawned: Spawned) -> os.waitid_result:
    info = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    os.close(spawned.pidfd)
    assert info is not None
    return info


def spawn_report(tmp_path: Path, identity: Identity | None = None) -> dict:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    spawner = Spawner()
    spawner._bootstrap = str(script)
    capture = Capture()
    ours, theirs = make_pair()
    leak = os.open("/dev/null", os.O_RDONLY)  # close-on-exec: must not be seen by the worker
    spec = Spec(sys.executable, str(tmp_path), {"A": "b"}, theirs.fileno(), capture.fd, 0o027, identity)
    info = finish(spawner.spawn(spec))
    os.close(leak)
    text = capture.tail()
    capture.close()
    channel = theirs.fileno()
    ours.close()
    theirs.close()
    assert info.si_status == 0, text
    report = json.loads(text)
    report["channel"] = channel
    return report


def test_a_worker_has_its_channel_and_nothing_else_of_ours(tmp_path: Path) -> None:
    report = spawn_report(tmp_path)
    ours = {report["channel"], *(fd for fd in report["fds"] if fd > 2 and inheritable_here(fd))}
    assert len([fd for fd in report["fds"] if fd > 2 and fd not in ours]) <= 1, "1: listdir's own"
    assert report["argv"][1] == str(report["channel"])
    assert report["argv"][2] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert report["cwd"] == str(tmp_path)
    assert report["sid"], "its own session: the terminal's Ctrl-C is not for it"
    assert report["umask"] == 0o027
    assert report["env"].get("A") == "b" and "HOME" not in report["env"]
    assert report["blocked"] == 0
    assert report["stdin"] == "/dev/null"
    assert report["hup"] == "0", "SIG_DFL"


def test_limits_are_inherited_as_they_are(tmp_path: Path) -> None:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = {name: list(resource.getrlimit(getattr(resource, name))) for name in names}
    assert spawn_report(tmp_path)["limits"] == limits and "RLIMIT_CORE" in limits


def test_signals_that_are_blocked_or_ignored_here_are_neither_in_a_worker(tmp_path: Path) -> None:
    """The supervisor blocks them around its own exec; a worker that inherited that could not be told to leave."""
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGRTMAX}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    old = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        report = spawn_report(tmp_path)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= blocked  # and here they still are
    finally:
        signal.signal(signal.SIGUSR2, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert int(report["SigBlk"], 16) == 0
    # 32 and 33 are the C library's own, and nobody else can touch them: posix_spawn, which subprocess uses from Python
    # 3.13 on, leaves them ignored.
    others = signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}
    assert report["SigIgn"] & sum(1 << (number - 1) for number in others) == 0


def test_out_of_memory_a_worker_goes_before_the_supervisor(tmp_path: Path) -> None:
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert spawn_report(tmp_path)["oom"] == min(1000, ours + 100)


def test_a_system_without_oom_scores_runs_workers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    for path in ("/nowhere/oom_score_adj", "/proc/self/cmdline"):  # not there; there, and not to be written
        monkeypatch.setattr("quiesce.supervisor.spawn._OOM_SCORE_ADJ", path)
        assert spawn_report(tmp_path)["oom"] == ours


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: drops rights")
def test_rights_are_dropped_before_the_interpreter_runs(tmp_path: Path) -> None:
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("needs /usr/bin/python3, which every user may run")
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and str(folder) != "/" and "pytest" in str(folder):
            folder.chmod(0o755)
    (tmp_path / "report.py").write_text(REPORT)
    spawner = Spawner()
    spawner._bootstrap = str(tmp_path / "report.py")
    capture = Capture()
    ours, theirs = make_pair()
    who = Identity(65534, 65534, (65534,), "nobody", "/nonexistent")
    info = finish(
        spawner.spawn(Spec("/usr/bin/python3", str(tmp_path), {}, theirs.fileno(), capture.fd, 0o022, who))
    )
    text = capture.tail()
    ours.close()
    theirs.close()
    capture.close()
    assert info.si_status == 0, text
    report = json.loads(text)
    assert report["uid"] == [65534] * 3 and report["gid"] == [65534] * 3 and report["groups"] == [65534]
    assert report["nnp"] == ["NoNewPrivs:\t1\n"]
    assert report["oom"] == min(1000, int(Path("/proc/self/oom_score_adj").read_text()) + 100)


@pytest.mark.parametrize(
    ("python", "cwd", "said"),
    [
        ("/nowhere/python", "/", "the interpreter /nowhere/python is not there"),
        (sys.executable, "/gone", "the directory /gone"),
    ],
)
def test_what_cannot_start_says_why_in_its_output(python: str, cwd: str, said: str) -> None:
    capture = Capture()
    ours, theirs = make_pair()
    info = finish(Spawner().spawn(Spec(python, cwd, {}, theirs.fileno(), capture.fd, 0o022)))
    assert info.si_status == 77
    assert said in capture.tail()
    ours.close()
    theirs.close()
    capture.close()


def test_the_capture_neither_blocks_nor_mixes_writers() -> None:
    capture = Capture()
    out: list[bytes] = []
    twin = os.dup(capture.fd)
    for number in range(2000):
        os.write(capture.fd if number % 2 else twin, f"line {number}\n".encode() + b"x" * 500 + b"\n")
    capture.copy_to(out.append)
    assert b"".join(out).count(b"\n") == 4000
    out.clear()
    capture.copy_to(out.append)
    assert out == []
    os.write(twin, b"the end\n")
    capture.copy_to(out.append)
    assert out == [b"the end\n"]
    assert capture.tail(1) == "the end"
    os.close(twin)
    capture.close()


def test_what_was_copied_is_given_back_and_the_tail_stays() -> None:
    capture = Capture()
    sizes: list[int] = []
    for _ in range(40):
        os.write(capture.fd, b"y" * (1 << 20))
        capture.copy_to(lambda data: sizes.append(len(data)))
    os.write(capture.fd, b"\nlast words\n")
    assert sum(sizes) == 40 << 20
    assert os.fstat(capture.fd).st_blocks * 512 < 3 << 20, "the kernel has its memory back"
    assert capture.tail(1) == "last words"
    capture.close()


def test_a_writer_that_is_too_fast_loses_lines_and_not_our_memory() -> None:
    capture = Capture()
    for _ in range(50):
        os.write(capture.fd, b"z" * (1 << 20))
    out: list[bytes] = []
    capture.copy_to(out.append)
    assert b"bytes of output came too fast" in out[0]
    assert sum(map(len, out)) < 9 << 20
    assert os.fstat(capture.fd).st_blocks * 512 < 3 << 20
    capture.close()


def test_the_workers_end_of_the_channel_is_the_only_one_left_open() -> None:
    """EOF must mean that the worker is dead: no copy of its end may stay with us."""
    ours, theirs = make_pair()
    capture = Capture()
    spawned = Spawner().spawn(Spec("/nowhere", "/", {}, theirs.fileno(), capture.fd, 0o022))
    theirs.close()
    finish(spawned)
    ours.settimeout(10)
    assert ours.recv(1) == b"", "EOF"
    ours.close()
    capture.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: drops rights")
def test_an_installation_that_the_user_may_not_read_is_named(tmp_path: Path) -> None:
    """The supervisor's own folder is closed to others, as root's home is."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "bootstrap.py").write_text("")
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in str(folder):
            folder.chmod(0o755)
    spawner = Spawner()
    spawner._bootstrap = str(closed / "bootstrap.py")
    capture = Capture()
    ours, theirs = make_pair()
    who = Identity(65534, 65534, (65534,), "nobody", "/nonexistent")
    info = finish(spawner.spawn(Spec(sys.executable, "/", {}, theirs.fileno(), capture.fd, 0o022, who)))
    assert info.si_status == 77
    assert f"quiesce itself: {closed} is closed to that user" in capture.tail()
    for end in (ours, theirs):
        end.close()
    capture.close()
