"""Durations, sizes, modes and misspelt names, as people write them in a configuration.  Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
MAX_DURATION_S = 3650 * 86400.0  # ten years: beyond it somebody forgot a unit

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)?", re.ASCII)
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MAX_SIZE_BYTES = 2**53  # exact in a JSON number


def parse_duration(value: object) -> float:
    """Seconds from ``"30s"``, ``"500ms"``, ``"1h30m"``, or a bare number of seconds.

    Raises:
        ValueError: What is wanted, with an example; the caller names the key.
    """
    if (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value.strip())
    ):
        seconds = float(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        parts = _DURATION_PART.findall(value.strip())
        units = [list(_SECONDS).index(unit) for _, unit in parts]
        if units != sorted(set(units), reverse=True):  # "30s1h" or "5s5s" is a slip of the pen
            raise ValueError(_duration_wanted(value))
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        raise ValueError(_duration_wanted(value))
    if not math.isfinite(seconds) or not 0 <= seconds <= MAX_DURATION_S:
        raise ValueError(
            f"{describe(value)} is out of range; a duration is at least 0 (none) and at most 3650d"
        )
    return seconds


def _duration_wanted(value: object) -> str:
    return f'wants a duration such as "30s", "500ms" or "5m", not {describe(value)}'


def format_duration(seconds: float) -> str:
    """The shortest text that :func:`parse_duration` reads back, to the millisecond."""
    millis = round(seconds * 1000)
    if millis % 1000:
        return f"{millis}ms" if millis < 1000 else f"{millis / 1000:.3f}".rstrip("0") + "s"
    whole = millis // 1000
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole and whole % size == 0 and (whole > size or unit != "m"):  # 60s, but 1h
            return f"{whole // size}{unit}"
    return f"{whole}s"


def parse_size(value: object) -> int:
    """Bytes from ``"64KiB"``, ``"10MB"`` or a bare number of bytes.

    Raises:
        ValueError: What is wanted, with an example; the caller names the key.
    """
    wanted = f'wants a size such as "64KiB", "10MB" or a number of bytes, not {describe(value)}'
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, unit = match.groups()
        exact = float(number) * _BYTES[unit or "B"]
        size = int(number) * _BYTES[unit or "B"] if number.isdecimal() else round(exact)
    else:
        raise ValueError(wanted)
    if not 0 <= size <= MAX_SIZE_BYTES:
        raise ValueError(
            f"{describe(value)} is out of range; a size is at least 0 (none) and at most {MAX_SIZE_BYTES}"
        )
    return size


def format_size(size: int) -> str:
    """The text in the largest binary unit that divides it: ``65536`` is ``64KiB``, ``500`` is ``500``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


def parse_octal(value: object) -> int:
    """File mode bits from ``"022"`` or ``"0o660"``: octal, always, as chmod(1) reads them.

    Raises:
        ValueError: What is wanted, with an example; the caller names the key.
    """
    text = value.removeprefix("0o") if isinstance(value, str) else ""
    # A TOML integer is refused: 022 is no TOML, and 22 would silently be decimal.
    if not re.fullmatch(r"[0-7]{1,4}", text, re.ASCII) or int(text, 8) > 0o777:
        raise ValueError(f'wants octal mode bits in quotes such as "022", not {describe(value)}')
    return int(text, 8)


def describe(value: object) -> str:
    """A value as its writer would recognise it, short enough for one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return str(value)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that ``word`` was probably meant to be, or None."""
    import difflib  # only when something is misspelt

    found = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6)
    return found[0] if found else None
