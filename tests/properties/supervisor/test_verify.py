"""The error gate: monotone, and never against a release that is no worse than the one before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.supervisor.core.verify import MIN_REQUESTS, Sample, too_many_errors

COUNTS = st.integers(0, 200)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    responses = draw(COUNTS)
    return Sample(responses, draw(st.integers(0, responses)))


@settings(max_examples=100, deadline=None)
@given(samples(), samples(), st.floats(0, 1))
def test_only_what_is_worse_than_limit_and_predecessor_goes_back(
    new: Sample, old: Sample, limit: float
) -> None:
    bad = bool(too_many_errors(new, old, limit))
    assert bad is (new.responses >= MIN_REQUESTS and new.share > max(limit, old.share))
    if bad and new.errors < new.responses:
        assert too_many_errors(new._replace(errors=new.errors + 1), old, limit)


@settings(max_examples=50, deadline=None)
@given(samples(), samples(), samples())
def test_samples_add_up(a: Sample, b: Sample, c: Sample) -> None:
    total = Sample(a.responses + b.responses, a.errors + b.errors)
    assert total.since(a) == b
    assert min(a.since(c)) >= 0
