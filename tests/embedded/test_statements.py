"""Every statement of the manual's two pages has a test, and every test's number is a statement."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

from embedded import test_seed_daemon, test_seed_responses

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "libmicrohttpd.md"
ROW = re.compile(r"^\| (.+) \| (\S.*) \| (.*) ?\|$", re.MULTILINE)


def numbers_of(module: ModuleType) -> set[str]:
    tests = (value for name, value in vars(module).items() if name.startswith("test_"))
    return {number for test in tests for number in getattr(test, "statements", ())}


def test_no_statement_without_a_test_and_no_test_without_a_statement() -> None:
    stated = set(re.findall(r"^\| ([RS]\d+) \|", PAGE.read_text(), re.MULTILINE))
    assert len(stated) > 50
    assert numbers_of(test_seed_responses) | numbers_of(test_seed_daemon) == stated


def rows() -> list[tuple[str, str, str]]:
    """What is there, how it is here, and how that is shown."""
    mapping = PAGE.read_text().partition("## Everything else")[2]
    return [row for row in ROW.findall(mapping) if row[0] != "there"]


def test_each_row_of_the_mapping_says_where_we_stand() -> None:
    assert len(rows()) > 60
    assert {state for _, state, _ in rows()} == {"same", "better", "not yet"}


def test_every_test_that_the_mapping_names_exists() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    known = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = [(there, re.findall(r"`(test_\w+)`", shown), state) for there, state, shown in rows()]
    assert [there for there, tests, state in named if state == "better" and not tests] == []
    assert {test for _, tests, _ in named for test in tests} - known == set()
