"""The keeper is the process that must not die: one file, next to no imports, nothing of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

KEEPER = Path(__file__).resolve().parents[2] / "supervisor/keeper.py"
ALLOWED = {"_signal", "_socket", "os", "select", "sys", "time"}
# Under `if TYPE_CHECKING` only, for the names that `_signal` has.
FOR_TYPES = {"signal"}


def test_the_keeper_imports_nothing_else() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(KEEPER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        assert not isinstance(node, ast.ImportFrom), ast.unparse(node)
    assert imported == ALLOWED | FOR_TYPES


def test_and_pays_for_nothing_else() -> None:
    """What is loaded beside it, in the interpreter as the keeper is run: -I -S."""
    program = (
        "import os, sys\n"
        "before = set(sys.modules)\n"
        f"exec(compile(open({str(KEEPER)!r}).read(), 'keeper', 'exec'), {{'__name__': 'keeper'}})\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert set(done.stdout.split()) <= {"_socket", "select"}
