"""The registry of releases: which serve, which were good, which to go back to.  Pure."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quiesce.shared.errors import ConfigError

_ID = re.compile("r[0-9]{1,15}")


class Release(NamedTuple):
    """A version of the application.  Immutable; what a rollout learns of it is in the history."""

    id: str  # "r42"; never reused
    label: str  # the deployer's word for it; default: the directory's name
    path: str  # the release's directory, symlinks resolved
    python: str  # its interpreter, symlinks *not* resolved, or the virtualenv is lost
    app: str
    app_dir: str  # absolute
    interface: str = "auto"

    def same_code(self, other: "Release") -> bool:
        """Do both run whatever lies in the same place now?"""
        return (self.path, self.app_dir) == (other.path, other.app_dir)

    def same_as(self, other: "Release") -> bool:
        """The same in all but id and label."""
        return self[2:] == other[2:]

    def to_json(self) -> dict[str, str]:
        return self._asdict()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Release":
        """From a record of the state directory; unknown keys are dropped.

        Raises:
            ConfigError: Not such a record.
        """
        fields = {key: data[key] for key in cls._fields if isinstance(data.get(key), str)}
        missing = [key for key in cls._fields if key not in fields and key not in cls._field_defaults]
        if missing:
            raise ConfigError(f"this is no record of a release: {', '.join(missing)} missing")
        return cls(**fields)


class Outcome(NamedTuple):
    """What the history knows of one change."""

    release: Release
    outcome: str  # done, rolled_back, failed, aborted
    left: str = ""  # by a `rollback` command: the id of the release that somebody went back from


def next_id(used: Iterable[str]) -> str:
    """The next never-used id: history numbers on across restarts."""
    numbers = [int(name[1:]) for name in used if _ID.fullmatch(name)]
    return f"r{max(numbers, default=0) + 1}"


def was_rolled_back(path: str, history: Iterable[Outcome]) -> bool:
    """Was the last change to this directory undone, by itself or by a person's `rollback`?

    A cold start that failed says nothing about the next one: what was missing at the boot (a
    database) may be there now.  Nor does an abort.
    """
    verdict = False
    place_of: dict[str, str] = {}
    for entry in history:
        place_of[entry.release.id] = entry.release.path
        if entry.outcome not in ("done", "rolled_back"):
            continue
        if entry.release.path == path:
            verdict = entry.outcome == "rolled_back"
        elif entry.outcome == "done" and place_of.get(entry.left) == path:
            verdict = True
    return verdict


def good_ones(history: Iterable[Outcome]) -> list[Release]:
    """Releases whose last change went well, newest first, each directory once.

    A directory that was deployed well and later badly is not good any more: what lies in it
    now is what failed.  Nor is one that somebody went back from: a second `rollback` goes
    further back, not forward again.
    """
    last: dict[tuple[str, str], Outcome] = {}
    for entry in history:
        if entry.outcome == "aborted":
            continue
        key = (entry.release.path, entry.release.app_dir)
        if entry.outcome == "done" and entry.left:
            for other in [k for k, o in last.items() if o.release.id == entry.left and k != key]:
                del last[other]
        last.pop(key, None)  # so that the order is that of the last change
        last[key] = entry
    return [entry.release for entry in reversed(last.values()) if entry.outcome == "done"]


def cold_start_order(
    configured: Release | None, good: Sequence[Release], history: Iterable[Outcome]
) -> list[Release]:
    """What a cold start tries, in order.

    Args:
        configured: What the configuration means; None: it is not on disk.
        good: Good releases that are on disk, newest first.
        history: All that is known, oldest first.

    The configured release comes first, unless its directory was rolled back and there is
    another good one to serve in its place.
    """
    if configured is None:
        return list(good)
    others = [release for release in good if not release.same_code(configured)]
    if others and was_rolled_back(configured.path, history):
        return others
    return [configured, *others]


def choose_rollback(
    which: str | None, serving: Release, history: Collection[Outcome], on_disk: Collection[str]
) -> Release:
    """The release that ``rollback [WHICH]`` means: never what serves, never what is gone.

    Args:
        which: An id, a label, a directory, or None for the previous good one.
        serving: What serves now.
        history: All that is known, oldest first.
        on_disk: The directories of the history that still exist.

    Raises:
        ConfigError: There is none; the sentence says why and what there is.
    """
    if which is None:
        return _previous(serving, history, on_disk)
    return _named(which, serving, history, on_disk)


def _previous(serving: Release, history: Collection[Outcome], on_disk: Collection[str]) -> Release:
    others = [release for release in good_ones(history) if not release.same_code(serving)]
    for release in others:
        if release.path in on_disk:
            return release
    if others:
        raise ConfigError(
            f"the previous good release {others[0].id} is gone from disk ({others[0].path}); "
            "deploy it again with `quiesce upgrade --release DIR`"
        )
    earlier = [entry.release for entry in history if entry.outcome == "done"]
    if any(release.id != serving.id and release.same_code(serving) for release in earlier):
        raise ConfigError(
            f"every earlier release lay in {serving.path}, as {serving.id} does, so its code is no longer "
            "there; put the old code back and run `quiesce upgrade`, and keep releases in directories "
            "of their own to be able to roll back"
        )
    raise ConfigError("there is no earlier good release to roll back to; see `quiesce history`")


def _named(which: str, serving: Release, history: Collection[Outcome], on_disk: Collection[str]) -> Release:
    good = good_ones(history)
    known = [entry.release for entry in history if _is_called(which, entry.release)]
    if not known:
        names = ", ".join(f"{release.id} ({release.label})" for release in good[:8])
        raise ConfigError(
            f"no release {which!r} in the history"
            + (f"; good ones are: {names}" if names else "; see `quiesce history`")
        )
    others = [release for release in known if not release.same_code(serving)]
    there = [release for release in others if release.path in on_disk]
    if there:
        # A label may have been given twice: rather the one that went well, and rather the newest.
        return next((release for release in reversed(there) if release in good), there[-1])
    if others:
        raise ConfigError(
            f"release {others[-1].id} is gone from disk: {others[-1].path}; "
            "deploy it again with `quiesce upgrade --release DIR`"
        )
    if known[-1].id == serving.id:
        raise ConfigError(f"release {serving.id} is the one that serves; see `quiesce history` for others")
    raise ConfigError(
        f"release {known[-1].id} lay in {serving.path}, as {serving.id} does, so its code is no longer there; "
        "put it back and run `quiesce upgrade`"
    )


def _is_called(which: str, release: Release) -> bool:
    return which in (release.id, release.label) or (which.rstrip("/") or "/") == release.path
