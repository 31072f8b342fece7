"""Small tools in place of those that a machine may not have, or that would reach for a network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_PIP = """#!/bin/sh
[ "$*" = "install quiesce" ] || { echo "the README says: pip $*" >&2; exit 2; }
echo "Collecting quiesce"
echo "Successfully installed httptools-0 msgspec-0 quiesce-0 setproctitle-0"
"""
_CURL = f"""#!{sys.executable}
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[-1], timeout=20).read().decode(), end="")
"""


def make_tools(folder: Path) -> str:
    """Fill a new folder with a ``pip`` that installs nothing, this checkout's ``quiesce``, and a ``curl`` if need be.

    Returns:
        A PATH that begins with it.
    """
    folder.mkdir()
    _write(folder / "pip", _PIP)
    if not shutil.which("curl"):
        _write(folder / "curl", _CURL)
    (folder / "quiesce").symlink_to(Path(sys.executable).with_name("quiesce"))
    return f"{folder}:/usr/local/bin:/usr/bin:/bin"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
