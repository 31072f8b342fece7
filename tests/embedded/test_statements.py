"""Every statement of the manual's two pages has a test, and every test's number is a statement."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from embedded import test_seed_daemon, test_seed_responses

PAGE = Path(__file__).resolve().parents[2] / "docs" / "libmicrohttpd.md"


def numbers_of(module: ModuleType) -> set[str]:
    tests = (value for name, value in vars(module).items() if name.startswith("test_"))
    return {number for test in tests for number in getattr(test, "statements", ())}


def test_no_statement_without_a_test_and_no_test_without_a_statement() -> None:
    stated = set(re.findall(r"^\| ([RS]\d+) \|", PAGE.read_text(), re.MULTILINE))
    assert len(stated) > 50
    assert numbers_of(test_seed_responses) | numbers_of(test_seed_daemon) == stated
