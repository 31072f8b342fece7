"""Kill a supervisor at an exact moment: one of the points at which it writes its state down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SITE = Path(__file__).with_name("fatal_site")


@dataclass(frozen=True)
class Trigger:
    """A file that names the moment; the supervisor removes it as its last deed."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        """For the environment of the instance."""
        return {"QUIESCE_TEST_FATAL": str(self.path), "PYTHONPATH": str(_SITE)}

    def arm(self, writes: int, when: str = "after") -> None:
        """Die at the so-many-th write from now on, just ``before`` or ``after`` it."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{when} {writes}")
        fresh.rename(self.path)

    def disarm(self) -> bool:
        """Has it not gone off?"""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True
