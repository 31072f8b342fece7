"""Socket activation in a real process: descriptors from 3 on, passed by exec."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.activation import KeptError, kept_environment, take_kept_fds, take_listen_fds

# Only an exec'd process can have the descriptors at their places and its own pid in its environment,
# so the one before the exec stands in for the service manager.
_MANAGER = """
import fcntl, json, os, sys
fds, given, child = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for fd in fds]
os.closerange(3, 50)
for place, fd in enumerate(high, 3):
    os.dup2(fd, place)
env = {**os.environ, **given}
if env.get("LISTEN_PID") == "ours":
    env["LISTEN_PID"] = str(os.getpid())
os.execve(sys.executable, [sys.executable, "-c", child], env)
"""

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


class Found(NamedTuple):
    """What the activated process saw."""

    found: list[list[object]] | str
    left: list[str]  # variables
    inheritable: list[int]


def activated(sockets: list[socket.socket], fds: str, names: str | None = None, pid: str = "ours") -> Found:
    """Start a process with these sockets at 3, 4, …"""
    given = {"LISTEN_PID": pid, "LISTEN_FDS": fds} | ({} if names is None else {"LISTEN_FDNAMES": names})
    numbers = [sock.fileno() for sock in sockets]
    done = subprocess.run(
        [sys.executable, "-c", _MANAGER, json.dumps(numbers), json.dumps(given), _CHILD],
        pass_fds=numbers,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    return Found(*json.loads(done.stdout))


def test_named_sockets_are_ours_and_no_childs(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets, "3", "http:admin:http")
    assert found == [["http", 3], ["admin", 4], ["http", 5]]
    assert left == [] and inheritable == []


def test_without_names_they_are_unknown(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets[:2], "2")
    assert found == [["unknown", 3], ["unknown", 4]]
    assert left == [] and inheritable == []


def test_an_empty_name_is_unknown(sockets: list[socket.socket]) -> None:
    assert activated(sockets[:2], "2", ":x").found == [["unknown", 3], ["x", 4]]


def test_what_is_meant_for_another_process_is_left_alone(sockets: list[socket.socket]) -> None:
    found, left, inheritable = activated(sockets[:1], "1", "http", pid="1")
    assert found == [] and left == [] and inheritable == [3]


def test_more_are_announced_than_there_are(sockets: list[socket.socket]) -> None:
    found, left, _ = activated(sockets[:1], "2")
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


# Over an exec of our own

_BEFORE = """
import os, socket, sys
from quiesce.supervisor.activation import KEPT, kept_environment
fds = [int(text) for text in sys.argv[1].split(",")]
for fd in fds:
    os.set_inheritable(fd, True)
os.environ[KEPT] = kept_environment([("quiesce.state", fds[0]), ("odd;=%3B:name", fds[1])], os.getpid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""

_AFTER = """
import json, os
from quiesce.supervisor.activation import take_kept_fds
child = os.fork()
if not child:  # it inherits the variable, and is not meant
    print(json.dumps(take_kept_fds(os.environ, os.getpid())), flush=True)
    os._exit(0)
os.waitpid(child, 0)
found = take_kept_fds(os.environ, os.getpid())
left = [name for name in os.environ if name.startswith("QUIESCE_KEPT")]
print(json.dumps([found, left, [fd for _, fd in found if os.get_inheritable(fd)]]))
"""


def test_what_reexec_keeps_is_found_by_name_and_no_childs(sockets: list[socket.socket]) -> None:
    fds = [sock.fileno() for sock in sockets[:2]]
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE, ",".join(map(str, fds)), _AFTER],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    child, found = (json.loads(line) for line in done.stdout.splitlines())
    assert child == []
    assert found == [[["quiesce.state", fds[0]], ["odd;=%3B:name", fds[1]]], [], []]


def test_a_kept_descriptor_that_is_gone_is_said(sockets: list[socket.socket]) -> None:
    gone = sockets[0].fileno()
    sockets[0].close()
    environ = {"QUIESCE_KEPT": kept_environment([("quiesce.lock", gone)], 77), "PATH": "/bin"}
    with pytest.raises(KeptError, match=rf"descriptor {gone} \(quiesce.lock\) was lost"):
        take_kept_fds(environ, 77)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("text", ["77;a", "77;a=", "77;a=-1", "77;a=b", "77;", "77;a=²", "77;a=" + "9" * 30])
def test_nonsense_in_what_was_kept(text: str) -> None:
    environ = {"QUIESCE_KEPT": text}
    with pytest.raises(KeptError, match="is not NAME=DESCRIPTOR"):
        take_kept_fds(environ, 77)
    assert environ == {}


@pytest.mark.parametrize("text", ["", "78;a=3", "x", "077;a=3", "77"])
def test_nothing_was_kept_for_us(text: str) -> None:
    environ = {"QUIESCE_KEPT": text} if text else {}
    assert take_kept_fds(environ, 77) == [] and environ == {}


def test_systemd_258_says_one_thing_more() -> None:
    environ = {"LISTEN_PIDFDID": "12"}
    assert take_listen_fds(environ, 77) == [] and environ == {}
