"""Runs a command in a box, or beside it in its network."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from sdbox import cgroups, kernel
from sdbox.state import BoxState

_ALL = kernel.NEWPID | kernel.NEWNS | kernel.NEWCGROUP | kernel.NEWUTS | kernel.NEWIPC


def run_inside(
    box: BoxState, command: Sequence[str], env: Mapping[str, str], *, cwd: str = "/", user: str | None = None
) -> int:
    """Run ``command`` as a process of the box; return its exit status (128 + signal if one killed it)."""
    directory = box.cgroup + "/sdbox.exec"
    # Not in a cgroup of systemd's: it would count as part of that unit.
    with contextlib.suppress(OSError):
        os.makedirs(directory, exist_ok=True)
        cgroups.enter(directory)
    _join(box, _ALL | (kernel.NEWNET if box.net == "private" else 0))
    return _run(command, dict(env), cwd, user)


def run_in_network(box: BoxState, command: Sequence[str]) -> int:
    """Run ``command`` as a process of this machine that shares nothing with the box but its network."""
    _join(box, kernel.NEWNET)
    return _run(command, dict(os.environ), os.getcwd(), None)


def box_environment(extra: Sequence[str]) -> dict[str, str]:
    """A login-like environment, with ``NAME=VALUE`` (or ``NAME``: its value here) on top."""
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "SYSTEMD_PAGER": "",
        "SYSTEMD_COLORS": "0",
        "container": "sdbox",
    }
    for pair in extra:
        name, equals, value = pair.partition("=")
        env[name] = value if equals else os.environ.get(name, "")
    return env


def _join(box: BoxState, flags: int) -> None:
    pid1 = os.pidfd_open(box.pid)
    kernel.setns(pid1, flags)
    os.close(pid1)


def _run(command: Sequence[str], env: dict[str, str], cwd: str, user: str | None) -> int:
    pid = os.fork()  # a pid namespace is joined by children only
    if pid == 0:
        _exec(command, env, cwd, user)

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(
                pid, number
            )  # not reaped before waitpid() below returns: the number is still this child's

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _exec(command: Sequence[str], env: dict[str, str], cwd: str, user: str | None) -> NoReturn:
    try:
        kernel.die_with_parent()
        os.chdir(cwd)
        if user:
            account = pwd.getpwnam(user)
            os.initgroups(user, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            env.update(HOME=account.pw_dir, USER=user, LOGNAME=user)
        os.execvpe(command[0], list(command), env)
    except BaseException as exc:
        print(f"sdbox: {command[0]}: {exc}", file=sys.stderr)
        os._exit(127)
