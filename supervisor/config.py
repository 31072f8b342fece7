"""The settings of one instance: quiesce.toml and options, decoded and checked.

Paths are absolute when they come out of here (``service.app_dir`` and
``service.python`` excepted: they are relative to the release).  Durations are seconds,
sizes are bytes.  Whether users and groups exist is for those who use them to ask.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from quiesce.shared.addresses import UNIX, Address, parse_address
from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config_check import check_listeners, check_values
from quiesce.supervisor.config_keys import (
    BY_NAME,
    DEFAULT_ADDRESS,
    DEFAULT_BACKLOG,
    DEFAULT_NAME,
    KEYS,
    WORKERS_AUTO,
    Key,
    Kind,
)
from quiesce.supervisor.config_source import (
    DEFAULT,
    Entries,
    Value,
    check_instance_name,
    complaint,
    entries_of_options,
    find_file,
    merge,
    read_file,
)
from quiesce.supervisor.config_text import describe, nearest, parse_duration, parse_octal, parse_size
from quiesce.supervisor.cpus import usable_cpus


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[service]: what runs, as whom, how often."""

    name: str
    app: str
    interface: Literal["auto", "wsgi", "asgi", "native"]
    release: str  # absolute, symlinks not resolved
    app_dir: str  # relative to the release
    python: str  # relative to the release; "" is the default rule of design.md
    workers: int
    threads: int
    user: str  # "" = stay who we are
    group: str
    umask: int
    control_group: str
    env_files: tuple[str, ...]
    env: dict[str, str]


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [[listen]]."""

    name: str
    address: str  # canonical: parse_address() reads it
    mode: str = ""  # unix sockets; octal; "" = the umask decides
    owner: str = ""
    group: str = ""
    backlog: int = DEFAULT_BACKLOG

    def parsed(self) -> Address:
        return parse_address(self.address)


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[rollout]: how one release follows another."""

    health_path: str
    health_host: str
    health_headers: dict[str, str]
    health_passes: int
    warmup: tuple[str, ...]
    start_timeout: float
    bake: float
    drain_timeout: float
    drain_delay: float
    ready_path: str
    max_error_rate: float
    max_generations: int
    history: int


