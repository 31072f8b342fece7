"""The sentences with which the stories end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apps import Notes, Release
from harness.instance import Instance, Outcome
from load import Report


def assert_all_well(report: Report, notes: Notes | None = None) -> None:
    """No failure of any class; with ``notes``, each token posted was written down exactly once."""
    assert report.total > 0
    assert report.failures() == {}, report.explain()
    if notes is not None:
        assert report.judge_tokens(notes.tokens) == {}, report.explain()


@dataclass(frozen=True)
class Change:
    """One command that changed the release, with the release that serves from its end on."""

    outcome: Outcome
    release: str


@dataclass
class Changes:
    """What was done to an instance, in order, to judge a report by."""

    done: list[Change] = field(default_factory=list)

    def ok(self, instance: Instance, release: str, *argv: str) -> Outcome:
        """A command that must succeed, after which ``release`` serves."""
        outcome = instance.ok(*argv)
        self.done.append(Change(outcome, release))
        return outcome

    def assert_no_old_answers(self, report: Report) -> None:
        """After each command returned, no new connection was answered by the release that it replaced.

        From then on until the next command returns, the release it left behind answers, or already the next one.
        Where the next one is the replaced one again, only the time before the next command can be judged.
        """
        replaced = None
        for change, after in zip(self.done, [*self.done[1:], None], strict=True):
            until, allowed = math.inf, {change.release}
            if after is not None:
                back = after.release == replaced
                until = after.outcome.began if back else after.outcome.ended
                allowed |= set() if back else {after.release}
            stale = report.stale_answers(change.outcome.ended, until, *allowed)
            late = [f"{f.release} {f.began - change.outcome.ended:.3f} s after" for f in stale]
            assert not stale, (
                f"`{change.outcome.argv[0]}` left {change.release}, but {len(stale)} answers: {late[:5]}"
            )
            replaced = change.release


def serving(status: dict[str, Any]) -> dict[str, Any]:
    """The entry of ``releases`` that serves."""
    identity = status["release"]["id"] if isinstance(status["release"], dict) else status["release"]
    (found,) = [entry for entry in status["releases"] if entry["id"] == identity]
    return dict(found)


def assert_serves(instance: Instance, release: Release, workers: int | None = None) -> dict[str, Any]:
    """``release`` is the one that serves, to status and to a client; with ``workers``, at that strength."""
    status = instance.settled(workers) if workers is not None else instance.status()
    assert serving(status)["path"] == str(release.path), status
    reply = instance.get("/")
    assert (reply.status, reply.release) == (200, release.name)
    return status


def at_strength(instance: Instance, pids: Sequence[int]) -> None:
    """Exactly these workers run, and all accept."""
    status = instance.settled(len(pids))
    assert sorted(worker["pid"] for worker in status["workers"]) == sorted(pids), status


def now() -> float:
    """The clock of reports and outcomes."""
    return time.monotonic()
