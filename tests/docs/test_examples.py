"""Every example is what its README says: good, but for the one that is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUIESCE = str(Path(sys.executable).with_name("quiesce"))

pytestmark = pytest.mark.slow


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "SHOP_DISCOUNT_PERCENT"}
    return subprocess.run(
        [QUIESCE, "check", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("release", ["wsgi/v1", "wsgi/v2"])
def test_the_demo_is_good(release: str) -> None:
    result = check("--config", "examples/demo.toml", "--release", f"examples/{release}")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_broken_one_is_refused_with_its_reason() -> None:
    result = check("--config", "examples/demo.toml", "--release", "examples/wsgi/v3")
    assert result.returncode == 1
    assert "KeyError: 'SHOP_DISCOUNT_PERCENT'" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("release", "app", "interface"),
    [("asgi/v1", "shop:application", "asgi"), ("native/v1", "shop:handle", "native")],
)
def test_the_other_interfaces_are_told_apart(release: str, app: str, interface: str) -> None:
    result = check(app, "--release", f"examples/{release}", "--health-path", "/healthz")
    assert result.returncode == 0, result.stdout + result.stderr
    assert interface in result.stdout
