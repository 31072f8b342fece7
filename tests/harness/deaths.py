"""Kill the supervisor of an instance under load again and again, and measure how it comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.instance import Instance
from harness.processes import descriptors, kill, wait_gone
from load import LoadClient, Report

ANSWERS = 60  # good answers between two deaths: what came up is seen to serve
_RESTARTS = re.compile(r"supervisor died; starting it again pid=(\d+) signal=(\w+).* delay_s=([0-9.]+)")


def ask_status(runtime_dir: Path, timeout_s: float = 30.0) -> dict[str, Any] | None:
    """`status` without a process of its own; None: the connection broke.

    While there is no supervisor the connection waits in the queue of its listener, which the keeper holds.
    """
    request = {"v": 1, "id": os.urandom(8).hex(), "command": "status", "args": {}}
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(runtime_dir / "control.sock"))
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in answer:
                data = sock.recv(1 << 16)
                if not data:
                    return None
                answer += data
        except ConnectionError:
            return None
    return dict(json.loads(answer.partition(b"\n")[0])["data"])


@dataclass
class Deaths:
    """What was seen.

    Attributes:
        recovered_s: From each kill to the first answer of the next supervisor.
        delays_s: Of these, what the keeper waited on purpose (it backs off after the first death in a row).
        keeper_pss_kib: At the end.
    """

    recovered_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    keeper_pss_kib: int = 0
    report: Report = field(default_factory=Report)

    def row(self, name: str) -> str:
        """One line of the table."""
        net = [total - delay for total, delay in zip(self.recovered_s, self.delays_s, strict=True)]
        cells = [name, str(len(self.recovered_s)), str(self.report.total)]
        cells += [str(sum(self.report.failures().values())), str(self.report.idle_closed)]
        cells += [f"{self.report.longest_gap_s * 1000:.0f} ms", _spread(self.recovered_s), _spread(net)]
        return "| " + " | ".join([*cells, f"{self.keeper_pss_kib / 1024:.1f} MiB"]) + " |"


HEAD = (
    "| case | deaths | answers | failures | closed | longest gap | first answer of the next (min/median/max) "
    "| without back-off | PSS of the keeper |\n|---|---|---|---|---|---|---|---|---|"
)


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{min(seconds):.2f} / {statistics.median(seconds):.2f} / {max(seconds):.2f} s"


def die_again_and_again(instance: Instance, load: LoadClient, signals: Sequence[int]) -> Deaths:
    """Kill it with each signal in turn, under ``load``; everything but the times is asserted.

    The caller stops the load, judges its report and stores it.
    """
    deaths = Deaths()
    status = instance.settled(2)
    pids, keeper = sorted(worker["pid"] for worker in status["workers"]), status["keeper"]
    counters: dict[str, int] = status["counters"]
    kept = descriptors(keeper)
    for number in signals:
        pid = status["supervisor"]["pid"]
        began = time.monotonic()
        kill(pid, number)
        assert wait_gone(pid), f"{pid} has survived signal {number}"
        status = _next_status(instance, pid)
        deaths.recovered_s.append(time.monotonic() - began)
        while not status["crash_safe"]:
            again = ask_status(instance.runtime_dir)
            assert again is not None and time.monotonic() < began + 40, (again, instance.log_text()[-4000:])
            status = again
        load.wait_answers(ANSWERS)
        status = instance.settled(2)
        assert sorted(worker["pid"] for worker in status["workers"]) == pids, status
        assert status["keeper"] == keeper, status
        now = status["counters"]
        back = {name: (was, now[name]) for name, was in counters.items() if now[name] < was}
        assert not back, f"counters went back: {back}"
        counters = now
    assert len(descriptors(keeper)) == len(kept), f"{kept}\n{descriptors(keeper)}"
    deaths.keeper_pss_kib = pss_kib(keeper)
    return deaths


def _next_status(instance: Instance, pid: int) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        status = ask_status(instance.runtime_dir)
        if status is not None and status["supervisor"]["pid"] != pid:
            return status
    raise AssertionError(f"nobody came after {pid}:\n{instance.log_text()[-6000:]}")


def restarts(log: str) -> list[tuple[int, str, float]]:
    """What the keeper said of each death: pid, name of the signal, how long it waited."""
    return [(int(pid), name, float(delay)) for pid, name, delay in _RESTARTS.findall(log)]


def printed(log: str, size: int) -> int:
    """How many lines of ``print_bytes=size`` applications have written.

    Counted by their bytes: two threads may write theirs before either writes its newline.
    """
    return log.count("x" * (size - 1))


def pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def name_of(number: int) -> str:
    return signal.Signals(number).name
