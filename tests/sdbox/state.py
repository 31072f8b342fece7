"""What is known of the boxes that are up: one JSON file each.

``RUN/NAME/`` holds ``state.json`` (while the box is up), ``console.log``, ``host/`` (/run/host in the box)
and ``mnt`` (where its root is assembled, in its own mount namespace).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import NoReturn

RUN = os.environ.get("SDBOX_RUN", "/run/sdbox")


@dataclass(frozen=True, slots=True)
class BoxState:
    """One running box.

    ``pid`` and ``starttime`` (of /proc/PID/stat, clock ticks) name its PID 1 as this machine sees it;
    ``warden`` is the pid of the process that looks after it; ``cgroup`` a directory;
    ``net`` "private" or "host".
    """

    name: str
    pid: int
    starttime: str
    warden: int
    cgroup: str
    image: str
    net: str
    target: str


def die(message: str) -> NoReturn:
    """Leave with a sentence and exit code 1."""
    print(f"sdbox: {message}", file=sys.stderr)
    raise SystemExit(1)


def rundir(name: str) -> str:
    """The directory of the box ``name``."""
    return f"{RUN}/{name}"


def start_time(pid: int) -> str:
    """When ``pid`` started, in clock ticks: with the pid it names a process for good.  proc(5), field 22."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[19]


def find(name: str) -> BoxState | None:
    """The box ``name`` if it is up."""
    try:
        with open(f"{rundir(name)}/state.json") as file:
            box = BoxState(**json.load(file))
        return box if start_time(box.pid) == box.starttime else None
    except (FileNotFoundError, ProcessLookupError, ValueError, TypeError):
        return None


def need(name: str) -> BoxState:
    """The box ``name``; leaves with exit code 1 when it is not up."""
    return find(name) or die(f"no box {name!r} is up")


def save(box: BoxState) -> None:
    """Publish the box, whole or not at all."""
    path = f"{rundir(box.name)}/state.json"
    with open(path + ".new", "w") as file:
        json.dump(asdict(box), file)
    os.rename(path + ".new", path)


def all_up() -> list[BoxState]:
    """Every box that is up, by name."""
    names = sorted(os.listdir(RUN)) if os.path.isdir(RUN) else []
    return [box for box in map(find, names) if box]
