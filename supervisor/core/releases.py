"""The registry of releases: which serve, which were good, which to go back to.  Pure."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from quiesce.shared.errors import ConfigError


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
        try:
            return cls(**fields)
        except TypeError as exc:
            raise ConfigError(f"not a release record: {exc}") from exc


class Outcome(NamedTuple):
    """What the history knows of one change."""

    release: Release
    outcome: str  # done, rolled_back, failed, aborted


def next_id(used: Iterable[str]) -> str:
    """The next never-used id: history numbers on across restarts."""
    numbers = [int(name[1:]) for name in used if name[:1] == "r" and name[1:].isdigit()]
    return f"r{max(numbers, default=0) + 1}"


def was_rolled_back(path: str, history: Iterable[Outcome]) -> bool:
    """Did the last change to this directory end badly?"""
    verdict = False
    for entry in history:
        if entry.release.path == path and entry.outcome != "aborted":
            verdict = entry.outcome != "done"
    return verdict


def good_ones(history: Iterable[Outcome]) -> list[Release]:
    """Releases whose last change went well, newest first, each directory once.

    A directory that was deployed well and later badly is not good any more: what lies in it
    now is what failed.
    """
    last: dict[tuple[str, str], Outcome] = {}
    for entry in history:
        if entry.outcome == "aborted":
            continue
        key = (entry.release.path, entry.release.app_dir)
        last.pop(key, None)  # so that the order is that of the last change
        last[key] = entry
    return [entry.release for entry in reversed(last.values()) if entry.outcome == "done"]


def choose_rollback(
    which: str | None, serving: Release, history: Collection[Outcome], on_disk: Collection[str]
) -> Release:
    """The release that ``rollback [WHICH]`` means.

    Args:
        which: An id, a label, a directory, or None for the previous good one.
        serving: What serves now.
        history: All that is known, oldest first.
        on_disk: The directories of the history that still exist.

    Raises:
        ConfigError: There is none; the sentence says why and what there is.
    """
    if which is None:
        others = [release for release in good_ones(history) if not release.same_code(serving)]
        gone = [release for release in others if release.path not in on_disk]
        for release in others:
            if release.path in on_disk:
                return release
        if gone:
            raise ConfigError(
                f"the previous good release {gone[0].id} is gone from disk ({gone[0].path}); "
                "deploy it again with `quiesce upgrade --release DIR`"
            )
        if any(entry.release.id != serving.id and entry.outcome == "done" for entry in history):
            raise ConfigError(
                f"every earlier release lay in {serving.path}, as {serving.id} does, so its code is no longer "
                "there; put the old code back and run `quiesce upgrade`, and keep releases in directories "
                "of their own to be able to roll back"
            )
        raise ConfigError("there is no earlier good release to roll back to; see `quiesce history`")
    known: list[Release] = []
    for entry in history:
        if which in (entry.release.id, entry.release.label) or which.rstrip("/") == entry.release.path:
            known.append(entry.release)
    if not known:
        names = ", ".join(f"{release.id} ({release.label})" for release in good_ones(history)[:8])
        raise ConfigError(
            f"no release {which!r} in the history" + (f"; good ones are: {names}" if names else "")
        )
    chosen = known[-1]
    if chosen.path not in on_disk:
        raise ConfigError(f"release {chosen.id} is gone from disk: {chosen.path}")
    if chosen.same_code(serving) and chosen.id != serving.id:
        raise ConfigError(
            f"release {chosen.id} lay in {serving.path}, as {serving.id} does, so its code is no longer there"
        )
    return chosen
