"""Settings as a person reads them: every key, its value in TOML, where it came from."""

from __future__ import annotations

import json
from typing import Any

from quiesce.supervisor.config import Listen, Loaded, value_of
from quiesce.supervisor.config_keys import KEYS, Key, Kind
from quiesce.supervisor.config_text import format_duration, format_size


def rows(loaded: Loaded) -> list[tuple[str, str, str]]:
    """(key, value as TOML, origin), in the order of design.md."""
    found = []
    for key in KEYS:
        found.append((key.name, toml(key, value_of(loaded.settings, key)), loaded.origins[key.name]))
        if key.name == "service.env":  # the last of [service]; [[listen]] comes next
            found += _listeners(loaded)
    return found


def _listeners(loaded: Loaded) -> list[tuple[str, str, str]]:
    return [
        (name := f"listen[{index}].{leaf}", _text(getattr(item, leaf)), loaded.origins[name])
        for index, item in enumerate(loaded.settings.listen)
        for leaf in Listen.__struct_fields__
    ]


def document(loaded: Loaded) -> dict[str, Any]:
    """The same for ``--json``: values as the supervisor has them (seconds, bytes)."""
    values: dict[str, Any] = {key.name: value_of(loaded.settings, key) for key in KEYS}
    for index, item in enumerate(loaded.settings.listen):
        values.update({f"listen[{index}].{leaf}": getattr(item, leaf) for leaf in Listen.__struct_fields__})
    settings = {
        name: {"value": values[name], "text": text, "origin": origin} for name, text, origin in rows(loaded)
    }
    return {"config_file": loaded.file, "settings": settings}


def toml(key: Key, value: Any) -> str:
    """A value as it could stand in quiesce.toml."""
    if key.kind is Kind.DURATION:
        return _text(format_duration(value))
    if key.kind is Kind.SIZE:
        return str(value) if value < 1024 else _text(format_size(value))
    if key.kind is Kind.OCTAL:
        return _text(f"{value:03o}")
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_name(name)} = {_text(item)}" for name, item in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return _text(value)


def _name(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    return name if plain.isascii() and plain.isalnum() else _text(name)


def _text(value: Any) -> str:
    # A JSON string is a TOML basic string, and so are true, false and numbers.
    return json.dumps(value, ensure_ascii=False)
