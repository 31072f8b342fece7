"""What a reboot must not lose: every change of release, and the last good one."""

import errno
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.releases import Outcome, Release, next_id

SCHEMA = 1
MAX_READ_BYTES = 8 << 20  # of a history that somebody else has filled; its end says most
_MODE = 0o640
_RECENT = 16  # changes among which one is looked for that may have been written before


class History:
    """``history.jsonl`` and ``last_good.json`` in the state directory.

    A disk that is full or read-only is never a reason to stop serving: what cannot be written is said,
    kept in memory and written with the next change.  The instance's lock keeps a second supervisor
    out; should there be one nevertheless, each change is one write, so no line is torn by the other.

    Args:
        state_dir: Exists.
        keep: How many changes are kept, at least one.
    """

    def __init__(self, state_dir: str, keep: int) -> None:
        self._dir = state_dir
        self._path = os.path.join(state_dir, "history.jsonl")
        self._good = os.path.join(state_dir, "last_good.json")
        self.keep(keep)
        self._unwritten: list[dict[str, Any]] = []

    def keep(self, changes: int) -> None:
        """Keep so many changes from now on, at least one."""
        self._keep = max(1, changes)

    # -- reading ------------------------------------------------------------------------

    def entries(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The last ``limit`` changes (None: all that are kept), oldest first; lines that make no sense are skipped."""
        found = (self._read() + self._unwritten)[-self._keep :]
        return found[-limit:] if limit else found

    def outcomes(self) -> list[Outcome]:
        """The same for the core; with the last good release, if the history itself does not know it."""
        found: list[tuple[float, Outcome]] = []
        for entry in self.entries():
            try:
                release = Release.from_json({**entry, "id": entry.get("release")})
            except ConfigError:
                continue
            left = entry.get("from") if entry.get("command") == "rollback" else None
            found.append((_time_of(entry), Outcome(release, str(entry.get("outcome")), str(left or ""))))
        good, at, _ = self._read_last_good()
        if good is not None and not any(good.same_as(outcome.release) for _, outcome in found):
            place = sum(then <= at for then, _ in found)
            found.insert(place, (at, Outcome(good, "done")))
        return [outcome for _, outcome in found]

    def used_ids(self) -> list[str]:
        """Every release id that is known to have been used, also by changes that are not kept any more."""
        good, _, _ = self._read_last_good()
        ids = [str(entry.get("release", "")) for entry in self._read() + self._unwritten]
        return ids if good is None else [*ids, good.id]

    def load_last_good(self) -> tuple[Release | None, str]:
        """The release that was committed last, or None; with "" or the sentence to log."""
        good, _, warning = self._read_last_good()
        return good, warning

    # -- writing ------------------------------------------------------------------------

    def append(self, entry: Mapping[str, Any]) -> str:
        """Add one change (any JSON; the keys of design.md's history).  Returns "" or the sentence to log.

        One with a ``uid`` that is there already is not added again: the supervisor that wrote it may have been killed
        before it knew that it had.
        """
        uid = entry.get("uid")
        if uid and any(known.get("uid") == uid for known in self.entries(_RECENT)):
            return ""
        self._unwritten = [*self._unwritten, {"v": SCHEMA, **entry}][-self._keep :]
        try:
            self._write_lines(b"".join(map(_line, self._unwritten)))
        except OSError as exc:
            return (
                f"{self._path} cannot be written: {_why(exc)}; the change itself is done, and is written down "
                "with the next one if there is room then"
            )
        self._unwritten = []
        try:
            self._compact()
        except OSError as exc:
            return f"{self._path} cannot be shortened: {_why(exc)}; nothing is lost"
        return ""

    def save_last_good(self, release: Release) -> str:
        """Replace the last good release, wholly or not at all.  Returns "" or the sentence to log."""
        record = {"v": SCHEMA, "at": round(time.time(), 3), **release.to_json()}
        try:
            self._replace(self._good, _line(record))
        except OSError as exc:
            return f"{self._good} cannot be written: {_why(exc)}; after a reboot the history alone must do"
        return ""

    # -- files --------------------------------------------------------------------------

    def _read(self) -> list[dict[str, Any]]:
        return [entry for line in self._lines() if (entry := _parse(line)) is not None]

    def _lines(self) -> list[bytes]:
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - MAX_READ_BYTES))
                return file.read(MAX_READ_BYTES).split(b"\n")
        except OSError:
            return []

    def _write_lines(self, data: bytes) -> None:
        """Append in one write; a line that a crash has torn before is ended first."""
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            written = os.write(fd, data)
            if written < len(data):
                _take_back(fd, size, written)
            os.fsync(fd)
            if not size:
                self._sync_dir()
        finally:
            os.close(fd)

    def _compact(self) -> None:
        """Shorten the file once it is twice as long as it need be."""
        lines = self._lines()
        if len(lines) - 1 <= 2 * self._keep:
            return
        good = [(entry, line) for line in lines if (entry := _parse(line)) is not None]
        kept = good[-self._keep :]
        # The highest id stays as well: it must not be given again, and old releases may have
        # served so often since that it is not among the last.
        ids = [str(entry.get("release", "")) for entry, _ in good]
        if next_id(ids) != next_id(ids[-self._keep :]):
            highest = max(range(len(ids)), key=lambda index: int(next_id([ids[index]])[1:]))
            kept.insert(0, good[highest])
        self._replace(self._path, b"".join(line + b"\n" for _, line in kept))

    def _replace(self, path: str, data: bytes) -> None:
        """Whatever happens, the file is the old one or the new one, whole.  rename(2), fsync(2)."""
        temp = path + ".new"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            try:
                while data:
                    data = data[os.write(fd, data) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temp, path)
        except OSError:
            os.unlink(temp)  # it would take the room that there is not
            raise
        self._sync_dir()

    def _sync_dir(self) -> None:
        folder = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read_last_good(self) -> tuple[Release | None, float, str]:
        """Release, when it was committed, and what is wrong with the file."""
        try:
            with open(self._good, "rb") as file:
                data = file.read(1 << 16)
        except FileNotFoundError:
            return None, 0.0, ""
        except OSError as exc:
            return None, 0.0, f"{self._good} cannot be read: {_why(exc)}; it is ignored"
        record = _parse(data)
        if record is None:
            return None, 0.0, f"{self._good} is damaged; it is ignored"
        version = record.get("v")
        if type(version) is not int or version > SCHEMA:
            return (
                None,
                0.0,
                f"{self._good} was written by another version of quiesce (v={version!r}); it is ignored",
            )
        try:
            return Release.from_json(record), _time_of(record), ""
        except ConfigError as exc:
            return None, 0.0, f"{self._good} is ignored: {exc}"


def _take_back(fd: int, size: int, written: int) -> None:
    """There was room for a part only: take it back, unless somebody has written behind it.

    Raises:
        OSError: Always; the disk is full.
    """
    if os.fstat(fd).st_size == size + written:
        os.ftruncate(fd, size)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _time_of(entry: Mapping[str, Any]) -> float:
    at = entry.get("at")
    return float(at) if isinstance(at, (int, float)) else 0.0


def _why(exc: OSError) -> str:
    return exc.strerror or str(exc)
