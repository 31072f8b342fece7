"""What every test shares: the leak check, the caches, and the fixtures of the stories."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import Notes
from harness.leaks import holdings, leaks_since
from harness.ports import Port, reserved_port


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test process holds no more descriptors, threads and children than before the test."""
    before = holdings()
    yield
    leaked = leaks_since(before)
    if leaked:
        pytest.fail(f"{request.node.name} leaked: " + "; ".join(leaked), pytrace=False)


@pytest.fixture
def port() -> Iterator[Port]:
    """A TCP port of 127.0.0.1 that nobody else gets."""
    with reserved_port() as found:
        yield found


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """Where the applications of this test note what happened to them."""
    return Notes(tmp_path / "notes")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory shared by all processes of this session (pytest-xdist gives each its own base)."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    cache = base / "cache"
    with contextlib.suppress(FileExistsError):
        cache.mkdir(mode=0o755)
    return cache
