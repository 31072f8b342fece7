"""Run quiesce as somebody ordinary, from a process of root's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import quiesce

NOBODY = 65534  # wherever there is one
FEW_FILES = 1024  # soft and hard, as a login shell of many systems has it at least softly

_BECOME = """\
import os, resource, sys
uid, files, umask = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
os.umask(umask)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.execv(sys.argv[4], sys.argv[4:])
"""


@dataclass(frozen=True)
class User:
    """Somebody who runs quiesce.

    Attributes:
        command: What `prepared` wants.
        env: Likewise.
        python: An interpreter that he may run, for releases.
    """

    uid: int
    command: tuple[str, ...]
    env: dict[str, str]
    python: str


def import_path() -> str:
    """Where quiesce and what it needs lie, for an interpreter that is not our virtualenv's."""
    roots = [str(Path(quiesce.__file__).parent.parent), *(name for name in sys.path if "-packages" in name)]
    return os.pathsep.join(roots)


def ordinary_user(home: Path, files: int = FEW_FILES) -> User:
    """Nobody, with ``files`` as his hard limit of descriptors, and ``home`` as his own; skips where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    python = python_for_everybody()
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    become = (sys.executable, "-I", "-S", "-c", _BECOME, str(NOBODY), str(files), "18")
    env = {"PYTHONPATH": import_path(), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home)}
    return User(NOBODY, (*become, python, "-m", "quiesce"), env, python)


def with_few_files(files: int) -> tuple[str, ...]:
    """Ourselves, with so many descriptors; for `prepared`."""
    code = (
        "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    return (sys.executable, "-I", "-S", "-c", code, str(files), sys.executable, "-P", "-m", "quiesce")


def give(path: Path, uid: int) -> None:
    """Make everything below ``path`` his."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, uid, uid, follow_symlinks=False)


def python_for_everybody() -> str:
    """An interpreter of our version that every user may run; ours may lie in a home directory."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = "import quiesce.supervisor.main, quiesce.worker.main, daemon, httptools"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _try(candidate, wanted)
            return candidate
    pytest.skip("no python of our version, or no installation of quiesce, that other users may use")


def _try(python: str, code: str, extra: Sequence[str] = ()) -> None:
    subprocess.run(
        [python, "-c", code, *extra],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PYTHONPATH": import_path(), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        timeout=60,
    )
