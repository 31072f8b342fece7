"""docs/api.md says what the docstrings say, of everything that is exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import quiesce

DOCS = Path(__file__).resolve().parents[2] / "docs"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say() -> None:
    assert (DOCS / "api.md").read_text() == maker().page(), "run: ./dev sh python docs/make_api.py"


def test_everything_that_is_exported_is_on_the_page() -> None:
    assert set(maker().ORDER) == set(quiesce.__all__) - {"__version__"}
