"""What several tests of shared/ use.  Leaks are looked for after every test (tests/conftest.py)."""

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest


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
