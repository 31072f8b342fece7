"""Every module says its one job, every folder its rules, and nothing names the machine it was written on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("supervisor", "worker", "shared", ".src/quiesce")
MODULES = sorted(
    path
    for folder in (*PACKAGES, "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts and not path.is_relative_to(ROOT / "tests/apps")
)
FOLDERS_WITH_RULES = ("supervisor", "worker", "shared", "tests", "systemd", "examples", "tests/sdbox")


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    return docstring.splitlines()[0] if docstring else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_its_job_in_its_first_line(path: Path) -> None:
    if not path.read_text().strip():
        return  # an empty __init__.py has no job
    assert first_line(path), f"{path.relative_to(ROOT)} has no docstring"
    assert len(first_line(path)) > 10


@pytest.mark.parametrize("folder", FOLDERS_WITH_RULES)
def test_a_folder_has_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").read_text().startswith("# ")


@pytest.mark.parametrize("package", ["supervisor", "worker", "shared"])
def test_the_import_root_holds_relative_links(package: str) -> None:
    link = ROOT / ".src/quiesce" / package
    assert link.readlink() == Path(f"../../{package}")
