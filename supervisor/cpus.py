"""How many CPUs this process may really use: affinity, and the quota of its control group.

Source: cgroups(7); cgroup-v2 ``cpu.max``; cgroup-v1 ``cpu.cfs_quota_us``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator


def usable_cpus(root: str = "") -> int:
    """At least 1; a quota of 1.5 CPUs counts as 2, for half a worker does not exist.

    Args:
        root: A directory to find ``/proc`` and ``/sys`` in, for tests.
    """
    cpus = len(os.sched_getaffinity(0))
    for quota in _quotas(root):
        cpus = min(cpus, math.ceil(quota))
    return max(1, cpus)


def _quotas(root: str) -> Iterator[float]:
    """Every limit on our way up the tree: a parent's quota binds its children."""
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from _walk(f"{root}/sys/fs/cgroup", path, _v2_quota)
        elif "cpu" in controllers.split(","):
            yield from _walk(f"{root}/sys/fs/cgroup/{controllers}", path, _v1_quota)
            yield from _walk(f"{root}/sys/fs/cgroup/cpu", path, _v1_quota)


def _walk(mount: str, path: str, quota_of: Callable[[str], float | None]) -> Iterator[float]:
    # In a container the path may be the host's, which is not there: then the mount itself is our group.
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        quota = quota_of("/".join([mount, *parts[:depth]]))
        if quota is not None:
            yield quota


def _v2_quota(folder: str) -> float | None:
    quota, _, period = _read(f"{folder}/cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _v1_quota(folder: str) -> float | None:
    return _ratio(_read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """CPUs, or None where there is no limit ("max", -1, or no such file)."""
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
        return int(quota) / int(period)
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
