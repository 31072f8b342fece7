"""Environment files that hold what no line of theirs should."""

from __future__ import annotations

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.core.environment import parse_env_file


def test_only_a_line_end_ends_a_line() -> None:
    text = "A=one\u2028two\r\nB=x\x0cy\n\nC='\x85'"
    assert parse_env_file(text, "f") == {"A": "one\u2028two", "B": "x\x0cy", "C": "\x85"}


def test_a_nul_is_refused_before_exec_would_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"f:2: a NUL") as caught:
        parse_env_file("A=1\nB=sec\0ret\n", "f")
    assert "sec" not in str(caught.value)
