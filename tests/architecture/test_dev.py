"""./dev sets up what it needs, heals what was interrupted, and says what it cannot do itself.

Python, pip and apt are stand-ins that write down how they were called: what is tested is the script.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EX_USAGE = 64
EX_UNAVAILABLE = 69

# A Python that is new enough; has the venv module once the file "has-venv" exists; makes environments out of itself.
PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
*version_info*-venv*|*'python%d.%d-venv'*) echo python3.11-venv ;;
*version_info*) exit ${OLD_PYTHON:-0} ;;
*'import ensurepip'*) [ -e "$HERE/has-venv" ] ;;
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
"-m pip install"*) exit ${PIP_FAILS:-0} ;;
esac
"""
APT = """#!/bin/sh
echo "apt-get $*" >>"$CALLS"
case "$*" in install*|*"install "*) : >"$HERE/has-venv" ;; esac
"""
ID = """#!/bin/sh
echo $USER_ID
"""
NEEDED = ("sh", "cat", "cksum", "cp", "dirname", "mkdir", "rm", "sed", "touch", "flock", "env", "true")


@dataclass
class Checkout:
    """A tree with nothing but what ./dev reads, and a PATH of stand-ins."""

    path: Path

    def dev(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": str(self.path / "bin"),
            "CALLS": str(self.path / "calls"),
            "HERE": str(self.path),
            "USER_ID": "1000",
        }
        return subprocess.run(
            [self.path / "dev", *arguments],
            env=variables | env,
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """How the stand-ins were called since the last look."""
        try:
            lines = (self.path / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        (self.path / "calls").unlink()
        return lines

    def has_venv_module(self) -> None:
        (self.path / "has-venv").touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    shutil.copy(ROOT / "dev", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("python3", PYTHON), ("apt-get", APT), ("id", ID)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in NEEDED:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    return Checkout(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if "pip install" in call]


def test_the_first_use_sets_up_and_the_second_costs_nothing(checkout: Checkout) -> None:
    checkout.has_venv_module()
    first = checkout.dev("sh", "true")
    assert first.returncode == 0, first.stderr
    assert len(installs(checkout.calls)) == 1
    assert checkout.dev("sh", "true").returncode == 0
    assert installs(checkout.calls) == []


def test_a_changed_pyproject_is_installed_again(checkout: Checkout) -> None:
    checkout.has_venv_module()
    checkout.dev("sh", "true")
    with (checkout.path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    (checkout.path / ".venv/kept").touch()
    assert installs(checkout.calls)
    assert checkout.dev("sh", "true").returncode == 0
    assert len(installs(checkout.calls)) == 1
    assert (checkout.path / ".venv/kept").exists()


@pytest.mark.parametrize("how", ["interrupted", "moved", "interpreter gone"])
def test_an_environment_that_cannot_work_is_made_anew(checkout: Checkout, how: str) -> None:
    checkout.has_venv_module()
    if how == "interrupted":
        assert checkout.dev("sh", "true", PIP_FAILS="1").returncode != 0
    else:
        assert checkout.dev("sh", "true").returncode == 0
    junk = checkout.path / ".venv/junk"
    junk.touch()
    if how == "moved":
        ready = checkout.path / ".venv/.dev-ready"
        ready.write_text("/elsewhere " + ready.read_text().split(" ", 1)[1])
    if how == "interpreter gone":
        (checkout.path / ".venv/bin/python").unlink()
    assert checkout.dev("sh", "true").returncode == 0
    assert not junk.exists()


def test_an_environment_that_somebody_made_is_kept(checkout: Checkout) -> None:
    tools = checkout.path / ".venv/bin"
    tools.mkdir(parents=True)
    for name in ("python", "pip"):
        shutil.copy(checkout.path / "bin/python3", tools / name)
    assert checkout.dev("sh", "true").returncode == 0
    calls = checkout.calls
    assert "python -m venv .venv" not in calls
    assert len(installs(calls)) == 1


def test_without_the_venv_module_a_user_is_told_the_one_line(checkout: Checkout) -> None:
    result = checkout.dev("test")
    assert result.returncode == EX_UNAVAILABLE
    assert "apt-get install -y python3.11-venv" in result.stderr
    assert not (checkout.path / ".venv").exists()
    assert not any(call.startswith("apt-get") for call in checkout.calls)


def test_without_the_venv_module_root_installs_it(checkout: Checkout) -> None:
    result = checkout.dev("sh", "true", USER_ID="0")
    assert result.returncode == 0, result.stderr
    calls = checkout.calls
    assert any(call.startswith("apt-get install") and call.endswith("python3.11-venv") for call in calls)
    assert calls.index("python -m venv .venv") > [c.startswith("apt-get install") for c in calls].index(True)


def test_an_old_python_is_said(checkout: Checkout) -> None:
    result = checkout.dev("sh", "true", OLD_PYTHON="1")
    assert result.returncode == EX_UNAVAILABLE
    assert "3.11" in result.stderr and "apt-get install" in result.stderr


def test_help_and_a_word_that_it_does_not_know(checkout: Checkout) -> None:
    helped, unknown = checkout.dev("help"), checkout.dev("tset")
    assert helped.returncode == 0 and unknown.returncode == EX_USAGE
    for command in ("run", "test", "check", "soak", "sh"):
        assert f"./dev {command} " in helped.stdout
    assert helped.stdout == unknown.stdout
    assert checkout.calls == []


def test_continuous_integration_runs_what_a_person_runs() -> None:
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "./dev check", "./dev test"]
