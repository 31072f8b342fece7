"""What the load client saw, typed, with the verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum


class Trouble(StrEnum):
    """The ways in which a server lets a client down."""

    REFUSED = "refused"  # connect() said ECONNREFUSED (or the unix socket was gone)
    CONNECT_TIMEOUT = "connect_timeout"
    RESET = "reset"  # ECONNRESET or EPIPE before the answer was whole
    NO_ANSWER = "no_answer"  # closed in order, but without any answer to a first request
    KEPT_RESET = "kept_reset"  # a kept connection closed or reset while our request was crossing
    SHORT_BODY = "short_body"  # closed before the promised end
    WRONG_BODY = "wrong_body"  # checksum, length, nonce or release do not agree
    BAD_ANSWER = "bad_answer"  # not HTTP, or bytes that nobody asked for
    STATUS = "status"  # an answer outside 2xx; the detail says which
    TIMEOUT = "timeout"
    TOKEN_LOST = "token_lost"  # answered, and yet not written down
    TOKEN_TWICE = "token_twice"  # written down more than once
    TOKEN_STRANGE = "token_strange"  # written down, but never sent


@dataclass(frozen=True)
class Failure:
    """One request that failed.

    Attributes:
        trouble: A value of `Trouble`.
        traffic: Kind of traffic.
        began: When the request began (CLOCK_MONOTONIC seconds, comparable between processes).
        at: When the failure was noticed.
        release: The release that last answered on this connection, "" if none had.
        detail: For people.
    """

    trouble: str
    traffic: str
    began: float
    at: float
    release: str
    detail: str


@dataclass(frozen=True)
class Fresh:
    """One connection of the "fresh" kind: when connect() began, when the answer was whole, who answered."""

    began: float
    answered: float
    release: str


@dataclass
class Report:
    """One run.  Times are CLOCK_MONOTONIC seconds.

    Attributes:
        counts: Failures by class, complete (``failed`` is cut at `MOST_KEPT`).
        failed: The first failures in full.
        answers: Good answers by kind of traffic.
        releases: Good answers by release.
        connects: Connections made.
        idle_closed: Kept connections that the server closed between two requests without having said so.
        longest_gap_s: Longest time between two answers of one busy client, without the time in which this
            client itself did not get to run.
        gap_at: When that gap ended.
        longest_fresh_s: Longest time from connect() to the answer of a "fresh" connection, counted likewise.
        client_stall_s: Longest time in which this client did not get to run.
        longest_wait_s: Longest wait for one answer, by kind of traffic (for people).
        fresh: Every connection of the "fresh" kind, in the order of the answers.
        tokens: Tokens whose POST was answered with 2xx.
        tokens_in_doubt: Tokens sent whose POST failed: the application may have seen them or not.
    """

    began: float = 0.0
    ended: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)
    connects: int = 0
    idle_closed: int = 0
    longest_gap_s: float = 0.0
    gap_at: float = 0.0
    longest_fresh_s: float = 0.0
    client_stall_s: float = 0.0
    longest_wait_s: dict[str, float] = field(default_factory=dict)
    fresh: list[Fresh] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    tokens_in_doubt: list[str] = field(default_factory=list)

    MOST_KEPT = 200

    def failures(self) -> dict[str, int]:
        """Class of failure to count; empty when all is well."""
        return {name: count for name, count in self.counts.items() if count}

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def explain(self) -> str:
        """A few lines for a failing assertion."""
        lines = [f"{self.total} answers {self.answers}, failures {self.failures()}"]
        for failure in self.failed[:12]:
            lines.append(
                f"  {failure.trouble} in {failure.traffic} began={failure.began - self.began:.3f} "
                f"after={failure.at - failure.began:.3f}s last release={failure.release or '-'}: "
                f"{failure.detail}"
            )
        return "\n".join(lines)

    def failures_outside(self, deaths: Sequence[float], slack_s: float = 0.5) -> list[Failure]:
        """Failures that no death of a process explains.

        A request was inside a process that died at time ``d`` only if it began before ``d`` (plus
        ``slack_s``: the kernel closes the dead process's sockets a little after the note of its death was
        written) and was seen to fail after it.
        """
        return [f for f in self.failed if not any(f.began <= d + slack_s and f.at >= d for d in deaths)]

    def stale_answers(self, since: float, until: float, *releases: str) -> list[Fresh]:
        """Connections begun in [since, until) that were answered by none of ``releases``."""
        return [f for f in self.fresh if since <= f.began < until and f.release not in releases]

    def judge_tokens(self, written: Iterable[str]) -> dict[str, int]:
        """Compare with what the applications wrote down; class to count, empty when all is well."""
        seen = Counter(written)
        known = set(self.tokens) | set(self.tokens_in_doubt)
        verdict = {
            Trouble.TOKEN_LOST: sum(token not in seen for token in self.tokens),
            Trouble.TOKEN_TWICE: sum(count > 1 for count in seen.values()),
            Trouble.TOKEN_STRANGE: sum(token not in known for token in seen),
        }
        return {str(name): count for name, count in verdict.items() if count}

    def to_json(self) -> str:
        data = asdict(self)
        data["fresh"] = [(f.began, f.answered, f.release) for f in self.fresh]
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Report:
        data = json.loads(text)
        data["failed"] = [Failure(**each) for each in data["failed"]]
        data["fresh"] = [Fresh(*each) for each in data["fresh"]]
        return cls(**data)
