"""Settings as JSON for a successor, without the value of any environment variable.

A successor usually reads the configuration itself; these are for what is *in force*, which is not what
the file says by now, and for the day when the file is broken while the supervisor dies.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from quiesce.supervisor.config import Listen, Settings
from quiesce.supervisor.config_keys import KEYS

_SECTIONS = {field.name: field.type for field in msgspec.structs.fields(Settings) if field.name != "listen"}


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Plain dicts, lists, texts and numbers for ``json.dumps``; of ``service.env`` the names alone."""
    data: dict[str, Any] = msgspec.to_builtins(settings)
    data["service"]["env"] = sorted(settings.service.env)
    return data


def settings_from_json(data: Mapping[str, Any], env: Mapping[str, str]) -> Settings:
    """What :func:`settings_to_json` has written, in this version or another one.

    Unknown keys are dropped; a missing one, or one whose value means nothing any more, gets its default.

    Args:
        env: Where the values of ``service.env`` come from: the configuration as it can be read now, else
            empty.  Names that it lacks are left out; see :func:`missing_env`.
    """
    sections = {name: _section(name, _table(data.get(name)), env) for name in _SECTIONS}
    listen = data.get("listen")
    found = [_listen(item) for item in listen] if isinstance(listen, (list, tuple)) else []
    return Settings(**sections, listen=tuple(item for item in found if item is not None))


def missing_env(data: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    """Names of ``service.env`` that were set, and of which ``env`` does not know the value."""
    return [name for name in _names(_table(data.get("service")).get("env")) if name not in env]


def _section(section: str, stored: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    struct = _SECTIONS[section]
    types = {field.name: field.type for field in msgspec.structs.fields(struct)}
    values: dict[str, Any] = {}
    for key in KEYS:
        if key.section != section:
            continue
        value = stored.get(key.leaf, key.default)
        if key.name == "service.env":
            value = {name: env[name] for name in _names(value) if name in env}
        try:
            values[key.leaf] = msgspec.convert(value, types[key.leaf])
        except ValueError:  # or a lone surrogate, where a word out of a list is wanted
            values[key.leaf] = msgspec.convert(key.default, types[key.leaf])
    return struct(**values)


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listen(item: object) -> Listen | None:
    table = _table(item)
    try:
        return msgspec.convert(
            {name: table[name] for name in Listen.__struct_fields__ if name in table}, Listen
        )
    except ValueError:
        return None
