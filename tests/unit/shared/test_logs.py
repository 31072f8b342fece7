"""One event, one line; whoever reads it can neither break the line nor stop the writer."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.shared.logs import Log, journal_reads, line, timestamp

NOON = 1_795_435_200.123  # 2026-11-23T12:00:00.123Z


class Output:
    """A file that a log writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @property
    def text(self) -> str:
        return self.path.read_text()


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    output = Output(tmp_path / "log")
    yield output
    os.close(output.fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def noon() -> float:
    return NOON


def test_the_line_of_the_conventions(output: Output) -> None:
    log = Log(output.fd, clock_wall=noon)
    log.info("worker ready", release="r42", worker="r42/1", pid=811, after_s=0.41)
    assert output.text == (
        "2026-11-23T12:00:00.123Z INFO worker ready release=r42 worker=r42/1 pid=811 after_s=0.41\n"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain/path:80", "plain/path:80"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "no"', r'"say \"no\""'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("one\ntwo\r\n", r'"one\ntwo\r\n"'),
        ("tab\tbed", r'"tab\tbed"'),
        ("\x1b[31mred\x1b[0m", r'"\x1b[31mred\x1b[0m"'),
        ("\x00\x7f\x9b", r'"\x00\x7f\x9b"'),
        ("line\u2028separator", r'"line\u2028separator"'),
        ("\u202egpj.exe", r'"\u202egpj.exe"'),
        ("caf\udce9", r'"caf\udce9"'),
        ("back\\slash", "back\\slash"),
        ("back\\slash and space", r'"back\\slash and space"'),
        ("Grüße", "Grüße"),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        (0.4100001, "0.41"),
        (30.0, "30.0"),
        (1e20, "1e+20"),
        (float("inf"), "inf"),
        (Path("/srv/shop"), "/srv/shop"),
        (OSError(2, "No such file"), '"[Errno 2] No such file"'),
        ([1, 2], '"[1, 2]"'),
    ],
    ids=repr,
)
def test_values(value: object, shown: str) -> None:
    assert line("x", {"v": value}) == f"x v={shown}"


def test_none_is_left_out() -> None:
    assert line("x", {"a": None, "b": 1}) == "x b=1"


def test_a_value_that_cannot_be_shown() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert line("x", {"v": Broken()}) == 'x v="<Broken that cannot be shown>"'


def test_an_event_stays_on_its_line() -> None:
    assert line("bad\nnews \x1b[2J", {}) == r"bad\nnews \x1b[2J"


def test_timestamps() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(NOON) == "2026-11-23T12:00:00.123Z"
    assert timestamp(59.9996) == "1970-01-01T00:01:00.000Z"


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(output: Output, level: str, written: int) -> None:
    log = Log(output.fd, level=level)
    for write in (log.error, log.warning, log.info, log.debug):
        write("x")
    words = [text.split()[1] for text in output.text.splitlines()]
    assert words == ["ERROR", "WARNING", "INFO", "DEBUG"][:written]
    log.set_level("error")
    log.multiline("warning", "not", "this")
    assert len(output.text.splitlines()) == written


def test_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'; there are debug, info"):
        Log(level="loud")


def test_a_body_below_its_event(output: Output) -> None:
    log = Log(output.fd, clock_wall=noon)
    body = 'Traceback:\n  File "x.py"\n\tboom \x1b[31m\n\nKeyError: 1\n'
    log.multiline("error", "worker failed", body, worker="r42/1", level=3, event="own")
    assert output.text == (
        "2026-11-23T12:00:00.123Z ERROR worker failed worker=r42/1 level=3 event=own\n"
        "  | Traceback:\n"
        '  |   File "x.py"\n'
        "  |         boom \\x1b[31m\n"
        "  | \n"
        "  | KeyError: 1\n"
    )


def test_an_event_with_an_empty_body(output: Output) -> None:
    Log(output.fd, clock_wall=noon).multiline("info", "quiet", "")
    assert output.text == "2026-11-23T12:00:00.123Z INFO quiet\n"


def test_the_journal_has_its_own_clock_and_reads_the_priority_of_each_line(output: Output) -> None:
    log = Log(output.fd, level="debug", journal=True)
    log.debug("a")
    log.info("b", pid=1)
    log.warning("c")
    log.multiline("error", "d", "one\ntwo")
    assert output.text == ("<7>DEBUG a\n<6>INFO b pid=1\n<4>WARNING c\n<3>ERROR d\n<3>  | one\n<3>  | two\n")


