"""Names in the descriptor store: what a manager accepts, and no two alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor import fdnames

KINDS = (
    fdnames.channel,
    fdnames.pidfd,
    fdnames.output,
    fdnames.listener,
    fdnames.lane_read,
    fdnames.lane_write,
)
FIXED = (
    fdnames.STATE,
    fdnames.LOCK,
    fdnames.CONTROL,
    fdnames.SCOREBOARD,
    fdnames.LOG,
    fdnames.REPORT,
    fdnames.CHECK,
)
keys = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(st.sets(keys, min_size=1))
def test_no_two_things_share_a_name(some: set[str]) -> None:
    names = [kind(key) for kind in KINDS for key in some] + list(FIXED)
    assert len(set(names)) == len(names)
    assert all(fdnames.is_ours(name) for name in names)


@given(keys)
def test_a_manager_takes_every_name(key: str) -> None:
    """systemd ignores a name that holds ':' or a control character, or is longer than 255 bytes."""
    for name in (*FIXED, *(kind(key) for kind in KINDS)):
        assert name.isascii() and name.isprintable() and ":" not in name and len(name) <= 255
        assert ";" not in name and "=" not in name and "\n" not in name, "QUIESCE_KEPT separates with these"


@pytest.mark.parametrize(
    "name", ["http", "quiesce.socket", "quiesce", "stored", "unknown", "quiesce-x.socket", ""]
)
def test_what_users_name_is_theirs(name: str) -> None:
    assert not fdnames.is_ours(name)


def test_what_a_newer_version_stored_is_no_socket_of_the_user() -> None:
    assert fdnames.is_ours("quiesce.zygote")
