"""docs/http1.md names a test for each rule, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from wire.test_corpus import BAD, GOOD

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "http1.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| § ")
]
_INPUT = re.compile(r'"([^"`]+)"')
_TEST = re.compile(r"(test_\w+\.py)::(test_\w+)")


def _tests() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = (node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
        found |= {(path.name, name) for name in names if name.startswith("test_")}
    return found


def test_the_page_is_read() -> None:
    assert len(ROWS) > 90


def test_every_rule_names_a_test() -> None:
    for row in ROWS:
        section, rule, ours, tests = row
        assert re.fullmatch(r"\d+(\.\d+)*", section) and rule and ours, row
        assert _INPUT.search(tests) or _TEST.search(tests), row
        others = _TEST.sub("", _INPUT.sub("", tests))
        assert re.sub(r"[,\s]", "", others) == "", f"something else stands among the tests of {row}"


def test_every_name_exists() -> None:
    cells = "\n".join(row[3] for row in ROWS) + PAGE.partition("## Stricter")[2].replace('(`"<', "")
    inputs = set(_INPUT.findall(cells))
    assert inputs - set(GOOD) - set(BAD) == set()
    assert set(_TEST.findall(cells)) - _tests() == set()


def test_every_input_of_the_corpus_stands_for_a_rule() -> None:
    assert (set(GOOD) | set(BAD)) - set(_INPUT.findall(PAGE)) == set()
