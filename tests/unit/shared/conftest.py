"""Every test of this folder leaves as many descriptors open as it found."""

import gc
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True)
def no_leaked_descriptor() -> Iterator[None]:
    before = _open_descriptors()
    yield
    if _open_descriptors() - before:
        gc.collect()  # a failed test's traceback holds on to its sockets; dear, so only now
    assert not _open_descriptors() - before


def _open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            pass  # the one that listed the folder
    return found


@pytest.fixture
def in_child() -> Callable[[Callable[[], None]], None]:
    """Run a function in a fresh interpreter: limits, signals and user ids stay there.

    The function imports what it uses; what it asserts fails the test.
    """

    def run(function: Callable[[], None]) -> None:
        source = textwrap.dedent(inspect.getsource(function)) + f"\n{function.__name__}()\n"
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"

    return run
