"""Durations, sizes, modes and misspelt names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.config_text import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    describe,
    format_duration,
    format_size,
    nearest,
    parse_duration,
    parse_octal,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("30s", 30), ("500ms", 0.5), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("0", 0), ("0s", 0)),
        *(("0.1", 0.1), ("1.5h", 5400), (10, 10), (0.25, 0.25), (" 7s ", 7)),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5 s", "5x", "-1s", "30s1h", "5s5s", "1e3", "٣s", None, True, [], "5s\n5s"]
)
def test_what_is_no_duration_is_shown_one(text: object) -> None:
    with pytest.raises(ValueError, match='such as "30s"'):
        parse_duration(text)


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "4000d", MAX_DURATION_S + 1])
def test_durations_have_a_range(value: object) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_duration(value)


@given(st.integers(0, int(MAX_DURATION_S * 1000)))
def test_a_formatted_duration_reads_back(millis: int) -> None:
    assert parse_duration(format_duration(millis / 1000)) == pytest.approx(millis / 1000, rel=1e-5, abs=1e-3)


def test_durations_look_like_what_people_write() -> None:
    texts = [format_duration(seconds) for seconds in (0, 0.1, 1.5, 30, 60, 90, 300, 3600, 86400)]
    assert texts == ["0s", "100ms", "1.5s", "30s", "60s", "90s", "5m", "1h", "1d"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("10MB", 10_000_000),
        ("1.5MiB", 1572864),
        ("500", 500),
        (0, 0),
        ("7 B", 7),
        ("2GiB", 2**31),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "5 bytes", "64kib", 1.5, True, None, [], "-1"])
def test_what_is_no_size_is_shown_one(text: object) -> None:
    with pytest.raises(ValueError, match='such as "64KiB"'):
        parse_size(text)


@pytest.mark.parametrize("value", [-1, MAX_SIZE_BYTES + 1, "99999999TiB"])
def test_sizes_have_a_range(value: object) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_size(value)


@given(st.integers(0, MAX_SIZE_BYTES))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_modes_are_octal_always() -> None:
    assert [parse_octal(text) for text in ("022", "0o660", "0")] == [0o022, 0o660, 0]
    for value in (22, "9", "01777", "", "rw", None):
        with pytest.raises(ValueError, match='such as "022"'):
            parse_octal(value)


def test_the_nearest_word_and_none_when_nothing_is_near() -> None:
    assert nearest("helth_path", ["health_path", "health_host"]) == "health_path"
    assert nearest("xyzzy", ["health_path"]) is None


def test_values_are_described_in_one_short_line() -> None:
    assert [describe(value) for value in (True, "a", 5, [], {}, "x" * 99)] == [
        *("true", '"a"', "5", "a list", "a table", '"' + "x" * 57 + '..."'),
    ]
