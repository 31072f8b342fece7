"""Reconfiguration: what is merged, what is stored, how listeners come from here to there."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.config import Limits as LimitsSection
from quiesce.supervisor.config import Listen, Log, Rollout, Service, Settings, Worker, value_of
from quiesce.supervisor.config_keys import KEYS, Change, Key, Kind
from quiesce.supervisor.core.reconfigure import ListenChange, Verdict, compare, merge, plan_listeners
from quiesce.supervisor.settings_state import missing_env, settings_from_json, settings_to_json

TEXT = st.text(max_size=8) | st.sampled_from(["", "\udc80", "ä", "\n"])
VALUES: dict[Kind, Any] = {
    Kind.TEXT: TEXT,
    Kind.INTEGER: st.integers(0, 2**53),
    Kind.NUMBER: st.floats(0, 1),
    Kind.BOOLEAN: st.booleans(),
    Kind.DURATION: st.floats(0, 1e9),
    Kind.SIZE: st.integers(0, 2**53),
    Kind.OCTAL: st.integers(0, 0o777),
    Kind.LIST: st.lists(TEXT, max_size=3).map(tuple),
    Kind.TABLE: st.dictionaries(TEXT, TEXT, max_size=3),
}
SECTIONS: dict[str, Any] = {
    "service": Service,
    "rollout": Rollout,
    "worker": Worker,
    "limits": LimitsSection,
    "log": Log,
}

ADDRESSES = ["127.0.0.1:0", "127.0.0.1:80", "[::1]:80", "unix:/x", "unix:/y", "fd://a", "fd://b"]


def value(key: Key) -> Any:
    return st.sampled_from(key.choices) if key.choices else VALUES[key.kind]


@st.composite
def listens(draw: st.DrawFn) -> tuple[Listen, ...]:
    """Names are unique, and addresses but for port 0: what `config_check` lets through."""
    names = draw(st.lists(st.sampled_from("abcdef"), max_size=5, unique=True))
    left = [*ADDRESSES, *ADDRESSES[:1]]
    found = []
    for name in names:
        address = left.pop(draw(st.integers(0, len(left) - 1)))
        found.append(Listen(name, address, backlog=draw(st.sampled_from([64, 128]))))
    return tuple(found)


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    sections = {
        name: struct(**{key.leaf: draw(value(key)) for key in KEYS if key.section == name})
        for name, struct in SECTIONS.items()
    }
    return Settings(**sections, listen=draw(listens()))


@given(settings())
def test_settings_survive_json_and_no_value_of_the_environment_is_in_it(one: Settings) -> None:
    marked = {name: f"secret-{name}" for name in one.service.env}
    one = _replace(one, "service", env=marked)
    text = json.dumps(settings_to_json(one))
    assert "secret-" not in text
    stored = json.loads(text)
    assert settings_from_json(stored, marked) == one
    assert settings_from_json(stored, {}) == _replace(one, "service", env={})
    assert missing_env(stored, {}) == sorted(marked) and missing_env(stored, marked) == []


@given(settings(), st.sampled_from(KEYS), st.sampled_from(["gone", "wrong"]))
def test_a_key_that_is_missing_or_means_nothing_gets_its_default(one: Settings, key: Key, how: str) -> None:
    stored = json.loads(json.dumps(settings_to_json(one)))
    if how == "gone":
        del stored[key.section][key.leaf]
    else:
        stored[key.section][key.leaf] = {"no": ["such", {"value": 1}]}
    stored[key.section]["of a newer version"] = 1
    stored["newer"] = {"x": 1}
    again = settings_from_json(stored, one.service.env)
    assert again == _replace(one, key.section, **{key.leaf: key.default})


@given(
    st.recursive(
        st.none() | st.integers() | TEXT, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x)
    )
)
def test_whatever_was_stored_gives_settings(junk: object) -> None:
    data = {"service": junk, "rollout": junk, "listen": junk, "log": {"level": junk}}
    assert isinstance(settings_from_json(data, {}), Settings)
    assert isinstance(missing_env(data, {}), list)


def _replace(one: Settings, section: str, **values: Any) -> Settings:
    import msgspec

    return msgspec.structs.replace(one, **{section: msgspec.structs.replace(getattr(one, section), **values)})


@given(settings(), settings())
def test_after_a_merge_only_what_takes_more_than_a_merge_still_differs(old: Settings, new: Settings) -> None:
    before, in_force = compare(old, new), merge(old, new)
    assert compare(in_force, new) == Verdict((), before.rollout, before.restart)
    assert compare(old, in_force) == Verdict(before.live, (), ())
    assert in_force.listen == new.listen
    assert merge(in_force, new) == in_force


@given(settings(), settings())
def test_a_key_is_in_the_verdict_if_and_only_if_it_differs(old: Settings, new: Settings) -> None:
    verdict = compare(old, new)
    for key in KEYS:
        where = {Change.LIVE: verdict.live, Change.ROLLOUT: verdict.rollout, Change.RESTART: verdict.restart}
        assert (key.name in where[key.change]) == (value_of(old, key) != value_of(new, key))
    assert compare(new, new) == Verdict() and not compare(new, new).changed


# Listeners


@given(listens(), listens())
def test_a_plan_leads_to_exactly_what_is_wanted(have: tuple[Listen, ...], wanted: tuple[Listen, ...]) -> None:
    plan: ListenChange[Listen] = plan_listeners(have, wanted, {"a"})
    after = [*plan.keep, *plan.add, *(move.new for move in plan.move)]
    assert sorted(after, key=str) == sorted(wanted, key=str)
    gone = [*plan.keep, *plan.remove, *(move.old for move in plan.move)]
    assert sorted(gone, key=str) == sorted(have, key=str)
    assert plan.changed == (set(have) != set(wanted))
    assert set(plan.keep) == set(have) & set(wanted)


@given(listens(), listens())
def test_a_socket_is_never_closed_and_bound_again(
    have: tuple[Listen, ...], wanted: tuple[Listen, ...]
) -> None:
    plan: ListenChange[Listen] = plan_listeners(have, wanted, ())
    removed = {item.address for item in plan.remove}
    assert not removed & {item.address for item in plan.add}
    assert all(move.old.address == move.new.address for move in plan.move)


@given(listens(), listens())
def test_only_sockets_that_nobody_passed_are_refused(
    have: tuple[Listen, ...], wanted: tuple[Listen, ...]
) -> None:
    plan: ListenChange[Listen] = plan_listeners(have, wanted, {"a"})
    new = [item.address for item in plan.add]
    assert len(plan.refuse) == new.count("fd://b")
    assert plan_listeners(have, wanted, {"a", "b"}).refuse == ()
