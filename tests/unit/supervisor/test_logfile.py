"""The log file: made, rotated, moved, handed to a successor; and links that lead astray."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.shared.errors import ConfigError
from quiesce.supervisor.logfile import LogFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.log"


@pytest.fixture
def log(path: Path) -> Iterator[LogFile]:
    log = LogFile.open(str(path))
    yield log
    log.close()


def test_it_is_made_for_its_owner_and_group_and_appended_to(path: Path) -> None:
    before = os.umask(0o022)
    try:
        log = LogFile.open(str(path))
    finally:
        os.umask(before)
    info = path.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, os.geteuid(), os.getegid())
    path.write_text("old\n")
    os.write(log.fd, b"new\n")
    assert path.read_text() == "old\nnew\n"
    assert not os.get_inheritable(log.fd) and os.get_blocking(log.fd)
    log.close()


def test_a_file_that_is_there_keeps_mode_and_owner(path: Path) -> None:
    path.write_text("x")
    path.chmod(0o604)
    LogFile.open(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604 and path.read_text() == "x"


def test_after_a_rotation_the_same_descriptor_is_the_new_file(path: Path, log: LogFile) -> None:
    path.rename(f"{path}.1")
    os.write(log.fd, b"still the old one\n")
    fd = log.fd
    assert log.reopen() == fd == log.fd
    os.write(fd, b"the new one\n")
    assert path.read_text() == "the new one\n"
    assert Path(f"{path}.1").read_text() == "still the old one\n"
    assert not os.get_inheritable(fd)


def test_a_rotation_that_fails_leaves_the_old_file_in_use(path: Path, log: LogFile) -> None:
    path.rename(f"{path}.1")
    path.mkdir()
    with pytest.raises(ConfigError, match=f"cannot open log.file {path}: is a directory"):
        log.reopen()
    with pytest.raises(ConfigError, match="no such file or directory"):
        log.move(f"{path}/no/such.log")
    os.write(log.fd, b"x")
    assert Path(f"{path}.1").read_text() == "x" and log.path == str(path)


def test_it_moves_to_another_file_and_back_to_standard_error(path: Path, log: LogFile) -> None:
    other = path.with_name("other.log")
    fd = log.fd
    assert log.move(str(other)) == fd and log.path == str(other)
    os.write(log.fd, b"x")
    assert other.read_text() == "x" and path.read_text() == ""
    assert log.is_at(str(other)) and not log.is_at(str(path)) and not log.is_at("")
    assert log.move("") == 2 == log.fd and log.is_at("")
    assert log.move(str(path)) != 2
    os.write(log.fd, b"y")
    assert path.read_text() == "y"


def test_a_pipe_that_nobody_reads_is_refused_at_once(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"cannot open log\.file"):
        LogFile.open(str(path))


def test_a_move_to_where_it_is_changes_nothing_even_after_a_rotation(path: Path, log: LogFile) -> None:
    path.rename(f"{path}.1")
    log.move(str(path))
    assert not path.exists() and log.path == str(path)


# Standard output and error, in a process of its own


def in_process(code: str, *arguments: str, stdout: int | None = None, stderr: int | None = None) -> str:
    """Run ``code`` with these as 1 and 2; what it writes to descriptor 9 is returned."""
    reading, writing = os.pipe()
    try:
        program = f"import os, sys\nfrom quiesce.supervisor.logfile import LogFile\nTELL = {writing}\n{code}"
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdout=stdout if stdout is not None else subprocess.DEVNULL,
            stderr=stderr if stderr is not None else subprocess.DEVNULL,
            pass_fds=[writing],
            check=True,
            timeout=30,
        )
        os.close(writing)
        writing = -1
        return os.read(reading, 4096).decode()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


ROTATE = """
log = LogFile.open(sys.argv[1])
os.rename(sys.argv[2], sys.argv[2] + ".1")
standard = log.is_standard
log.reopen()
for fd in (1, 2, log.fd):
    os.write(fd, f"{fd if fd < 3 else 'fd'}\\n".encode())
