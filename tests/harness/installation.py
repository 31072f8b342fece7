"""Copies of quiesce as pip would install it, in virtual environments of their own: to be changed, broken, replaced."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import quiesce

_SCRIPT = """\
#!{python}
import sys
from quiesce.supervisor.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment that has a copy of our package, and our own dependencies."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def command(self) -> tuple[str, ...]:
        """For `prepared` and `running`."""
        return (str(self.path / "bin" / "quiesce"),)

    @property
    def package(self) -> Path:
        return _site(self.path) / "quiesce"

    def edit(self, module: str, old: str, new: str) -> None:
        """Change a file of it, given relative to the package; ``old`` must be there."""
        file = self.package / module
        text = file.read_text()
        assert old in text, f"{old!r} is not in {module}"
        _write(file, text.replace(old, new))

    def append(self, module: str, text: str) -> None:
        file = self.package / module
        _write(file, file.read_text() + text)

    def rename_module(self, module: str, name: str) -> None:
        """Give a module of ``quiesce.supervisor`` another name, everywhere."""
        supervisor = self.package / "supervisor"
        (supervisor / f"{module}.py").rename(supervisor / f"{name}.py")
        for file in supervisor.rglob("*.py"):
            text = file.read_text()
            changed = text.replace(f"quiesce.supervisor.{module} import", f"quiesce.supervisor.{name} import")
            changed = re.sub(
                r"^( *from quiesce\.supervisor import .*)$",
                lambda line: re.sub(
                    rf"\b{module}\b( as)?", lambda word: f"{name}{word[1] or f' as {module}'}", line[1]
                ),
                changed,
                flags=re.MULTILINE,
            )
            if changed != text:
                _write(file, changed)

    def become(self, other: Installation) -> None:
        """Replace the package by that of another one, as pip does: old files go, new ones come."""
        fresh = self.package.with_name("quiesce.new")
        shutil.copytree(other.package, fresh)
        shutil.rmtree(self.package)
        fresh.rename(self.package)


def _write(file: Path, text: str) -> None:
    """With no stale bytecode: two changes of the same size within a second look alike to Python."""
    file.write_text(text)
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def _site(path: Path) -> Path:
    return path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def install(path: Path, version: str = "") -> Installation:
    """A new installation of this checkout at ``path``, under another version number if one is given."""
    (path / "bin").mkdir(parents=True)
    site = _site(path)
    site.mkdir(parents=True)
    base = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    (path / "bin" / "python").symlink_to(base)
    (path / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    # Lines of a .pth file are folders; .pth files in those are not read, so our editable installation is not seen.
    others = [name for name in sys.path if "-packages" in name]
    (site / "dependencies.pth").write_text("".join(f"{name}\n" for name in others))
    package = site / "quiesce"
    package.mkdir()
    ours = Path(quiesce.__file__).parent
    for item in ours.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            shutil.copytree(item, package / item.name)  # bytecode too: it holds no path, and saves a second
        elif item.is_file():
            shutil.copy2(item, package / item.name)
    script = path / "bin" / "quiesce"
    script.write_text(_SCRIPT.format(python=path / "bin" / "python"))
    script.chmod(0o755)
    installation = Installation(path)
    if version:
        installation.edit(
            "__init__.py", f'__version__ = "{quiesce.__version__}"', f'__version__ = "{version}"'
        )
    return installation
