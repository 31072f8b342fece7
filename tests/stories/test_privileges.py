"""Who may do what: workers that root has let go, files that only their owner may write, and who may command."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import random
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from apps import Notes, Release, build
from harness import Port, get, running
from harness.instance import environment
from harness.processes import descendants, subreaper, sweep, wait_gone
from harness.users import import_path, python_for_everybody
from quiesce.supervisor.identity import worker_identity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else"),
]

OOM_SCORE_MORE = 100  # a worker dies before its supervisor
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")
USER = 65534  # nobody, wherever there is one


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory that every user may enter, and root alone may write."""
    with tempfile.TemporaryDirectory(prefix="q-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter of our version that every user may run, and with it quiesce."""
    return python_for_everybody()


@pytest.fixture
def release(place: Path) -> Release:
    notes = Notes(place / "notes")
    release = build(place, "v1", notes)
    notes.path.chmod(0o777)
    return release


def account_in_several_groups() -> str | None:
    """Somebody ordinary who is in more than his own group."""
    for account in pwd.getpwall():
        if account.pw_uid not in (0, USER) and len(os.getgrouplist(account.pw_name, account.pw_gid)) > 1:
            return account.pw_name
    return None


def facts(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status: what the kernel holds a process for."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.split() for name, _, text in (line.partition(":") for line in lines)}


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def soft_files(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max open files")).split()[3]


@contextlib.contextmanager
def groups_of_root(groups: Sequence[int]) -> Iterator[None]:
    """Root with supplementary groups, which workers must not inherit."""
    before = os.getgroups()
    os.setgroups(groups)
    try:
        yield
    finally:
        os.setgroups(before)


@pytest.mark.parametrize("who", ["nobody", "several groups", "nobody in another group"])
def test_workers_of_root_have_nothing_of_it_left(
    place: Path, release: Release, python: str, port: Port, who: str
) -> None:
    user, group = "nobody", ""
    if who == "several groups":
        found = account_in_several_groups()
        if found is None:
            pytest.skip("no account of this host is in several groups")
        user = found
    elif who == "nobody in another group":
        group = grp.getgrgid(1).gr_name
    identity = worker_identity(user, group)
    assert identity is not None and identity.uid != 0
    config = f'[service]\nuser = "{user}"\ngroup = "{group}"\numask = "027"\n'
    with (
        groups_of_root([0, 4, 24]),
        running(
            place / "instance", release, "--python", python, binds=[port.address], config=config
        ) as instance,
    ):
        supervisor = instance.supervisor_pid
        assert facts(supervisor)["Uid"] == ["0"] * 4
        pids = instance.worker_pids()
        assert len(pids) == 2
        for pid in pids:
            seen = facts(pid)
            assert seen["Uid"] == [str(identity.uid)] * 4
            assert seen["Gid"] == [str(identity.gid)] * 4
            assert sorted(map(int, seen["Groups"])) == sorted(identity.groups)
            assert [int(seen[name][0], 16) for name in CAPABILITIES] == [0, 0, 0, 0]
            assert seen["NoNewPrivs"] == ["1"]
            assert seen["Umask"] == ["0027"]
            assert oom_score_adj(pid) == min(1000, oom_score_adj(supervisor) + OOM_SCORE_MORE)
            assert soft_files(pid) == soft_files(supervisor)


def test_without_a_user_a_supervisor_that_is_nobody_special_has_workers_like_itself(
    host: Background,
) -> None:
    with started(replace(host, uid=USER)) as instance:
        for pid in instance.worker_pids():
            seen = facts(pid)
            assert seen["Uid"] == [str(USER)] * 4 and seen["Groups"] == []
            assert int(seen["CapEff"][0], 16) == 0


@contextlib.contextmanager
def privileged_port() -> Iterator[Port]:
    """A port below 1024 of the loopback network, held like those of `reserved_port`."""
    chooser = random.Random()
    host = f"127.{chooser.randrange(64, 128)}.{chooser.randrange(1, 255)}.{chooser.randrange(1, 255)}"
    for number in chooser.sample(range(600, 1024), 50):
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((host, number))
            except OSError:
                continue
            yield Port(number, host)
            return
    pytest.skip("no port below 1024 can be had")


def test_root_binds_a_port_below_1024_and_ordinary_workers_serve_it(
    place: Path, release: Release, python: str
) -> None:
    config = '[service]\nuser = "nobody"\n'
    with (
        privileged_port() as port,
        running(
            place / "instance", release, "--python", python, binds=[port.address], config=config
        ) as instance,
    ):
        assert instance.get("/").release == "v1"
        assert instance.get("/uid").payload.split()[:2] == [str(USER)] * 2
        instance.ok("upgrade")
        assert instance.get("/").release == "v1"


def test_nobody_special_is_told_how_to_get_a_port_below_1024(host: Background) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.skip("this host lets everybody bind such ports")
    with privileged_port() as port:
        outcome = replace(host, uid=USER, port=port).start()
    assert outcome.returncode == 3, outcome
    assert "permission denied" in outcome.stderr and "CAP_NET_BIND_SERVICE" in outcome.stderr


# Files: who owns them, who may read and write them


@dataclass
class Background:
    """An instance in the background, started by the user ``uid`` of a host where `place` is all there is."""

    place: Path
    release: Release
    python: str
    port: Port
    uid: int = 0

    @property
    def options(self) -> list[str]:
        """Root's own places are the host's, so it gets others; a user's follow his environment."""
        return ["--runtime-dir", str(self.place / "run")] if self.uid == 0 else ["--name", "shop"]

    def __call__(
        self, *argv: str, uid: int | None = None, groups: Sequence[int] = (), umask: int = 0o022
    ) -> subprocess.CompletedProcess[str]:
        """A command, by its user or by somebody else."""
        uid = self.uid if uid is None else uid
        home = {"HOME": str(self.place / "home"), "TMPDIR": str(self.place / "tmp")}
        env = {**environment(home), "PYTHONPATH": import_path(), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            env.pop(name, None)
        return subprocess.run(
            [self.python, "-m", "quiesce", *argv, *self.options],
            user=uid,
            group=uid,
            extra_groups=list(groups),
            umask=umask,
            env=env,
            cwd=self.place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, config: str = "", umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        for name in ("home", "tmp"):
            (self.place / name).mkdir(exist_ok=True)
            os.chown(self.place / name, self.uid, self.uid)
        file = self.place / "quiesce.toml"
        file.write_text(f'{config}\n[rollout]\nbake = "0.1s"\n')
        release = ["--release", str(self.release.path), "--python", self.python, "--config", str(file)]
        options = ["--bind", self.port.address, "--workers", "1", *release]
        return self("start", self.release.app, *options, umask=umask)

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in json.loads(self("status", "--json").stdout)["workers"]]


@pytest.fixture
def host(place: Path, release: Release, python: str, port: Port) -> Background:
    return Background(place, release, python, port)


@contextlib.contextmanager
def started(host: Background, config: str = "", umask: int = 0o022) -> Iterator[Background]:
    """`quiesce start`; stopped, and nothing left, at the end of the block."""
    keep = set(descendants())
    with subreaper():
        try:
            outcome = host.start(config, umask)
            assert outcome.returncode == 0, outcome
            yield host
            outcome = host("stop")
            assert outcome.returncode == 0, outcome
            left = [proc for pid, proc in descendants().items() if pid not in keep]
            assert all(wait_gone(proc.pid, 10) for proc in left), left
        finally:
            sweep(keep)


def tree(folder: Path) -> dict[str, tuple[str, str, int, int]]:
    """Everything below: kind, mode, owner and group, by relative path; "." is the folder itself."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        kind = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFSOCK: "socket"}[stat.S_IFMT(info.st_mode)]
        mode = f"{stat.S_IMODE(info.st_mode):04o}"
        found[str(path.relative_to(folder))] = (kind, mode, info.st_uid, info.st_gid)
    return found


def runtime_table(folder_mode: str, uid: int, socket_mode: str, socket_gid: int) -> Any:
    return {
        ".": ("dir", folder_mode, uid, uid),
        "lock": ("file", "0644", uid, uid),
        "pid": ("file", "0644", uid, uid),
        "control.sock": ("socket", socket_mode, uid, socket_gid),
    }


def state_table(uid: int, log: str | None) -> Any:
    table = {
        ".": ("dir", "0700", uid, uid),
        "history.jsonl": ("file", "0640", uid, uid),
        "last_good.json": ("file", "0640", uid, uid),
    }
    return table if log is None else {**table, log: ("file", "0640", uid, uid)}


CASES = {
    "root": (0, "", "0600", 0),
    "root, workers are nobody": (0, 'user = "nobody"', "0600", 0),
    "root, control_group": (0, 'user = "nobody"\ncontrol_group = "1"', "0660", 1),
    "a user": (USER, "", "0600", USER),
}


@pytest.mark.parametrize("umask", [0o022, 0], ids=["usual umask", "no umask"])
@pytest.mark.parametrize("case", CASES)
def test_owners_and_modes(case: str, umask: int, host: Background) -> None:
    uid, service, socket_mode, socket_gid = CASES[case]
    place = host.place
    with started(replace(host, uid=uid), f"[service]\n{service}\n", umask) as instance:
        assert instance("upgrade").returncode == 0
        if uid == 0:
            run, state, folder_mode = place / "run", place / "run/state", "0755"
        else:
            base = place / f"tmp/quiesce-{uid}"
            assert tree(base)["."] == ("dir", "0700", uid, uid)
            run, state, folder_mode = base / "shop", place / "home/.local/state/quiesce/shop", "0700"
        seen = {name: entry for name, entry in tree(run).items() if not name.startswith("state")}
        assert seen == runtime_table(folder_mode, uid, socket_mode, socket_gid)
        name = "default" if uid == 0 else "shop"
        assert tree(state) == state_table(uid, f"{name}.log")


def test_a_foreground_without_any_umask_opens_nothing(
    place: Path, release: Release, python: str, port: Port
) -> None:
    """`start` sets one; `run` has what its caller has."""
    config = f'[service]\nuser = "nobody"\n[log]\nfile = "{place}/shop.log"\n'
    before = os.umask(0)
    try:
        with running(
            place / "instance", release, "--python", python, binds=[port.address], config=config
        ) as instance:
            seen = tree(instance.runtime_dir)
            state = {
                name.partition("/")[2] or ".": seen.pop(name) for name in [*seen] if name.startswith("state")
            }
            assert seen == runtime_table("0755", 0, "0600", 0)
            assert state == state_table(0, None)
            assert tree(place / "shop.log") == {".": ("file", "0640", 0, 0)}
    finally:
        os.umask(before)


@pytest.mark.parametrize("uid", [0, USER])
def test_the_log_file_of_the_configuration(uid: int, host: Background) -> None:
    """Root's log is root's though others write it: they hold the descriptor."""
    logs = host.place / "logs"
    logs.mkdir()
    os.chown(logs, uid, uid)
    config = f'[service]\nuser = "{"nobody" if uid == 0 else ""}"\n[log]\nfile = "{logs}/shop.log"\n'
    with started(replace(host, uid=uid), config):
        assert tree(logs)["shop.log"] == ("file", "0640", uid, uid)
        get(host.port.address, "/")
    assert "pid=" in (logs / "shop.log").read_text()


def test_members_of_the_control_group_command_and_others_do_not(host: Background) -> None:
    with started(host, '[service]\nuser = "nobody"\ncontrol_group = "1"\n') as instance:
        stranger = instance("status", uid=USER)
        assert stranger.returncode != 0 and "v1" not in stranger.stdout, stranger
        assert instance("status", uid=USER, groups=[1]).returncode == 0
        assert instance("upgrade", uid=USER, groups=[1]).returncode == 0


def test_no_member_of_the_control_group_runs_a_program_as_root(host: Background) -> None:
    """`reexec` executes the interpreter that is named, and before it drops any rights."""
    with (
        started(host, '[service]\nuser = "nobody"\ncontrol_group = "1"\n') as instance,
        tempfile.TemporaryDirectory(prefix="q-") as folder,
    ):
        Path(folder).chmod(0o777)
        ran, program = Path(folder, "ran"), Path(folder, "python")
        program.write_text(f"#!/bin/sh\nid -u > {ran}\nexit 1\n")
        program.chmod(0o755)
        refused = instance("reexec", "--python", str(program), uid=USER, groups=[1])
        assert refused.returncode == 2 and "for root and the owner" in refused.stderr, refused
        assert not ran.exists()
        assert instance("reexec", uid=USER, groups=[1]).returncode == 0
        assert instance("reexec", "--python", str(program)).returncode == 1
        assert ran.read_text() == "0\n"


def as_user(uid: int, gid: int, do: Callable[[], object]) -> None:
    """Run ``do`` with these effective rights; raises what it raises."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        do()
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_the_folders_are_closed_to_the_workers(host: Background) -> None:
    """What runs as `user` can neither replace a file of the supervisor's nor read its memory of releases."""
    place = host.place
    with started(host, '[service]\nuser = "nobody"\n'):
        for path in ("run/pid.x", "run/lock", "run/pid", "run/state/history.jsonl"):
            with pytest.raises(PermissionError):
                as_user(
                    USER, USER, lambda path=path: os.close(os.open(place / path, os.O_WRONLY | os.O_CREAT))
                )
        with pytest.raises(PermissionError):
            as_user(USER, USER, lambda: (place / "run/state/history.jsonl").read_text())


def test_a_group_alone_is_refused_to_somebody_without_an_account(host: Background) -> None:
    """A container's `--user 12345` has no line in passwd."""
    uid = next(uid for uid in range(54321, 60000) if not known(uid))
    outcome = replace(host, uid=uid).start('[service]\ngroup = "1"\n')
    assert outcome.returncode == 2, outcome
    assert f"there is no user '{uid}'" in outcome.stderr and "Traceback" not in outcome.stderr


def known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
