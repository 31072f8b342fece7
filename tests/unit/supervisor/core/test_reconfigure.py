"""Every key knows when it comes into force, and that is the truth about who uses it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config import Listen, Settings, load_settings, value_of
from quiesce.supervisor.config_keys import KEYS, Change, Key, Kind
from quiesce.supervisor.core.reconfigure import (
    ListenChange,
    Verdict,
    compare,
    document,
    in_words,
    listener_sentences,
    plan_listeners,
    sentences,
)
from quiesce.supervisor.recipes import recipe
from quiesce.supervisor.release_dir import resolve

OTHER: dict[Kind, Callable[[Any], Any]] = {
    Kind.TEXT: lambda value: f"{value}x",
    Kind.INTEGER: lambda value: value + 1,
    Kind.NUMBER: lambda value: value + 0.125,
    Kind.BOOLEAN: lambda value: not value,
    Kind.DURATION: lambda value: value + 1.0,
    Kind.SIZE: lambda value: value + 1,
    Kind.OCTAL: lambda value: value ^ 0o20,
    Kind.LIST: lambda value: (*value, "/x"),
    Kind.TABLE: lambda value: {**value, "X": "1"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of an instance whose changed paths exist."""
    for folder in ("", "x"):
        for app_dir in (".", ".x"):
            (tmp_path / f"release{folder}" / app_dir / "bin").mkdir(parents=True, exist_ok=True)
        for python in ("python", "pythonx"):
            (tmp_path / f"release{folder}/bin" / python).symlink_to("/bin/sh")
    (tmp_path / "a.env").write_text("A=1\n")
    options = {"app": "shop:app", "release": "release", "python": "bin/python", "health_path": "/healthz"}
    return load_settings(options, None, None, str(tmp_path)).settings


def changed(settings: Settings, key: Key, tmp_path: Path) -> Settings:
    value = value_of(settings, key)
    other = OTHER[key.kind](value)
    if key.choices:
        other = next(choice for choice in key.choices if choice != value)
    special = {
        "service.env_files": (f"{tmp_path}/a.env",),
        "service.user": "65534" if os.geteuid() == 0 else "0",
        "service.group": "65534" if os.geteuid() == 0 else "0",
    }
    other = special.get(key.name, other)
    section = msgspec.structs.replace(getattr(settings, key.section), **{key.leaf: other})
    return msgspec.structs.replace(settings, **{key.section: section})


def made(settings: Settings) -> Any:
    """How its workers are made; a refusal is an answer that differs from every other one as well."""
    try:
        release = resolve(settings, "r1", None)
        how = recipe(settings, release)
    except ConfigError as exc:
        return str(exc)
    return release, [getattr(how, name) for name in how._fields if name != "settings"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_what_workers_are_made_with_takes_a_rollout_and_nothing_else_does(
    key: Key, settings: Settings, tmp_path: Path
) -> None:
    before, other = made(settings), changed(settings, key, tmp_path)
    assert not isinstance(before, str), before
    assert value_of(other, key) != value_of(settings, key)
    if key.change is Change.ROLLOUT:
        assert made(other) != before, "nobody who makes workers uses it: is it LIVE?"
    elif key.change is Change.LIVE:
        assert made(other) == before, "workers are made with it: it takes a rollout"
    assert sum(map(len, compare(settings, other))) == 1


def test_sentences_name_what_is_live_what_takes_an_upgrade_and_what_a_restart() -> None:
    assert sentences(Verdict()) == []
    assert sentences(Verdict(("rollout.bake", "log.file"), ("service.threads",), ("service.name",))) == [
        "live now: rollout.bake, log.file",
        "takes effect with the next `quiesce upgrade`: service.threads",
        "needs a restart (`quiesce stop`, then start it again): service.name",
    ]


def test_sentences_about_listeners() -> None:
    a, b = Listen("a", "127.0.0.1:80"), Listen("b", "unix:/b", mode="0600")
    fd = Listen("f", "fd://web")
    plan: ListenChange[Listen] = plan_listeners([a, fd], [Listen("a", "127.0.0.1:80", backlog=5), b])
    assert listener_sentences(plan) == [
        "listens on unix:/b",
        "no longer listens on fd://web",
        "fd://web stays the service manager's: clients wait in its queue until the socket unit is stopped or the "
        "service takes it again",
        "127.0.0.1:80 has another backlog",
    ]
    assert listener_sentences(plan_listeners([a], [a])) == []
    renamed: ListenChange[Listen] = plan_listeners([b], [Listen("c", "unix:/b", mode="0660", owner="x")])
    assert listener_sentences(renamed) == ["unix:/b has another name and mode and owner"]
    refused: ListenChange[Listen] = plan_listeners([a], [a, fd])
    assert refused.refuse == (
        "fd://web: the service manager passes sockets at a start only; restart the service to take a new one",
    )


def test_the_answer_to_reconfigure_as_data_and_in_words() -> None:
    a, b = Listen("a", "127.0.0.1:80"), Listen("b", "unix:/b")
    plan: ListenChange[Listen] = plan_listeners([a, b], [Listen("c", "unix:/b"), Listen("d", "[::1]:80")])
    verdict = Verdict(("rollout.bake",), ("service.user",), ())
    assert document(verdict, plan, ["oh"]) == {
        "live": ["rollout.bake"],
        "rollout": ["service.user"],
        "restart": [],
        "listeners": {"added": ["[::1]:80"], "removed": ["127.0.0.1:80"], "changed": ["unix:/b"]},
        "problems": ["oh"],
    }
    assert in_words(verdict, plan, ["oh"]) == (
        "listens on [::1]:80; no longer listens on 127.0.0.1:80; unix:/b has another name; live now: rollout.bake; "
        "takes effect with the next `quiesce upgrade`: service.user; oh"
    )
    assert in_words(Verdict(), plan_listeners([a], [a])) == "nothing has changed"
