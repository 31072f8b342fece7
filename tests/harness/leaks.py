"""What a test process holds before and after a test: descriptors, threads, children."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from harness.processes import read_proc


@dataclass(frozen=True)
class Holdings:
    """One count.  Cheap: three listings of /proc."""

    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    def more_than(self, before: Holdings) -> list[str]:
        """What has come since ``before``, in words; empty when all is well."""
        found = [
            f"descriptor {fd} {what}"
            for fd, what in self.descriptors.items()
            if before.descriptors.get(fd) != what
        ]
        found += [f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()]
        found += [f"child {read_proc(pid) or pid}" for pid in self.children - before.children]
        return found


def holdings() -> Holdings:
    """What this process holds now."""
    return Holdings(_descriptors(), frozenset(threading.enumerate()), _children())


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found


def _children() -> frozenset[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            pids.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
        except FileNotFoundError:
            pass
    return frozenset(pids)


def leaks_since(before: Holdings) -> list[str]:
    """What was leaked since; asks twice, the second time after a collection and a moment for ending threads."""
    if not holdings().more_than(before):
        return []
    gc.collect()
    for thread in holdings().threads - before.threads:
        thread.join(1.0)
    return holdings().more_than(before)
