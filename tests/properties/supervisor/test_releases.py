"""`rollback` never means what serves nor what is gone; an id never comes twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.releases import Outcome, Release, choose_rollback, good_ones, next_id

PATHS = ["/srv/a", "/srv/b", "/srv/c", "/srv/d"]


@st.composite
def releases(draw: st.DrawFn) -> Release:
    path = draw(st.sampled_from(PATHS))
    app_dir = path + draw(st.sampled_from(["", "/src"]))
    number, label = draw(st.integers(1, 9)), draw(st.sampled_from(["one", "two", "r3"]))
    return Release(f"r{number}", label, path, "/usr/bin/python3", "shop:app", app_dir)


HISTORY = st.lists(
    st.builds(Outcome, releases(), st.sampled_from(["done", "done", "rolled_back", "failed", "aborted"])),
    max_size=12,
)
WHICH = st.one_of(
    st.none(), st.sampled_from(["one", "two", "r1", "r3", "r9", "/srv/a", "/srv/b/", "/", "", "?"])
)


@settings(max_examples=120, deadline=None)
@given(WHICH, releases(), HISTORY, st.sets(st.sampled_from(PATHS)))
def test_rollback_goes_to_something_else_that_is_there_or_says_why_not(
    which: str | None, serving: Release, history: list[Outcome], on_disk: set[str]
) -> None:
    try:
        chosen = choose_rollback(which, serving, history, on_disk)
    except ConfigError as exc:
        assert len(str(exc)) > 30
        if which is None:
            others = [r for r in good_ones(history) if not r.same_code(serving)]
            assert not any(r.path in on_disk for r in others), "there was one"
        return
    assert not chosen.same_code(serving)
    assert chosen.path in on_disk
    assert chosen in [entry.release for entry in history]
    if which is None:
        assert chosen in good_ones(history)
    else:
        assert which in (chosen.id, chosen.label) or which.rstrip("/") == chosen.path


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.from_regex(r"r[0-9]{1,4}", fullmatch=True), st.text(max_size=6)), max_size=20))
def test_an_id_is_never_used_again(used: list[str]) -> None:
    fresh = []
    for _ in range(3):
        fresh.append(next_id([*used, *fresh]))
    assert len(set(fresh)) == 3 and not set(fresh) & set(used)


@settings(max_examples=100, deadline=None)
@given(HISTORY)
def test_good_ones_are_good_and_each_place_comes_once(history: list[Outcome]) -> None:
    found = good_ones(history)
    assert len({(r.path, r.app_dir) for r in found}) == len(found)
    for release in found:
        of_this_place = [
            e.outcome for e in history if e.release.same_code(release) and e.outcome != "aborted"
        ]
        assert of_this_place[-1] == "done"
