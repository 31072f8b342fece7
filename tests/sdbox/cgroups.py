"""A box's cgroup: where it lies, moving into it, ending it."""

from __future__ import annotations

import contextlib
import os
import select

from sdbox import kernel
from sdbox.state import RUN


def mount_point() -> str:
    """Where cgroup2 is mounted; mounts it if nobody has (there is one hierarchy per kernel)."""
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            before, after = line.split(" - ")
            if after.split()[0] == "cgroup2":
                return before.split()[4]
    path = RUN + "/cgroup2"
    os.makedirs(path, exist_ok=True)
    kernel.mount("cgroup2", path, "cgroup2", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC)
    return path


def own() -> str:
    """The directory of the cgroup that this process is in."""
    with open("/proc/self/cgroup") as lines:
        for line in lines:
            if line.startswith("0::"):
                return mount_point() + line[3:].strip().rstrip("/")
    return mount_point()


def enter(directory: str) -> None:
    """Move this process."""
    with open(directory + "/cgroup.procs", "w") as procs:
        procs.write("0")


def end(directory: str, timeout_s: float = 10.0) -> None:
    """Kill what is left in the cgroup, wait until it is empty, remove it."""
    with contextlib.suppress(OSError), open(directory + "/cgroup.kill", "w") as kill:
        kill.write("1")
    with contextlib.suppress(OSError), open(directory + "/cgroup.events") as events:
        # The kernel wakes poll() with POLLPRI at each change of this file (its cgroup-v2 documentation).
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in _reread(events.fileno()) and poll.poll(timeout_s * 1000):
            pass
    for folder, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _reread(fd: int) -> str:
    return os.pread(fd, 4096, 0).decode()
