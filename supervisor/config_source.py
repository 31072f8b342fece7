"""Gather what a user wrote, in quiesce.toml or as options, with where each value comes from.

Nothing is judged here but names: an unknown key, section or option is an error that
names the nearest one.  Values are judged in ``config``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config_keys import BY_NAME, KEYS, LISTEN_KEYS, SECTIONS, Key, Kind
from quiesce.supervisor.config_text import describe, nearest

DEFAULT = "default"
MAX_FILE_BYTES = 1 << 20
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Value(NamedTuple):
    """One value as written, where it was written, and what its relative paths are relative to."""

    value: object
    origin: str  # DEFAULT, "option --bake" or the file as the user knows it
    base: str


Entries = dict[str, Value]  # by dotted key; "listen" is one entry, the whole list


def complaint(key: str, origin: str, text: str) -> ConfigError:
    """An error that names file and key, or the option."""
    if origin.startswith("option "):
        return ConfigError(f"{origin.removeprefix('option ')} {text}")
    where = f"{origin}: " if origin != DEFAULT else ""
    return ConfigError(f'{where}"{key}" {text}')


def check_instance_name(name: object, origin: str) -> str:
    """Return the name, which becomes part of paths.

    Raises:
        ConfigError: It is not 1 to 64 of the characters that are safe there.
    """
    if not isinstance(name, str) or not _INSTANCE.fullmatch(name) or name in (".", ".."):
        wanted = "wants 1 to 64 letters, digits, dots, dashes or underscores, not"
        raise complaint("service.name", origin, f"{wanted} {describe(name)}")
    return name


def find_file(config: str | None, name: str, cwd: str, etc: str = "/etc/quiesce") -> tuple[str, str] | None:
    """Where the configuration lies: (absolute path, the name to show), or None.

    ``--config`` wins and must be there; then ``./quiesce.toml``, then ``/etc/quiesce/NAME.toml``.
    """
    if config is not None:
        return os.path.join(cwd, config), config
    here = os.path.join(cwd, "quiesce.toml")
    if os.path.lexists(here):
        return here, "quiesce.toml"
    there = os.path.join(etc, f"{name}.toml")
    return (there, there) if os.path.lexists(there) else None


def read_file(path: str, shown: str) -> Entries:
    """The entries of one file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has a key that does not exist.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"{shown}: larger than 1 MiB; this is no quiesce.toml")
        document = tomllib.loads(raw.decode())
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {shown}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{shown}: not UTF-8 text (byte {exc.start}); save it as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{shown}: not valid TOML: {exc}") from exc
    return entries_of(document, shown, os.path.dirname(path))


def entries_of(document: Mapping[str, object], shown: str, base: str) -> Entries:
    """Flatten a TOML document; unknown sections and keys are errors."""
    entries: Entries = {}
    for section, table in document.items():
        if section not in SECTIONS:
            raise _unknown(section, shown)
        if section == "listen":
            entries["listen"] = Value(_listen_tables(table, shown), shown, base)
            continue
        if not isinstance(table, dict):
            raise ConfigError(f"{shown}: [{section}] wants to be a table, not {describe(table)}")
        for leaf, value in table.items():
            if f"{section}.{leaf}" not in BY_NAME:
                raise _unknown(f"{section}.{leaf}", shown)
            entries[f"{section}.{leaf}"] = Value(value, shown, base)
    return entries


#: What people ask for that is not there yet.
LATER = {
    "rollout.canary": "canary rollouts come with a later version of quiesce; leave it out. Until then the whole new "
    'release serves in its "bake", and a failure there goes back at once',
    "tls": "TLS comes with a later version of quiesce; leave it out, and terminate TLS in front",
}


def _unknown(name: str, shown: str) -> ConfigError:
    if name in LATER:
        return ConfigError(f'{shown}: "{name}": {LATER[name]}')
    section, _, leaf = name.rpartition(".")
    return ConfigError(f'{shown}: unknown key "{name}"; {_suggestion(section, leaf)}')


