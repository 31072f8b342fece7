"""What the tests of a whole service share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.supervisor.house import House


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    before = len(os.listdir("/proc/self/fd"))
    it = House(tmp_path, monkeypatch)
    yield it
    it.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"
