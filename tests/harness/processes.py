"""Processes as the tests see them: descendants, descriptors, an end by pidfd."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans of our descendants become our children for the length of the block, so that none can hide.

    Source: prctl(2) PR_SET_CHILD_SUBREAPER.
    """
    _set_subreaper(1)
    try:
        yield
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class Proc:
    """One line of /proc: enough to say who it was."""

    pid: int
    parent: int
    state: str
    command: str

    def __str__(self) -> str:
        return f"{self.pid} (parent {self.parent}, {self.state}) {self.command}"


def read_proc(pid: int) -> Proc | None:
    """The process, or None if there is none of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
    return Proc(pid, int(parent), state, command.strip() or f"[{name}]")


def descendants(root: int | None = None) -> dict[int, Proc]:
    """Everything below ``root`` (this process), by pid, zombies included."""
    procs = [read_proc(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    children: dict[int, list[Proc]] = {}
    for proc in procs:
        if proc is not None:
            children.setdefault(proc.parent, []).append(proc)
    found: dict[int, Proc] = {}
    waiting = [root or os.getpid()]
    while waiting:
        for proc in children.get(waiting.pop(), []):
            found[proc.pid] = proc
            waiting.append(proc.pid)
    return found


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_gone(pid: int, timeout_s: float = 20.0) -> bool:
    """Block until the process has ended (a zombie has).  False when the time is over."""
    try:
        with pidfd(pid) as fd:
            return bool(select.select([fd], [], [], timeout_s)[0])
    except ProcessLookupError:
        return True


def kill(pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal through a pidfd."""
    with contextlib.suppress(ProcessLookupError), pidfd(pid) as fd:
        signal.pidfd_send_signal(fd, signal_number)


def sweep(keep: set[int]) -> list[Proc]:
    """Kill and reap every descendant that is not in ``keep``; return those that were alive, for the accusation.

    All are stopped before the first is killed: keepers and supervisors bring each other back.
    """
    accused: dict[int, Proc] = {}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = {pid: proc for pid, proc in descendants().items() if pid not in keep}
        if not left:
            break
        _freeze(keep)
        for pid, proc in left.items():
            if proc.state != "Z":
                accused.setdefault(pid, proc)
                kill(pid, signal.SIGKILL)
                wait_gone(pid, 5)
            if proc.parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
    return list(accused.values())


def _freeze(keep: set[int]) -> None:
    """Stop every descendant; parents first, and again until nobody new has appeared meanwhile."""
    frozen: set[int] = set()
    while new := set(descendants()) - keep - frozen:
        for pid in sorted(new):
            kill(pid, signal.SIGSTOP)
        frozen |= new


@dataclass(frozen=True)
class Footprint:
    """What a process holds at one moment."""

    descriptors: int
    threads: int
    children: int
    rss_kib: int

    def __sub__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.descriptors - other.descriptors,
            self.threads - other.threads,
            self.children - other.children,
            self.rss_kib - other.rss_kib,
        )


def footprint(pid: int) -> Footprint:
    """Count what ``pid`` holds."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    children = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            children += len(Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return Footprint(
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        children=children,
        rss_kib=int(status["VmRSS"].split()[0]),
    )


def descriptors(pid: int) -> list[str]:
    """What each descriptor of ``pid`` is, sorted: for the message of a failing leak check."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sorted(found)
