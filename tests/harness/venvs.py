"""Virtualenvs for releases, built once in a session, whoever of several test processes comes first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Exclusive between processes (pytest-xdist runs several)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_venv(path: Path, python: str = sys.executable, requirements: Sequence[str] = ()) -> Path:
    """A virtualenv at ``path`` (without pip: ours installs into it, which saves seconds).  Returns its python."""
    run([python, "-m", "venv", "--without-pip", str(path)])
    inside = path / "bin" / "python"
    if requirements:
        run([sys.executable, "-m", "pip", "--python", str(inside), "install", "-q", *requirements])
    return inside


def cached_venv(cache: Path, name: str, requirements: Sequence[str]) -> Path:
    """The virtualenv ``name`` below ``cache``, made on first use.  Returns its directory.

    The second one with the same requirements gets copies of the first one's modules: the same files as pip would
    write, without its half minute of compiling on a busy machine.
    """
    path, done = cache / name, cache / f"{name}.done"
    pattern = cache / ("-".join(requirements) + ".pattern")
    with file_lock(cache / f"{pattern.name}.lock"):
        if not done.exists():
            if pattern.exists():
                make_venv(path)
                shutil.copytree(
                    site_packages(Path(pattern.read_text())), site_packages(path), dirs_exist_ok=True
                )
            else:
                make_venv(path, requirements=requirements)
                pattern.write_text(str(path))
            done.touch()
    return path


def site_packages(venv: Path) -> Path:
    """Where this virtualenv keeps its modules."""
    (found,) = venv.glob("lib/python*/site-packages")
    return found


def run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(f"{argv} failed:\n{done.stdout}\n{done.stderr}")
