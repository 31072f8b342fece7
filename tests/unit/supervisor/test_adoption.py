"""What lies in the descriptor store, sorted by name: whose it is, and whether anybody can go on from it."""

import os

from quiesce.shared.errors import ConfigError
from quiesce.supervisor import fdnames
from quiesce.supervisor.adoption import MOST_ATTEMPTS, Inheritance, settings_in_force
from quiesce.supervisor.config import Unreadable, load_settings
from quiesce.supervisor.core.snapshot import Snapshot, decode, encode
from quiesce.supervisor.settings_state import settings_to_json
from quiesce.supervisor.state_store import StateStore

KEY = "0123456789abcdef"


def a_state(snapshot: Snapshot) -> int:
    """The descriptor of a state that another supervisor has left; the caller owns it."""
    store = StateStore.create()
    store.write(encode(snapshot))
    return store.fd


def a_descriptor() -> int:
    return os.memfd_create("something")


def test_names_decide_and_not_the_order() -> None:
    passed = [
        (fdnames.channel(KEY), a_descriptor()),
        ("http", a_descriptor()),
        (fdnames.STATE, a_state(Snapshot("shop"))),
        ("http", a_descriptor()),
        (fdnames.LOCK, a_descriptor()),
    ]
    legacy = Inheritance(passed)
    assert [name for name, _ in legacy.sockets] == ["http", "http"]
    assert legacy.goes_on and legacy.snapshot is not None and legacy.snapshot.name == "shop"
    assert legacy.take(fdnames.LOCK) == passed[4][1] and legacy.take(fdnames.LOCK) is None
    assert set(legacy.rest()) == {fdnames.channel(KEY)}
    for _, fd in passed:
        os.close(fd)


def test_the_same_name_twice_is_one_descriptor() -> None:
    fd = a_descriptor()
    legacy = Inheritance([(fdnames.LOCK, fd), (fdnames.LOCK, os.dup(fd))])
    assert legacy.take(fdnames.LOCK) == fd
    os.close(fd)


def test_a_first_start_finds_nothing() -> None:
    legacy = Inheritance([])
    assert not legacy.goes_on and not legacy.problem and legacy.memory is None


def test_who_stopped_by_itself_left_no_service() -> None:
    legacy = Inheritance([(fdnames.STATE, a_state(Snapshot("shop", stopped=True)))])
    assert not legacy.goes_on and not legacy.problem
    assert legacy.memory is not None
    legacy.memory.close()


def test_a_state_that_supervisors_fail_over_is_given_up() -> None:
    """And counted before anything is done with it, or the next one would fail over it just the same."""
    fd = a_state(Snapshot("shop"))
    for turn in range(1, MOST_ATTEMPTS + 1):
        legacy = Inheritance([(fdnames.STATE, os.dup(fd))])
        assert legacy.goes_on
        assert legacy.memory is not None
        legacy.memory.close()
        store, payload = StateStore.adopt(os.dup(fd))
        assert payload is not None and decode(payload).attempts == turn
        store.close()
    legacy = Inheritance([(fdnames.STATE, fd)])
    assert not legacy.goes_on and "starts anew" in legacy.problem
    assert legacy.memory is not None
    legacy.memory.close()


def test_workers_without_a_state_are_a_problem_and_nothing_without_a_state_is_none() -> None:
    torn = StateStore.create()
    legacy = Inheritance([(fdnames.STATE, torn.fd), (fdnames.pidfd(KEY), a_descriptor())])
    assert not legacy.goes_on and "cannot be read" in legacy.problem
    legacy.close()
    torn.close()
    empty = StateStore.create()
    assert not Inheritance([(fdnames.STATE, empty.fd)]).problem
    empty.close()


def test_the_configuration_in_force_is_not_what_the_file_says_by_now() -> None:
    old = load_settings(
        {"service.app": "shop", "rollout.bake": "7s", "service.env": ["A=secret"]}, None, None, "/"
    )
    new = load_settings(
        {"service.app": "other", "rollout.bake": "9s", "service.env": ["A=fresh"]}, None, None, "/"
    )
    snapshot = Snapshot("default", settings=[settings_to_json(old.settings)])
    assert b"secret" not in encode(snapshot)
    in_force = settings_in_force(snapshot, new)
    assert (in_force.settings.service.app, in_force.settings.rollout.bake) == ("shop", 7.0)
    assert in_force.settings.service.env == {"A": "fresh"}
    broken = Unreadable(
        ConfigError("the file is broken"), {"service.app": "shop"}, None, "/etc/shop.toml", "/"
    )
    without = settings_in_force(snapshot, broken)
    assert without.config == "/etc/shop.toml", "the next upgrade reads the right file again"
    assert without.settings.rollout.bake == 7.0 and without.settings.service.env == {}


def test_names_that_are_no_utf8_survive() -> None:
    name = os.fsdecode(b"/srv/caf\xe9")
    assert decode(encode(Snapshot("x", cwd=name))).cwd == name
