"""The registry of releases: ids, what was good, and where `rollback` goes."""

from __future__ import annotations

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.releases import (
    Outcome,
    Release,
    choose_rollback,
    cold_start_order,
    good_ones,
    next_id,
    was_rolled_back,
)


def release(number: int, path: str, label: str = "", app_dir: str = "") -> Release:
    folder = f"/srv/{path}"
    return Release(f"r{number}", label or path, folder, "/usr/bin/python3", "shop:app", app_dir or folder)


def done(*releases: Release) -> list[Outcome]:
    return [Outcome(item, "done") for item in releases]


R1, R2, R3 = release(1, "v1"), release(2, "v2"), release(3, "v3")
ALL = ["/srv/v1", "/srv/v2", "/srv/v3"]


# -- records ------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_went() -> None:
    assert Release.from_json(R1.to_json()) == R1
    assert Release.from_json({**R1.to_json(), "v": 2, "new_key": [1]}) == R1


def test_a_record_of_an_older_version_lacks_what_has_a_default() -> None:
    data = {key: value for key, value in R1.to_json().items() if key != "interface"}
    assert Release.from_json(data).interface == "auto"


@pytest.mark.parametrize(
    "broken", [{}, {"id": "r1"}, {**R1.to_json(), "path": None}, {**R1.to_json(), "app": 3}]
)
def test_what_is_no_record_is_refused_with_what_is_missing(broken: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"no record of a release: .*(path|app).* missing") as caught:
        Release.from_json(broken)
    assert "__new__" not in str(caught.value)


def test_same() -> None:
    assert R1.same_as(release(9, "v1", "v1")._replace(label="other"))
    assert not R1.same_as(R1._replace(python="/other/python"))
    assert R1.same_code(R1._replace(id="r9", python="/other/python"))
    assert not R1.same_code(R1._replace(app_dir="/srv/v1/src"))


# -- ids ----------------------------------------------------------------------------------------


def test_ids_go_on() -> None:
    assert next_id([]) == "r1"
    assert next_id(["r9", "r10", "r2"]) == "r11"


@pytest.mark.parametrize("odd", ["", "r", "x7", "r-1", "r7b", "r²", "r٣", "r" + "9" * 5000, "R8"])
def test_what_is_no_id_does_not_count(odd: str) -> None:
    assert next_id(["r4", odd]) == "r5"


# -- what was good --------------------------------------------------------------------------------


def test_good_ones_are_newest_first_and_each_directory_once() -> None:
    again = release(4, "v1")
    assert good_ones(done(R1, R2, R3, again)) == [again, R3, R2]


def test_a_directory_that_later_failed_is_not_good_and_an_abort_says_nothing() -> None:
    history = [*done(R1, R2), Outcome(release(3, "v1"), "rolled_back"), Outcome(release(4, "v2"), "aborted")]
    assert good_ones(history) == [R2]
    assert good_ones([*history, Outcome(release(5, "v2"), "failed")]) == []


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([], False),
        (["done"], False),
        (["rolled_back"], True),
        (["done", "rolled_back"], True),
        (["rolled_back", "done"], False),
        (["rolled_back", "aborted"], True),
        (["done", "aborted"], False),
        # The database was not there yet at the boot; that is no verdict on the release.
        (["done", "failed"], False),
        (["rolled_back", "failed"], True),
    ],
)
def test_was_it_rolled_back(outcomes: list[str], verdict: bool) -> None:
    history = [Outcome(R2, outcome) for outcome in outcomes] + done(R1)
    assert was_rolled_back(R2.path, history) is verdict
    assert was_rolled_back(R1.path, history) is False


# -- rollback without a name ----------------------------------------------------------------------


def test_back_to_the_one_before() -> None:
    assert choose_rollback(None, R3, done(R1, R2, R3), ALL) == R2


def test_twice_goes_back_and_forth_between_the_last_two() -> None:
    assert choose_rollback(None, R2, done(R1, R2, R3, R2), ALL) == R3


def test_bad_ones_are_passed_over_and_so_are_those_that_are_gone() -> None:
    history = [*done(R1, R2), Outcome(R2, "rolled_back"), *done(R3)]
    assert choose_rollback(None, R3, history, ALL) == R1
    assert choose_rollback(None, R3, done(R1, R2, R3), ["/srv/v1", "/srv/v3"]) == R1


def test_the_only_good_one_is_gone() -> None:
    with pytest.raises(
        ConfigError, match=r"previous good release r2 is gone from disk \(/srv/v2\); .*upgrade"
    ):
        choose_rollback(None, R3, done(R1, R2, R3), ["/srv/v3"])


def test_everything_lay_in_one_directory() -> None:
    history = done(release(1, "shop"), release(2, "shop"))
    with pytest.raises(ConfigError, match=r"every earlier release lay in /srv/shop, as r2 does.*directories"):
        choose_rollback(None, release(2, "shop"), history, ["/srv/shop"])