class Worker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[worker]: when one is replaced."""

    max_requests: int
    max_age: float
    max_rss: int
    stall_timeout: float
    request_timeout: float
    exit_timeout: float


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[limits]: what a client may ask of a worker."""

    header_bytes: int
    body_bytes: int
    connections: int
    connections_per_ip: int
    header_timeout: float
    body_timeout: float
    body_min_rate: int
    send_timeout: float
    idle_timeout: float


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["text", "json"]
    file: str  # "" = standard error
    access: bool


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a supervisor is told before it starts."""

    service: Service
    listen: tuple[Listen, ...]
    rollout: Rollout
    worker: Worker
    limits: Limits
    log: Log


@dataclass(frozen=True)
class Loaded:
    """Settings, where each came from, and what is needed to read them again."""

    settings: Settings
    origins: Mapping[
        str, str
    ]  # by key: "default", "option --bake" or the file; listeners: "listen[0].address"
    file: str | None  # absolute
    options: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    config: str | None = None
    cwd: str = "/"

    def reload(self, options: Mapping[str, object] | None = None) -> Loaded:
        """Read the file again, with the same options and these on top.

        Raises:
            ConfigError: As for :func:`load_settings`; what runs is not touched by it.
        """
        return load_settings({**self.options, **(options or {})}, self.name, self.config, self.cwd)


@dataclass(frozen=True)
class Unreadable:
    """A configuration that cannot be read, and what is needed to try again: a service that runs already goes on."""

    why: ConfigError
    options: Mapping[str, object]
    name: str | None
    config: str | None
    cwd: str


def load_settings(
    options: Mapping[str, object],
    name: str | None,
    config: str | None,
    cwd: str,
    *,
    etc: str = "/etc/quiesce",
) -> Loaded:
    """Find, read, merge, decode and check.

    Args:
        options: See ``config_source.entries_of_options``.
        name: ``--name``, which wins over ``service.name``.
        config: ``--config``.
        cwd: Absolute; what relative options are relative to.
        etc: Where ``NAME.toml`` is looked for when there is no ``./quiesce.toml``.

    Raises:
        ConfigError: The first thing that is wrong, with its file, key and cure.
    """
    if name is not None:
        check_instance_name(name, "option --name")
    place = find_file(config, name or DEFAULT_NAME, cwd, etc)
    from_file = read_file(*place) if place else {}
    entries = merge(from_file, entries_of_options(options, cwd))
    if name is not None:
        entries["service.name"] = Value(name, "option --name", cwd)
    _require_app(entries, place[1] if place else None, name or DEFAULT_NAME, etc)
    base = cwd if place is None or place[0].startswith(etc + "/") else os.path.dirname(place[0])
    settings, origins = _decode(entries, base)
    return Loaded(settings, origins, place[0] if place else None, dict(options), name, config, cwd)


def _require_app(entries: Entries, shown: str | None, name: str, etc: str) -> None:
    if entries.get("service.app", Value("", "", "")).value != "":
        return
    if shown:
        raise ConfigError(
            f'{shown}: "service.app" is missing; write app = "module:attribute" under [service]'
        )
    raise ConfigError(
        "no application given: write it behind the command, as in `quiesce run shop.wsgi:application`, "
        f"or in ./quiesce.toml or {etc}/{name}.toml"
    )


def _decode(entries: Entries, base: str) -> tuple[Settings, dict[str, str]]:
    tree: dict[str, object] = {}
    origins: dict[str, str] = {}
    for key in KEYS:
        entry = entries.get(key.name, Value(key.default, DEFAULT, base))
        section = tree.setdefault(key.section, {})
        assert isinstance(section, dict)
        section[key.leaf] = _read_value(key, entry)
        origins[key.name] = entry.origin
    listen = entries.get("listen", Value([{"address": DEFAULT_ADDRESS}], DEFAULT, base))
    tree["listen"] = _read_listeners(listen, origins)
    settings = _convert(tree, origins)
    _refuse_later(settings, origins)
    check_values(settings, origins)
    check_listeners(settings.listen, listen.origin)
    return settings, origins


def _read_value(key: Key, entry: Value) -> object:
    """Seconds, bytes, mode bits and absolute paths; everything else is left to msgspec."""
    value = entry.value
    if entry.origin == DEFAULT and not key.path:
        return usable_cpus() if key.name == "service.workers" and value == WORKERS_AUTO else value
    try:
        if key.kind is Kind.DURATION:
            return parse_duration(value)
        if key.kind is Kind.SIZE:
            return parse_size(value)
        if key.kind is Kind.OCTAL:
            return parse_octal(value)
    except ValueError as exc:
        raise complaint(key.name, entry.origin, str(exc)) from exc
    if key.path:
        if key.kind is Kind.LIST:
            return (
                [_absolute(item, entry.base) for item in value] if isinstance(value, (list, tuple)) else value
            )
        return _absolute(value, entry.base)
    return value


def _absolute(value: object, base: str) -> object:
    if not isinstance(value, str) or value == "":
        return value
    if value in (".", "./"):
        return base
    # Not normpath(): `current/../x` means another directory when `current` is a symlink.
    return os.path.join(base, value.removeprefix("./"))


def _read_listeners(entry: Value, origins: dict[str, str]) -> list[dict[str, object]]:
    listeners: list[dict[str, object]] = []
    assert isinstance(entry.value, list)
    for index, table in enumerate(entry.value):
        listener = _read_listener(dict(table), entry)
        listener.setdefault("name", "http" if index == 0 else f"http{index + 1}")
        listeners.append(listener)
        for leaf in Listen.__struct_fields__:
            origins[f"listen[{index}].{leaf}"] = entry.origin if leaf in table else DEFAULT
    return listeners


def _read_listener(table: dict[str, object], entry: Value) -> dict[str, object]:
    text = table.get("address")
    if not isinstance(text, str):
        wanted = "wants an address" if "address" not in table else f"wants an address, not {describe(text)}"
        raise complaint("listen.address", entry.origin, f'{wanted}; write address = "127.0.0.1:8000"')
    try:
        address = parse_address(text)
        if address.kind == UNIX and not address.abstract and not address.path.startswith("/"):
            address = parse_address(f"unix:{_absolute(address.path, entry.base)}")
        if "mode" in table:
            table["mode"] = f"{parse_octal(table['mode']):04o}"
    except ConfigError as exc:
        raise ConfigError(f"{_prefix(entry.origin)}{exc}") from exc
    except ValueError as exc:
        raise complaint("listen.mode", entry.origin, str(exc)) from exc
    if address.kind == "fd":
        table.setdefault("name", address.name)
    table["address"] = address.text
    return table


def _prefix(origin: str) -> str:
    return "" if origin == DEFAULT or origin.startswith("option ") else f"{origin}: "


_PATH = re.compile(r" - at `(?:key in )?\$\.(\w+)(?:\[\d+\])?(?:\.(\w+))?")


def _convert(tree: dict[str, object], origins: Mapping[str, str]) -> Settings:
    try:
        return msgspec.convert(tree, Settings, strict=True)
    except msgspec.ValidationError as exc:
        raise _translate(str(exc), tree, origins) from exc
    except UnicodeEncodeError as exc:  # where a word out of a list is wanted
        raise ConfigError(f"{exc.object!a} is not valid text") from exc


def _translate(text: str, tree: Mapping[str, object], origins: Mapping[str, str]) -> ConfigError:
    """msgspec's words ("Expected `int`, got `str` - at `$.service.workers`") in ours."""
    match = _PATH.search(text)
    section, leaf = match.groups() if match else ("", "")
    key = BY_NAME.get(f"{section}.{leaf}")
    if key is None:  # a listener's key: name, owner and group are texts, backlog is a number
        wanted = "a whole number" if leaf == "backlog" else "text in quotes"
        return complaint(f"{section}.{leaf}", origins["listen[0].address"], f"wants {wanted} ({text})")
    table = tree[section]
    assert isinstance(table, dict)
    value = table[leaf]
    if key.choices and isinstance(value, str):
        guess = nearest(value, key.choices)
        hint = f'; did you mean "{guess}"?' if guess else ""
        return complaint(
            key.name, origins[key.name], f"wants one of {', '.join(key.choices)}, not {describe(value)}{hint}"
        )
    wrong = value
    if isinstance(value, (list, tuple)) and key.kind is Kind.LIST:
        wrong = next((item for item in value if not isinstance(item, str)), value)
    elif isinstance(value, dict) and key.kind is Kind.TABLE:
        name, wrong = next(((k, v) for k, v in value.items() if not isinstance(v, str)), ("", value))
        return complaint(
            f"{key.name}.{name}", origins[key.name], f"wants text in quotes, not {describe(wrong)}"
        )
    return complaint(key.name, origins[key.name], f"wants {key.kind.value}, not {describe(wrong)}")


def _refuse_later(settings: Settings, origins: Mapping[str, str]) -> None:
    for key in KEYS:
        if key.later and value_of(settings, key) != key.default:
            text = f"comes with a later version of quiesce ({key.later}); leave it out"
            raise complaint(key.name, origins[key.name], text)


def value_of(settings: Settings, key: Key) -> object:
    """The value of one key of the table."""
    value: object = getattr(getattr(settings, key.section), key.leaf)
    return value
