"""What ``./dev run`` prints can be typed, word for word, and does what it says."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.standins import make_tools
from docs.terminal import Finished, Running, free_port, run

ROOT = Path(__file__).resolve().parents[2]
SERVES = re.compile(r"(?:.*\n)*quiesce serves http://127\.0\.0\.1:")

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv/.dev-ready").exists():
        pytest.skip(
            "./dev would set up an environment other than the one that runs this test: use ./dev test"
        )
    place = tmp_path / "demo"
    place.mkdir(mode=0o700)
    # A place of its own, for somebody may be trying the demo right now.
    path = make_tools(tmp_path / "bin")
    return dict(os.environ, PATH=path, RUNTIME_DIRECTORY=str(place), PORT=str(free_port()))


@pytest.fixture
def demo(env: dict[str, str]) -> Iterator[Running]:
    demo = Running("./dev run", ROOT, env)
    try:
        assert demo.wait_for(SERVES, 60), demo.output
        yield demo
    finally:
        status = demo.end()
    assert status == 0, demo.output


def test_every_line_that_the_demo_prints_can_be_typed(demo: Running, env: dict[str, str]) -> None:
    printed = demo.output.split("In another terminal", 1)[1].split("Ctrl-C here", 1)[0]
    curl, *commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert "The shop, v1" in typed(curl, env).output
    upgrade, rollback, broken = commands
    assert typed(upgrade, env).status == 0
    assert "The shop, v2" in typed(curl, env).output
    assert typed(rollback, env).status == 0
    refused = typed(broken, env)
    assert refused.status == 1 and "KeyError: 'SHOP_DISCOUNT_PERCENT'" in refused.output
    assert "The shop, v1" in typed(curl, env).output


def typed(command: str, env: dict[str, str]) -> Finished:
    return run(command, ROOT, env, 60)
