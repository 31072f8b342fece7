"""Writes docs/api.md from the docstrings of what ``quiesce`` exports.

./dev sh python docs/make_api.py
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import quiesce

PAGE = Path(__file__).with_name("api.md")
ORDER = [
    "Daemon", "Response", "Request", "Connection", "Stage", "Kind", "Termination", "Mode", "Poller", "Options",
    "Limits", "set_panic_handler", "QuiesceError", "NotListening", "NotNow", "WrongMode",
]  # fmt: skip


def page() -> str:
    """The whole text."""
    lines = ["# The library", "", "Made from docstrings by docs/make_api.py; do not edit.", ""]
    for name in ORDER:
        lines += [*_entry(name, getattr(quiesce, name)), ""]
    return "\n".join(lines)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield from _docstring(thing)
    if not inspect.isclass(thing):
        yield from _code(f"{name}{_signature(thing)}")
    elif issubclass(thing, enum.Enum):
        for member in thing:
            yield f"- `{member.name}` = {member.value!r}"
    elif hasattr(thing, "_field_defaults"):
        for field, default in thing._field_defaults.items():
            yield f"- `{field}` = {default!r}"
    else:
        if not issubclass(thing, BaseException):
            yield from _code(f"{name}{_signature(thing)}")
        for method, what in _methods(thing):
            yield f"**`{method}`**"
            yield ""
            yield from _docstring(what)


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    for owner in (cls, *cls.__mro__[1:-1]):
        if not owner.__module__.startswith("quiesce."):
            continue
        for name, value in vars(owner).items():
            what = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if name.startswith("_") or not getattr(what, "__doc__", None):
                continue
            if isinstance(what, property):
                yield name, what
            elif inspect.isfunction(what):
                yield f"{name}{_signature(what)}", what


def _signature(thing: Any) -> str:
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return ""
    kept = [p.replace(annotation=p.empty) for p in parameters if p.name != "self" and p.name != "cls"]
    # Defaults that are functions or tables say nothing to a reader, and have addresses in them.
    dull = {p.name for p in kept if " at 0x" in repr(p.default)} | {"limits", "backlog"}
    shown = [p.replace(default=...) if p.name in dull and p.default is not p.empty else p for p in kept]
    return str(inspect.Signature(shown)).replace("Ellipsis", "…")


def _code(text: str) -> Iterator[str]:
    yield "```text"
    yield text
    yield "```"
    yield ""


def _docstring(thing: Any) -> Iterator[str]:
    text = inspect.getdoc(thing)
    if text:
        yield re.sub(r":\w+:`~?([^`<]+)(?: <[^`]*)?`", r"`\1`", text.replace("``", "`"))
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