def test_whether_the_journal_reads(output: Output, tmp_path: Path) -> None:
    status = os.stat(output.path)
    ours = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    assert journal_reads(output.fd, ours)
    assert not journal_reads(output.fd, {})
    assert not journal_reads(output.fd, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
    assert not journal_reads(output.fd, {"JOURNAL_STREAM": "nonsense"})
    with (tmp_path / "redirected").open("w") as other:  # inherited by somebody who redirected it
        assert not journal_reads(other.fileno(), ours)
    assert not journal_reads(9999, ours)


def test_raw_output_is_copied_as_it_is(output: Output) -> None:
    log = Log(output.fd, level="error", clock_wall=noon)
    log.raw(b"caf\xe9 \x1b[1m\n")
    log.raw("no end of line \udcff")
    log.raw("")
    log.error("x")
    assert output.path.read_bytes() == (
        b"caf\xe9 \x1b[1m\nno end of line \\udcff\n2026-11-23T12:00:00.123Z ERROR x\n"
    )


def test_one_line_is_one_write(pipe: tuple[int, int]) -> None:
    """Two processes that append to one file do not mix their lines."""
    reader, writer = os.pipe2(os.O_DIRECT)  # packet mode: a read returns one write
    log = Log(writer, clock_wall=noon)
    log.info("first", a=1)
    log.multiline("info", "second", "body\nbody")
    assert os.read(reader, 9999).endswith(b"INFO first a=1\n")
    assert os.read(reader, 9999).endswith(b"INFO second\n  | body\n  | body\n")
    os.close(reader)
    os.close(writer)


def test_another_descriptor_after_rotation(output: Output, tmp_path: Path) -> None:
    log = Log(output.fd, clock_wall=noon)
    log.info("old")
    new = Output(tmp_path / "new")
    log.set_fd(new.fd)
    log.info("new")
    assert output.text.endswith("old\n") and new.text.endswith("INFO new\n")
    os.fstat(output.fd)  # the old one is its owner's to close
    os.close(new.fd)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stopped_does_not_stop_us_and_is_told_what_it_missed(
    pipe: tuple[int, int], blocking: bool
) -> None:
    reader, writer = pipe
    os.set_blocking(writer, blocking)
    log = Log(writer, clock_wall=noon)
    while not log.dropped:
        log.info("x" * 500)
    for _ in range(2):
        log.info("lost")
    assert log.dropped == 3
    before = os.read(reader, 99_999)
    assert b"lost" not in before
    log.info("after")
    log.info("again")
    text = os.read(reader, 99_999).decode()
    text = text.lstrip("\n")
    assert text == (
        "2026-11-23T12:00:00.123Z WARNING log lines lost count=3\n"
        "2026-11-23T12:00:00.123Z INFO after\n"
        "2026-11-23T12:00:00.123Z INFO again\n"
    )


def test_a_line_that_was_torn_is_ended(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = Log(writer, clock_wall=noon)
    log.raw("a" * 20_000)  # 16,384 go through
    first = os.read(reader, 99_999)
    assert first == b"a" * 16_384 and log.dropped == 1
    log.info("next")
    assert os.read(reader, 99_999).decode().splitlines() == [
        "",
        "2026-11-23T12:00:00.123Z WARNING log lines lost count=1",
        "2026-11-23T12:00:00.123Z INFO next",
    ]


def test_nobody_reads_at_all() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer)
    log.error("EPIPE")
    os.close(writer)
    log.error("EBADF")
    log.set_fd(-1)
    log.raw(b"EBADF")
    assert log.dropped == 3


def test_the_disk_is_full() -> None:
    with open("/dev/full", "wb") as full:
        log = Log(full.fileno())
        log.error("ENOSPC")
        assert log.dropped == 1


def test_a_file_at_its_size_limit(in_child: Callable[[Callable[[], None]], None]) -> None:
    """Short writes and EFBIG on a regular file, as a quota gives them."""

    def child() -> None:
        import os
        import resource
        import signal
        import tempfile

        from quiesce.shared.logs import Log

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with tempfile.TemporaryFile("ab") as file:
            log = Log(file.fileno())
            log.info("x" * 200)
            log.info("y")
            assert log.dropped == 2
            assert os.fstat(file.fileno()).st_size == 100

    in_child(child)


def test_a_body_larger_than_a_pipe_goes_through_when_somebody_reads(
    in_child: Callable[[Callable[[], None]], None],
) -> None:
    def child() -> None:
        import os
        import threading

        from quiesce.shared.logs import Log

        reader, writer = os.pipe()
        got = bytearray()

        def read() -> None:
            while data := os.read(reader, 65536):
                got.extend(data)

        thread = threading.Thread(target=read)
        thread.start()
        log = Log(writer)
        log.raw(b"z" * 300_000)
        os.close(writer)
        thread.join()
        assert got == b"z" * 300_000 + b"\n" and log.dropped == 0

    in_child(child)


def test_it_does_not_bring_in_the_standard_librarys_logging(
    in_child: Callable[[Callable[[], None]], None],
) -> None:
    def child() -> None:
        import sys

        import quiesce.shared.logs

        assert quiesce.shared.logs and not {"logging", "datetime", "json"} & set(sys.modules)

    in_child(child)
