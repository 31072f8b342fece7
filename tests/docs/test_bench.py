"""The comparison of bench/hello runs, and every answer in it is a whole one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[2] / "bench" / "hello"
OURS = ("native", "daemon", "wsgi", "wsgi-pool", "asgi-asyncio")
SCENARIOS = ("hello", "browser", "pipelined", "close", "file", "post")


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load client is written in C")
def test_every_server_of_ours_answers_every_scenario(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "--rounds", "1", "--seconds", "0.1", "--json", str(figures)]
    done = subprocess.run(
        [*command, "--servers", ",".join(OURS)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    scenarios = json.loads(figures.read_text())["scenarios"]
    assert tuple(scenarios) == SCENARIOS
    for scenario, servers in scenarios.items():
        assert tuple(servers) == OURS
        for server, sample in servers.items():
            assert sample["faults"] == 0, (scenario, server)
            assert sample["requests_per_s"][0] > 0 and sample["cpu_us"][0] > 0, (scenario, server)
