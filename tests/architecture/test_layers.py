"""import-linter's two contracts hold, and would notice if they did not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run lint-imports on the quiesce in ``tree``, wherever the installed one lies."""
    # grimp finds the package through sys.path: PYTHONPATH comes before the editable install's line.
    env = dict(os.environ, PYTHONPATH=str(tree / ".src"))
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of everything that the contracts read."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in (".src", "supervisor", "worker", "shared"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    return tmp_path


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("supervisor/planted.py", "import quiesce.worker", "supervisor and worker meet only in shared"),
        ("worker/planted.py", "import quiesce.supervisor", "supervisor and worker meet only in shared"),
        ("shared/planted.py", "import quiesce.worker", "supervisor and worker meet only in shared"),
        ("supervisor/core/planted.py", "import os", "core decides, the shell acts"),
        ("worker/core/planted.py", "import socket", "core decides, the shell acts"),
        # Not by itself but through a helper of ours: the contract is transitive.
        ("worker/core/planted.py", "import quiesce.shared.clock", "core decides, the shell acts"),
    ],
)
def test_a_planted_violation_is_found(tree: Path, file: str, line: str, contract: str) -> None:
    (tree / file).write_text(f'"""Planted."""\n\n{line}\n')
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout
