"""Short directories: a unix socket's path may have 107 bytes, and pytest's own directories use most of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's, but short, and removed at the end (what a failure needs to know is in its message)."""
    with tempfile.TemporaryDirectory(prefix="q-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()
