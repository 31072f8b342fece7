"""What a reboot must not lose: every change of release, and the last good one."""

import json
import os
from collections.abc import Mapping
from typing import Any

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.releases import Outcome, Release

SCHEMA = 1


class History:
    """``history.jsonl`` and ``last_good.json`` in the state directory."""

    def __init__(self, state_dir: str, keep: int) -> None:
        self._path = os.path.join(state_dir, "history.jsonl")
        self._good = os.path.join(state_dir, "last_good.json")
        self._keep = max(1, keep)

    def entries(self, limit: int | None = None) -> list[dict[str, Any]]:
        """All that is known, oldest first; lines that cannot be read are skipped."""
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            return []
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a crash
            if isinstance(entry, dict):
                entries.append(entry)
        entries = entries[-self._keep :]
        return entries[-limit:] if limit else entries

    def outcomes(self) -> list[Outcome]:
        found = []
        for entry in self.entries():
            try:
                release = Release.from_json({**entry, "id": entry.get("release")})
            except ConfigError:
                continue
            found.append(Outcome(release, str(entry.get("outcome"))))
        return found

    def append(self, entry: Mapping[str, Any]) -> str:
        """Add one change; returns "" or the sentence to log."""
        line = json.dumps({"v": SCHEMA, **entry}, separators=(",", ":")) + "\n"
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    line = "\n" + line
                os.write(fd, line.encode())
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            return f"{self._path}: {exc.strerror}"
        return ""

    def save_last_good(self, release: Release) -> str:
        """Write it atomically; returns "" or the sentence to log."""
        text = json.dumps({"v": SCHEMA, **release.to_json()})
        temp = self._good + ".new"
        try:
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                os.write(fd, text.encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temp, self._good)
            folder = os.open(os.path.dirname(self._good), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            return f"{self._good}: {exc.strerror}"
        return ""