def _suggestion(section: str, leaf: str) -> str:
    """The nearest key of its section, else the key or section that it may have been meant to be."""
    guess = nearest(leaf, [key.leaf for key in KEYS if key.section == section])
    if guess:
        return f'did you mean "{guess}"?'
    homes = {key.leaf: key for key in KEYS}
    home = homes.get(leaf)
    table = nearest(leaf, SECTIONS) if not section else None
    if home is None and table:
        return "did you mean [[listen]]?" if table == "listen" else f"did you mean [{table}]?"
    home = home or homes.get(nearest(leaf, homes) or "")
    if home is None:
        return "`quiesce check --show-config` lists every key"
    return f'did you mean "{home.leaf}" in [{home.section}]?'


def _listen_tables(tables: object, shown: str) -> list[dict[str, object]]:
    if isinstance(tables, dict):
        raise ConfigError(f"{shown}: write [[listen]] with double brackets; there may be several")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f'{shown}: "listen" wants [[listen]] tables, not {describe(tables)}')
    for table in tables:
        for key in table:
            if key not in LISTEN_KEYS:
                guess = nearest(key, LISTEN_KEYS)
                hint = f'did you mean "{guess}"?' if guess else f"a listener has {', '.join(LISTEN_KEYS)}"
                raise ConfigError(f'{shown}: unknown key "listen.{key}"; {hint}')
    return tables


def entries_of_options(options: Mapping[str, object], cwd: str) -> Entries:
    """What was given on the command line.

    Args:
        options: By dotted key ("rollout.bake") or by option name ("bake", "log_level",
            "bind"); values as typed, a list for what can be repeated.  None is "not given".

    Raises:
        ConfigError: There is no such option.
    """
    entries: Entries = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in ("bind", "listen"):
            addresses = value if isinstance(value, (list, tuple)) else [value]
            tables = [dict(item) if isinstance(item, Mapping) else {"address": item} for item in addresses]
            entries["listen"] = Value(tables, "option --bind", cwd)
            continue
        key = _option_key(name)
        entries[key.name] = Value(
            _typed(key, value), f"option {key.flag}" if key.leaf != "app" else "option APP", cwd
        )
    return entries


def _option_key(name: str) -> Key:
    if name in BY_NAME:
        return BY_NAME[name]
    flags = {key.flag: key for key in KEYS}
    flag = "--" + name.removeprefix("--").replace("_", "-")
    if flag in flags:
        return flags[flag]
    guess = nearest(flag, flags)
    raise ConfigError(f"unknown option {flag}" + (f"; did you mean {guess}?" if guess else ""))


def _typed(key: Key, value: object) -> object:
    """A command line's text as TOML would have had it; what cannot be read stays, to be quoted."""
    if key.kind is Kind.LIST and isinstance(value, str):
        return [value]
    if key.kind is Kind.TABLE and isinstance(value, (list, tuple, str)):
        return _pairs(key, [value] if isinstance(value, str) else value)
    if not isinstance(value, str):
        return value
    if key.kind is Kind.BOOLEAN:
        return {"true": True, "false": False}.get(value, value)
    try:
        if key.kind is Kind.INTEGER:
            return int(value)
        if key.kind is Kind.NUMBER:
            return float(value)
    except ValueError:
        pass
    return value


def _pairs(key: Key, texts: Iterable[object]) -> dict[str, str]:
    table: dict[str, str] = {}
    for text in texts:
        name, equals, value = str(text).partition("=")
        if not equals or not name:
            raise ConfigError(f"{key.flag} wants NAME=VALUE, not {describe(text)}")
        table[name.strip()] = value
    return table


def merge(file: Entries, options: Entries) -> Entries:
    """Options win over the file; a table's names (env, health_headers) win one by one."""
    merged = dict(file)
    for name, entry in options.items():
        below = file.get(name)
        if below is not None and isinstance(below.value, dict) and isinstance(entry.value, dict):
            entry = entry._replace(value={**below.value, **entry.value})
        merged[name] = entry
    return merged
