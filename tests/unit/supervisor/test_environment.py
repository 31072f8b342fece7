"""A worker's environment, env files, identities and release directories."""

import os
import sys
from pathlib import Path

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config import load_settings
from quiesce.supervisor.core.environment import build, parse_env_file
from quiesce.supervisor.identity import worker_identity
from quiesce.supervisor.release_dir import exists, read_env_files, resolve


def test_what_systemd_told_the_supervisor_is_not_told_to_workers() -> None:
    inherited = {
        "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDNAMES": "http",
        "WATCHDOG_USEC": "1", "WATCHDOG_PID": "7", "FDSTORE": "9", "PATH": "/bin", "LISTEN_PIDFDID": "8",
        "MAINPID": "7", "EXIT_STATUS": "0", "EXIT_CODE": "exited", "SERVICE_RESULT": "success",
        "REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "5", "QUIESCE_KEEPER": "7",
        "QUIESCE_KEPT": "7;http=3", "QUIESCE_ARGV": "[]",
    }  # fmt: skip
    assert build(inherited, [], {}, {}, {}) == {"PATH": "/bin"}


def test_what_systemd_told_the_whole_service_is_told_to_workers() -> None:
    inherited = {
        "INVOCATION_ID": "0123", "JOURNAL_STREAM": "8:1234", "SYSTEMD_EXEC_PID": "7", "TMPDIR": "/var/tmp/shop",
        "STATE_DIRECTORY": "/var/lib/shop", "CREDENTIALS_DIRECTORY": "/run/credentials/shop.service",
        "REMOTE_DATABASE": "db", "LANG": "C.UTF-8",
    }  # fmt: skip
    assert build(inherited, [], {}, {}, {}) == inherited


def test_what_the_configuration_says_is_not_taken_away() -> None:
    """Only what was inherited is: a user who names one of those means it."""
    assert build({}, [{"REMOTE_ADDR": "::1"}], {"EXIT_STATUS": "3"}, {}, {}) == {
        "REMOTE_ADDR": "::1", "EXIT_STATUS": "3",
    }  # fmt: skip


def test_each_source_wins_over_the_one_before() -> None:
    env = build(
        {"A": "0", "HOME": "/root"},
        [{"A": "1"}, {"A": "2", "B": "2"}],
        {"B": "3"},
        {"C": "4"},
        {"HOME": "/h"},
    )
    assert env == {"A": "2", "B": "3", "C": "4", "HOME": "/h"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"), ("A = b", "b"), ("export A=b", "b"), ('A="b c"', "b c"), ("A='b \"c'", 'b "c'),
        ('A="b\\"c"', 'b"c'), ("A=", ""), ("A=b # c", "b # c"), ('A="x\\\\y"', "x\\y"),
    ],
)  # fmt: skip
def test_env_file_lines(line: str, value: str) -> None:
    assert parse_env_file(f"# comment\n\n{line}\n; other\n", "f") == {"A": value}


@pytest.mark.parametrize("line", ["novalue", "=x", "1A=b", "A B=c", 'A="open', "A='"])
def test_a_bad_env_file_line_names_file_and_line_and_never_the_value(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_env_file(f"OK=1\nSECRET=hunter2\n{line}", "/etc/shop.env")
    assert "/etc/shop.env:3" in str(caught.value) and "hunter2" not in str(caught.value)


def test_an_env_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_env_files((str(tmp_path / "gone"),))


def test_an_unknown_user_is_refused_with_the_command_that_makes_one() -> None:
    with pytest.raises(ConfigError, match="useradd --system nobody-has-this"):
        worker_identity("nobody-has-this", "")


def test_nobody_asked_for_is_nobody_changed_to() -> None:
    assert worker_identity("", "") is None
    assert worker_identity(str(os.geteuid()), str(os.getegid())) is None


def settings(tmp_path: Path, **options: object):
    return load_settings(
        {"app": "shop", "release": str(tmp_path / "current"), **options}, None, None, str(tmp_path)
    ).settings


def test_the_release_is_resolved_and_its_interpreter_is_not(tmp_path: Path) -> None:
    release = tmp_path / "releases" / "2026"
    (release / ".venv/bin").mkdir(parents=True)
    (release / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "current").symlink_to(release)
    found = resolve(settings(tmp_path), "r7", None)
    assert found.path == str(release) and found.label == "2026" and found.id == "r7"
    assert found.python == str(release / ".venv/bin/python"), "resolved, it would lose the virtualenv"
    assert exists(found)


def test_without_a_virtualenv_the_supervisors_interpreter_serves(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    assert resolve(settings(tmp_path), "r1", "blue").python == sys.executable
    assert resolve(settings(tmp_path), "r1", "blue").label == "blue"


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "is not there"), ({"python": "venv/bin/python"}, "interpreter"), ({"app_dir": "src"}, "src")],
)
def test_what_is_not_there_is_said(tmp_path: Path, options: dict[str, object], said: str) -> None:
    if options:
        (tmp_path / "current").mkdir()
    with pytest.raises(ConfigError, match=said):
        resolve(settings(tmp_path, **options), "r1", None)
