"""Who is due for recycling: never before its limit, the most worn first, and not all at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.core.recycle import JITTER, Limits, Wear, due, jitter

KEYS = st.text("0123456789abcdef", min_size=16, max_size=16)
WEARS = st.builds(
    Wear,
    number=st.integers(1, 99),
    key=KEYS,
    requests=st.integers(0, 30_000),
    age_s=st.floats(0, 10_000),
    rss=st.integers(0, 1 << 32),
)
WORKERS = st.lists(WEARS, max_size=6, unique_by=lambda wear: wear.number)
LIMITS = st.builds(
    Limits,
    max_requests=st.sampled_from([0, 10_000]),
    max_age_s=st.sampled_from([0.0, 3600.0]),
    max_rss=st.sampled_from([0, 1 << 30]),
)


@given(LIMITS, WORKERS)
def test_nobody_before_its_limit_and_somebody_beyond_it(limits: Limits, workers: list[Wear]) -> None:
    early = 1 - JITTER
    late = 1 + JITTER
    found = due(limits, workers)

    def over(worker: Wear, factor: float) -> bool:
        return (
            bool(limits.max_requests and worker.requests >= factor * limits.max_requests)
            or bool(limits.max_age_s and worker.age_s >= factor * limits.max_age_s)
            or bool(limits.max_rss and worker.rss >= limits.max_rss)
        )

    if found is not None:
        assert over(next(worker for worker in workers if worker.number == found.number), early)
    else:
        assert not any(over(worker, late) for worker in workers)


@given(WORKERS)
def test_without_limits_nobody_ever(workers: list[Wear]) -> None:
    assert not Limits() and due(Limits(), workers) is None


@given(KEYS)
def test_a_worker_keeps_its_jitter(key: str) -> None:
    assert 1 - JITTER <= jitter(key) <= 1 + JITTER and jitter(key) == jitter(key)


def test_those_that_started_together_do_not_tire_together() -> None:
    assert len({round(jitter(f"{n * 0x1234567:08x}".ljust(16, "0")), 3) for n in range(100)}) > 50


def test_the_most_worn_first_with_its_reason() -> None:
    key = "8" * 16
    workers = [Wear(1, key, 11_500, 5.0), Wear(2, key, 20_000, 5.0), Wear(3, key, 3, 5.0, rss=5 << 30)]
    assert due(Limits(max_requests=10_000), workers) == (
        2,
        "it has had 20,000 requests (max_requests is 10,000)",
    )
    found = due(Limits(10_000, 0.0, 1 << 30), workers)
    assert found == (3, "it has 5120 MiB of memory (max_rss is 1024 MiB)")
    found = due(Limits(max_age_s=2.5), workers[:1])
    assert found == (1, "it is 5 s old (max_age is 2.5 s)")
