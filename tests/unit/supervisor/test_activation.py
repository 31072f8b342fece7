"""Socket activation in a real process: descriptors from 3 on, passed by exec."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.activation import take_listen_fds

# Only an exec'd process can have the descriptors at their places and its own pid in its environment,
# so a shell stands in for the service manager.
_CHILD = """
import json, os, sys
from quiesce.shared.errors import ConfigError
from quiesce.supervisor.activation import take_listen_fds
try:
    found = take_listen_fds(os.environ, os.getpid())
except ConfigError as exc:
    found = str(exc)
left = sorted(name for name in os.environ if name.startswith("LISTEN_"))
inheritable = [fd for fd in range(3, 8) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
print(json.dumps([found, left, inheritable]))
"""


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield found
    for sock in found:
        sock.close()


def activated(
    sockets: list[socket.socket], exports: str
) -> tuple[list[list[object]] | str, list[str], list[int]]:
    """Start the child with these sockets at 3, 4, …; returns what it found, what it left, what is inheritable."""
    fds = [sock.fileno() for sock in sockets]
    assert all(fd >= 3 + len(fds) for fd in fds) or fds == sorted(fds)
    moves = " ".join(f"{3 + index}<&{fd}" for index, fd in enumerate(fds))
    close = " ".join(f"{fd}<&-" for fd in fds if fd >= 3 + len(fds))
    script = f'{exports}\nexec "$0" -c "$1" {moves} {close}'
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, _CHILD],
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    found, left, inheritable = json.loads(done.stdout)
    return found, left, inheritable


OURS = "export LISTEN_PID=$$ "


def test_named_sockets_are_ours_and_no_childs(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets, OURS + "LISTEN_FDS=3 LISTEN_FDNAMES=http:admin:http")
    assert found == [["http", 3], ["admin", 4], ["http", 5]]
    assert left == [] and inheritable == []


def test_without_names_they_are_unknown(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets[:2], OURS + "LISTEN_FDS=2")
    assert found == [["unknown", 3], ["unknown", 4]]
    assert left == [] and inheritable == []


def test_an_empty_name_is_unknown(sockets: list[socket.socket]) -> None:
    assert activated(sockets[:2], OURS + "LISTEN_FDS=2 LISTEN_FDNAMES=:x")[0] == [["unknown", 3], ["x", 4]]


def test_what_is_meant_for_another_process_is_left_alone(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets[:1], "export LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=http")
    assert found == [] and left == [] and inheritable == [3]


def test_more_are_announced_than_there_are(sockets: list[socket.socket]) -> None:
    found, left, _ = activated(sockets[:1], OURS + "LISTEN_FDS=2")
    assert found == (
        "LISTEN_FDS=2 announces descriptor 4, which is not open; unset LISTEN_FDS, or see who passes descriptors to us"
    )
    assert left == []


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "LISTEN_PID='me' is not a number"),
        ({"LISTEN_PID": "77"}, "LISTEN_FDS='' is not a number"),
        ({"LISTEN_PID": "77", "LISTEN_FDS": "-1"}, "LISTEN_FDS='-1' is not a number"),
        ({"LISTEN_PID": "77", "LISTEN_FDS": "²"}, "is not a number"),
        ({"LISTEN_PID": "77", "LISTEN_FDS": "9" * 50}, "is not a number"),
        (
            {"LISTEN_PID": "77", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"},
            "names 1 descriptors and LISTEN_FDS passes 2",
        ),
        (
            {"LISTEN_PID": "77", "LISTEN_FDS": "0", "LISTEN_FDNAMES": "a"},
            "names 1 descriptors and LISTEN_FDS passes 0",
        ),
    ],
)
def test_nonsense_is_refused_in_words_and_removed(given: dict[str, str], word: str) -> None:
    environ = {**given, "PATH": "/bin"}
    with pytest.raises(ConfigError) as caught:
        take_listen_fds(environ, 77)
    assert word in str(caught.value)
    assert environ == {"PATH": "/bin"}


def test_nothing_was_passed() -> None:
    environ = {"PATH": "/bin"}
    assert take_listen_fds(environ, os.getpid()) == [] and environ == {"PATH": "/bin"}
    left_over = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    assert take_listen_fds(left_over, os.getpid()) == [] and left_over == {}
    assert take_listen_fds({"LISTEN_PID": "77", "LISTEN_FDS": "0"}, 77) == []
