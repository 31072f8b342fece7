"""Writes release directories: the little shop in every flavour, with every way of going wrong."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILES = Path(__file__).resolve().parent / "files"
FLAVOURS = ("wsgi", "asgi", "native", "flask", "fastapi")
INTERFACES = {"flask": "wsgi", "fastapi": "asgi"}


@dataclass(frozen=True)
class Behaviour:
    """How a release behaves.

    Attributes:
        import_s: How long the import takes.
        on_import: ``ok``, ``exit``, ``exit 0``, ``raise``, ``kill`` or ``hang``.
        health: Status of ``/healthz`` and of ``GET /`` without a nonce (what a probe sends).
        serves: Status of what the load client asks for; probes are answered by ``health``.
        dies_after_requests: Dies in the request after so many of the load client's.
        dies_after_s: Dies in the first request so long after the load client's first.
        print_bytes: Printed to standard output with each request of the load client, newline included.
        prints: One line is printed on import.
        shadows: Modules and packages (with a trailing slash) of these names lie in the release and are imported.
    """

    import_s: float = 0.0
    on_import: str = "ok"
    health: int = 200
    serves: int = 200
    dies_after_requests: int = 0
    dies_after_s: float = 0.0
    print_bytes: int = 0
    prints: bool = False
    shadows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notes:
    """The directory in which the applications note what happened to them."""

    path: Path

    def lines(self, name: str) -> list[str]:
        try:
            return (self.path / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    @property
    def tokens(self) -> list[str]:
        return self.lines("tokens")

    @property
    def deaths(self) -> list[float]:
        """When processes noted that they die (CLOCK_MONOTONIC seconds)."""
        return [float(line.split()[1]) for line in self.lines("deaths")]


@dataclass(frozen=True)
class Release:
    """A release directory: ``quiesce run {release.app} --release {release.path}``."""

    path: Path
    name: str
    flavour: str
    app: str = "shop:app"

    @property
    def interface(self) -> str:
        return INTERFACES.get(self.flavour, self.flavour)


def build(
    directory: Path, name: str, notes: Notes, flavour: str = "wsgi", behaviour: Behaviour = Behaviour()
) -> Release:
    """Write the release ``name`` into a new directory below ``directory``."""
    path = directory / name
    path.mkdir(parents=True)
    notes.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FILES / "pages.py", path / "pages.py")
    shop = (FILES / f"shop_{flavour}.py").read_text()
    (path / "shop.py").write_text(shop)
    values = {field.name: getattr(behaviour, field.name) for field in fields(behaviour)}
    assert values == asdict(behaviour)
    values |= {"release": name, "notes": str(notes.path), "shadows": behaviour.shadows}
    values["shadows"] = tuple(each.rstrip("/") for each in behaviour.shadows)
    lines = [f"{key.upper()} = {value!r}\n" for key, value in values.items()]
    (path / "behaviour.py").write_text("".join(lines))
    _shadow(path, behaviour.shadows)
    return Release(path, name, flavour)


def _shadow(path: Path, names: tuple[str, ...]) -> None:
    """Modules of the application that happen to be called like somebody else's."""
    for name in names:
        if name.endswith("/"):
            (path / name).mkdir()
            (path / name / "__init__.py").write_text("MINE = True\n")
        else:
            (path / f"{name}.py").write_text("MINE = True\n")
    if names:
        shop = path / "shop.py"
        imports = "".join(f"import {name.rstrip('/')}\n" for name in names)
        shop.write_text(imports + shop.read_text())


def link(current: Path, target: Path) -> None:
    """Point the symlink ``current`` at ``target``, atomically, as deployment tools do."""
    fresh = current.with_name(f".{current.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.rename(current)