os.write(TELL, f"{log.path} {standard} {os.get_inheritable(1)} {os.get_inheritable(2)}".encode())
"""


@pytest.mark.parametrize("named", [True, False])
def test_in_the_background_standard_output_and_error_are_reopened_as_well(path: Path, named: bool) -> None:
    with open(path, "ab") as file:
        told = in_process(
            ROTATE, str(path) if named else "", str(path), stdout=file.fileno(), stderr=file.fileno()
        )
    assert told == f"{path} True True True"
    assert path.read_text().split() == (["1", "2", "fd"] if named else ["1", "2", "2"])


def test_of_a_foreground_only_what_was_the_log_is_replaced(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open(path, "ab") as file, open(out, "ab") as other:
        told = in_process(ROTATE, "", str(path), stdout=other.fileno(), stderr=file.fileno())
    assert told == f"{path} False True True"
    assert path.read_text().split() == ["2", "2"] and out.read_text() == "1\n"


def test_a_log_file_of_a_foreground_leaves_standard_error_alone(path: Path, tmp_path: Path) -> None:
    code = "log = LogFile.open('')\nlog.move(sys.argv[1])\nos.write(2, b'error')\nos.write(log.fd, b'log')"
    with open(tmp_path / "error", "ab") as file:
        in_process(code, str(path), stderr=file.fileno())
    assert path.read_text() == "log" and (tmp_path / "error").read_text() == "error"


def test_what_is_no_file_has_no_path_and_nothing_to_reopen() -> None:
    told = in_process(
        "log = LogFile.open('')\n"
        "os.write(TELL, f'{log.path} {log.reopen()} {log.fd} {log.is_standard} {log.to_state()}'.encode())"
    )
    assert told == "None 2 2 False {'path': None, 'standard_error': True}"


# A successor


def test_a_successor_knows_the_path_of_a_file_that_was_renamed(path: Path, log: LogFile) -> None:
    state = json.loads(json.dumps(log.to_state()))
    path.rename(f"{path}.1")
    successor = LogFile.from_state(state, os.dup(log.fd))
    os.write(successor.fd, b"old\n")
    successor.reopen()
    os.write(successor.fd, b"new\n")
    assert Path(f"{path}.1").read_text() == "old\n" and path.read_text() == "new\n"
    successor.close()


def test_a_successor_without_the_descriptor_opens_the_path(path: Path, log: LogFile) -> None:
    successor = LogFile.from_state(log.to_state())
    os.write(successor.fd, b"x")
    assert path.read_text() == "x" and not successor.problem
    successor.close()


def test_a_successor_that_cannot_open_its_log_says_so_and_goes_on(path: Path, log: LogFile) -> None:
    path.unlink()
    path.mkdir()
    successor = LogFile.from_state(log.to_state())
    assert successor.fd == 2 and successor.path == str(path)
    assert successor.problem.endswith("is a directory; writing to standard error instead")
    for junk in ({}, {"path": 5}, {"path": "", "standard_error": False}):
        assert (LogFile.from_state(junk).fd, LogFile.from_state(junk).path) == (2, None)


def test_a_successor_of_a_background_instance_has_it_as_standard_error(path: Path) -> None:
    code = (
        "import json\nlog = LogFile.from_state(json.loads(sys.argv[1]))\nlog.reopen()\n"
        "os.write(TELL, f'{log.fd} {log.path} {log.is_standard}'.encode())"
    )
    state = json.dumps({"path": str(path), "standard_error": True})
    with open(path, "ab") as file:
        path.rename(f"{path}.1")
        told = in_process(code, state, stdout=file.fileno(), stderr=file.fileno())
    assert told == f"2 {path} True" and path.exists()


def test_standard_error_stays_what_it_is_when_it_is_asked_for_again(path: Path) -> None:
    code = (
        "log = LogFile.open('')\nos.rename(sys.argv[1], sys.argv[1] + '.1')\nlog.move('')\n"
        "os.write(TELL, log.path.encode())"
    )
    with open(path, "ab") as file:
        assert in_process(code, str(path), stderr=file.fileno()) == str(path)


# Links


def test_links_of_ours_are_followed_relative_ones_too_and_may_lead_nowhere_yet(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/first").symlink_to("second.log")
    path.symlink_to("disk/first")
    log = LogFile.open(str(path))
    os.write(log.fd, b"x")
    assert (tmp_path / "disk/second.log").read_text() == "x" and log.path == str(path)
    log.close()


def test_links_in_a_circle_are_refused(path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(ConfigError, match="too many symbolic links"):
        LogFile.open(str(path))


def test_the_standard_streams_can_be_named() -> None:
    reading, writing = os.pipe()
    in_process("log = LogFile.open('/dev/stderr')\nlog.reopen()\nos.write(log.fd, b'x')", stderr=writing)
    os.close(writing)
    assert os.read(reading, 10) == b"x"
    os.close(reading)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("whose", ["a link of theirs", "a link of ours in a folder of theirs"])
def test_a_folder_on_the_way_leads_root_nowhere_either(tmp_path: Path, whose: str) -> None:
    """Whom the folder belongs to puts a link in place of one on the way to the log."""
    theirs, elsewhere = tmp_path / "theirs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    (theirs / "logs").symlink_to(elsewhere)
    if whose == "a link of theirs":
        os.chown(theirs / "logs", 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"symbolic link that somebody else \(uid 65534\)"):
        LogFile.open(str(theirs / "logs" / "shop.log"))
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_we_have_linked_is_followed(tmp_path: Path) -> None:
    """/var/log on another disk; ".." and "." on the way."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "log").symlink_to("../disk")
    log = LogFile.open(f"{tmp_path}/var/./log/../var/log/shop.log".replace("/log/../var", "/../var"))
    os.write(log.fd, b"x")
    log.close()
    assert (tmp_path / "disk" / "shop.log").read_bytes() == b"x"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("when", ["open", "reopen", "behind ours"])
def test_a_link_of_somebody_else_leads_root_nowhere(path: Path, tmp_path: Path, when: str) -> None:
    precious, link = tmp_path / "precious", tmp_path / "theirs"
    precious.write_text("as it was")
    log = LogFile.open(str(path)) if when == "reopen" else None
    path.unlink(missing_ok=True)
    target = link if when == "behind ours" else path
    target.symlink_to(precious)
    os.chown(target, 65534, 65534, follow_symlinks=False)
    if when == "behind ours":
        path.symlink_to(link)
    with pytest.raises(ConfigError, match=r"symbolic link that somebody else \(uid 65534\)"):
        log.reopen() if log is not None else LogFile.open(str(path))
    assert precious.read_text() == "as it was"
    if log is not None:
        log.close()