@pytest.mark.parametrize(
    "history",
    [[], done(R1), [Outcome(R2, "rolled_back"), *done(R1)], [*done(R2), Outcome(R2, "failed"), *done(R1)]],
)
def test_there_is_no_earlier_one(history: list[Outcome]) -> None:
    with pytest.raises(ConfigError, match=r"no earlier good release to roll back to; see `quiesce history`"):
        choose_rollback(None, R1, history, ALL)


# -- rollback to a name ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["r1", "v1", "/srv/v1", "/srv/v1/"])
def test_by_id_label_and_directory(which: str) -> None:
    assert choose_rollback(which, R3, done(R1, R2, R3), ALL) == R1


def test_a_label_that_was_given_twice_means_the_newest_that_went_well() -> None:
    a, b, c = release(1, "a", "beta"), release(2, "b", "beta"), release(3, "c", "beta")
    paths = [a.path, b.path, c.path]
    assert choose_rollback("beta", R3, done(a, b, R3), paths) == b
    assert choose_rollback("beta", R3, [*done(a, b), Outcome(c, "rolled_back"), *done(R3)], paths) == b
    # What serves has that label, too, but nobody goes back to where he is.
    assert choose_rollback("beta", c, done(a, b, c), paths) == b


def test_a_bad_one_can_be_had_by_its_name() -> None:
    """The probe will judge it again; perhaps it was the database."""
    assert choose_rollback("r2", R3, [Outcome(R2, "rolled_back"), *done(R3)], ALL) == R2


def test_an_unknown_name_is_answered_with_the_good_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no release 'r77' in the history; good ones are: r2 \(v2\), r1 \(v1\)"
    ):
        choose_rollback("r77", R2, done(R1, R2), ALL)
    with pytest.raises(ConfigError, match=r"no release 'r77' in the history; see `quiesce history`"):
        choose_rollback("r77", R2, [], ALL)


def test_a_named_one_that_is_gone() -> None:
    with pytest.raises(ConfigError, match=r"release r1 is gone from disk: /srv/v1; deploy it again"):
        choose_rollback("r1", R2, done(R1, R2), ["/srv/v2"])


def test_a_named_one_that_serves() -> None:
    with pytest.raises(ConfigError, match="release r2 is the one that serves"):
        choose_rollback("r2", R2, done(R1, R2), ALL)


def test_a_named_one_whose_code_was_overwritten() -> None:
    history = done(release(1, "shop"), release(2, "shop"))
    with pytest.raises(
        ConfigError, match=r"release r1 lay in /srv/shop, as r2 does, so its code is no longer there"
    ):
        choose_rollback("r1", release(2, "shop"), history, ["/srv/shop"])


# -- a person's rollback ----------------------------------------------------------------------


def test_a_second_rollback_goes_further_back_and_not_forward_again() -> None:
    history = [*done(R1, R2, R3), Outcome(R2, "done", left="r3")]
    assert choose_rollback(None, R2, history, ALL) == R1
    assert choose_rollback("r3", R2, history, ALL) == R3, "by name it may be had again"


def test_a_directory_that_a_person_went_back_from_is_not_started_at_the_next_boot() -> None:
    history = [*done(R1, R2), Outcome(R1, "done", left="r2")]
    assert was_rolled_back("/srv/v2", history) and not was_rolled_back("/srv/v1", history)
    again = [*history, Outcome(R2._replace(id="r4"), "done")]
    assert not was_rolled_back("/srv/v2", again), "it was deployed again since, and went well"
    assert good_ones(again)[0].id == "r4"


def test_going_back_inside_one_directory_keeps_it_good() -> None:
    again = R1._replace(id="r2")
    history = [*done(R1, again), Outcome(R1, "done", left="r2")]
    assert good_ones(history) == [R1]


# -- a cold start -------------------------------------------------------------------------------


def test_a_cold_start_tries_what_is_configured_and_then_the_newest_good_one() -> None:
    new = release(4, "v4")
    assert cold_start_order(new, [R3, R2], done(R2, R3)) == [new, R3, R2]
    assert cold_start_order(R3._replace(id="r4"), [R3, R2], done(R2, R3)) == [R3._replace(id="r4"), R2]


def test_a_cold_start_skips_what_was_rolled_back_if_there_is_another() -> None:
    bad = [*done(R1), Outcome(R2, "rolled_back")]
    assert cold_start_order(R2._replace(id="r3"), [R1], bad) == [R1]
    again = R2._replace(id="r3")
    assert cold_start_order(again, [], [Outcome(R2, "rolled_back")]) == [again], (
        "better than nothing, and gated"
    )


def test_a_cold_start_without_the_configured_directory_serves_what_was_good() -> None:
    assert cold_start_order(None, [R2, R1], done(R1, R2)) == [R2, R1]
