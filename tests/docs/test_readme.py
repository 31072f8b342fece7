"""Everything that README.md shows is run, in its order, in an empty directory, and must say what is printed there.

Some things are not as a reader would have them, so that this can run beside other tests and without a network:
port 8000, the default, is a free one; ``pip install quiesce`` answers as pip does, while ``quiesce`` is this
checkout's; the runtime and state directories are the test's own; the files that the page shows are an hour old.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from docs.fences import Command, Fence, fences, pattern
from docs.standins import make_tools
from docs.terminal import Running, free_port, run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TIMEOUT_S = 60.0


@dataclass
class Workplace:
    """The empty directory, and the terminals that are open in it."""

    directory: Path
    env: dict[str, str]
    port: int
    terminals: dict[str, Running] = field(default_factory=dict)

    def ours(self, text: str) -> str:
        return text.replace("8000", str(self.port))

    def write(self, path: str, text: str) -> None:
        place = self.directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(self.ours(text))
        # Nobody types as fast as this test: a copy made in the same second, edited to the same size, would pass for the
        # original with Python, which tells stale bytecode by second and size.
        an_hour_ago = time.time() - 3600
        os.utime(place, (an_hour_ago, an_hour_ago))

    def type(self, fence: Fence) -> None:
        for command in fence.commands():
            if fence.terminal == "main":
                self._run(command)
            else:
                self._start(command, fence.terminal)

    def _run(self, command: Command) -> None:
        finished = run(self.ours(command.text), self.directory, self.env, TIMEOUT_S)
        expected = self.ours(command.expected)
        assert pattern(expected).fullmatch(finished.output), self._explain(command, finished.output)

    def _start(self, command: Command, terminal: str) -> None:
        text = self.ours(command.text)
        if text.startswith("quiesce run "):
            text += f" --bind 127.0.0.1:{self.port}"
        running = self.terminals[terminal] = Running(text, self.directory, self.env)
        began = running.wait_for(pattern(self.ours(command.expected)), TIMEOUT_S)
        assert began, self._explain(command, running.output)

    def _explain(self, command: Command, output: str) -> str:
        elsewhere = "".join(f"\n--- {name} printed\n{t.output}" for name, t in self.terminals.items())
        return (
            f"README.md line {command.line}: $ {command.text}\n--- says\n{self.ours(command.expected)}"
            f"--- printed\n{output}{elsewhere}"
        )


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    for name in ("default", "state", "home", "empty"):
        (tmp_path / name).mkdir(mode=0o700)
    env = {
        "PATH": make_tools(tmp_path / "bin"),
        "HOME": str(tmp_path / "home"),
        "LANG": "C.UTF-8",
        "RUNTIME_DIRECTORY": str(tmp_path / "default"),
        "STATE_DIRECTORY": str(tmp_path / "state"),
    }
    workplace = Workplace(tmp_path / "empty", env, free_port())
    try:
        yield workplace
    finally:
        statuses = {name: terminal.end() for name, terminal in workplace.terminals.items()}
    assert all(status == 0 for status in statuses.values()), statuses


@pytest.mark.slow
def test_every_command_does_what_the_readme_says(workplace: Workplace) -> None:
    for fence in fences(README):
        if fence.language == "console":
            workplace.type(fence)
        elif fence.path:
            workplace.write(fence.path, fence.body)


def test_the_configuration_is_one(workplace: Workplace) -> None:
    (fence,) = [fence for fence in fences(README) if fence.language == "toml"]
    assert fence.path
    workplace.write(
        fence.path, fence.body.replace("/etc/shop.env", "/dev/null").replace('"shop" ', '"root" ')
    )
    shown = run(
        f"quiesce check --show-config --config {fence.path}", workplace.directory, workplace.env, TIMEOUT_S
    )
    assert shown.status == 0, shown.output
    assert f"127.0.0.1:{workplace.port}" in shown.output


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_unit_is_one(workplace: Workplace) -> None:
    (fence,) = [fence for fence in fences(README) if fence.language == "ini"]
    assert fence.path
    # systemd looks whether the programs are there, and neither need be.
    body = fence.body.replace("/srv/shop/current/.venv/bin/gunicorn", "/bin/true").replace(
        "/bin/kill", "/bin/true"
    )
    workplace.write(fence.path, body)
    command = ["systemd-analyze", "verify", str(workplace.directory / fence.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    about_it = [line for line in result.stderr.splitlines() if fence.path in line]
    assert about_it == []


def test_the_dev_commands_are_there() -> None:
    helped = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True, check=True, timeout=30)
    for line in README.splitlines():
        if line.startswith("./dev "):
            assert line.split("  ")[0] in helped.stdout


def test_the_first_screen_comes_first() -> None:
    """One sentence; install, run, upgrade; a refusal with its traceback and exit code; rollback."""
    marks = (
        "pip install quiesce",
        "quiesce run shop.wsgi",
        "quiesce upgrade",
        "exit code 1",
        "quiesce rollback",
    )
    places = [README.index(mark) for mark in marks]
    assert places == sorted(places)
    assert places[-1] < README.index("./dev run")
    assert os.linesep not in README.split("**")[1]
