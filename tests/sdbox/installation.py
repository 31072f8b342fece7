"""quiesce as it is installed on a host, for any image: an interpreter at a neutral path, and a virtual environment.

The test interpreter may lie in a home directory that no service user may enter (pyenv in root's), and an image has
another Python or none.  So the box sees this interpreter's own tree at ``/opt/python``, and quiesce in a virtual
environment ``/opt/quiesce``: copies of the checkout and of what it depends on, laid out as pip does it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/python"  # in a box
PREFIX = "/opt/quiesce"
QUIESCE = f"{PREFIX}/bin/quiesce"
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
INTERPRETER = f"{PYTHON}/bin/{_VERSION}"
_NEEDS = ("setproctitle", "python-daemon", "lockfile", "httptools", "msgspec")
_SCRIPT = f"""\
#!{PREFIX}/bin/python
import sys
from quiesce.supervisor.cli import main
sys.exit(main())
"""


def install(directory: Path) -> list[str]:
    """Prepare the installation below ``directory``; return the binds that bring it into a box."""
    prefix = make_environment(directory / "quiesce", _NEEDS)
    package = site_packages(prefix) / "quiesce"
    ours = ROOT / ".src" / "quiesce"
    package.mkdir()
    for path in ours.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            shutil.copytree(
                path, package / path.name, ignore=shutil.ignore_patterns("__pycache__", "README.md")
            )
        elif path.is_file():
            shutil.copyfile(path, package / path.name)
    script = prefix / "bin" / "quiesce"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    return [f"{sys.base_prefix}:{PYTHON}:ro", *_relocated(directory), f"{prefix}:{PREFIX}:ro"]


def make_environment(path: Path, distributions: Sequence[str] = ()) -> Path:
    """A virtual environment of the box's interpreter, with copies of our own copies of ``distributions``."""
    (path / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (path / "bin" / name).symlink_to(INTERPRETER)
    (path / "pyvenv.cfg").write_text(f"home = {PYTHON}/bin\ninclude-system-site-packages = false\n")
    site = site_packages(path)
    site.mkdir(parents=True)
    for name in distributions:
        _copy_distribution(name, site)
    return path


def site_packages(environment: Path) -> Path:
    """Where its modules lie."""
    return environment / "lib" / _VERSION / "site-packages"


def _copy_distribution(name: str, site: Path) -> None:
    for file in distribution(name).files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue  # its commands; compiled for another path
        target = site / Path(*file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)


def _relocated(directory: Path) -> list[str]:
    """The interpreter itself, if it finds its library by an absolute path (pyenv's does).

    That path leads into a home directory, so a service user's loader gives up on it.  A shorter string fits into
    the same place of the file.
    """
    binary = Path(sys.base_prefix, "bin", _VERSION)
    content = binary.read_bytes()
    old = os.fsencode(f"{sys.base_prefix}/lib") + b"\0"
    new = b"$ORIGIN/../lib"
    if old not in content or len(old) < len(new) + 1:
        return []
    copy = directory / _VERSION
    copy.write_bytes(content.replace(old, new.ljust(len(old), b"\0")))
    copy.chmod(0o755)
    return [f"{copy}:{INTERPRETER}:ro"]
