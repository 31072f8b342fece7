"""The keeper: real keepers over stand-in supervisors that do, line by line, what a test tells them."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.places import tmp_path
from harness.processes import descendants, footprint, kill, pidfd, read_proc, subreaper, sweep, wait_gone
from quiesce.supervisor import keeper

__all__ = ["tmp_path"]  # a short one: it holds a unix socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

STAND_IN = str(Path(__file__).with_name("kept_stand_in.py"))
# Becomes a child subreaper, as launch.py does, then what follows.
SUBREAPER = (
    sys.executable,
    "-c",
    "import os, sys; from quiesce.supervisor.launch import adopt_orphans; adopt_orphans(); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


class Supervisor:
    """The stand-in, from the test's side."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn = conn
        conn.settimeout(20)
        self._file = conn.makefile("rw")
        self.hello: dict[str, Any] = json.loads(self._file.readline())
        self.pid: int = self.hello["pid"]
        self.names: list[str] = self.hello["names"]

    def do(self, line: str) -> Any:
        print(line, file=self._file, flush=True)
        return json.loads(self._file.readline())

    def tell(self, line: str) -> None:
        """The same without waiting for an answer, which it may not live to give."""
        print(line, file=self._file, flush=True)

    def end(self, status: int) -> None:
        self.tell(f"os._exit({status})")

    def ready(self) -> None:
        assert self.do("say('READY=1') or barrier()")

    def close(self) -> None:
        self._file.close()
        self._conn.close()


class Kept:
    """A keeper, and the supervisors that it starts."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "test.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._listener.settimeout(20)
        self._supervisors: list[Supervisor] = []
        self._errors = directory / "stderr"
        self.command = [sys.executable, STAND_IN, self._path]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, above: tuple[str, ...] = (), **popen: Any) -> "Kept":
        """``above``: a program that becomes the keeper's parent."""
        argv = [*above, sys.executable, "-I", "-S", keeper.__file__, *options, "--", *self.command]
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **{"stderr": errors, **popen})
        return self

    def next(self) -> Supervisor:
        """The next supervisor, once it lives."""
        supervisor = Supervisor(self._listener.accept()[0])
        self._supervisors.append(supervisor)
        return supervisor

    def no_next(self) -> None:
        """Nobody has been started; the keeper has left."""
        self._listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            self._listener.accept()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(30)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def errors_with(self, text: str) -> str:
        """What it wrote, once ``text`` is in it."""
        deadline = time.monotonic() + 20
        while text not in self.errors:
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.01)
        return self.errors

    def close(self) -> None:
        for supervisor in self._supervisors:
            supervisor.close()
        self._listener.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    before = set(descendants())
    with subreaper():
        kept = Kept(tmp_path)
        try:
            yield kept
        finally:
            kept.close()
            sweep(before)


# Decisions


@pytest.mark.parametrize(
    ("exit_code", "served", "leaving", "deaths", "status"),
    [
        (2, False, False, 1, 2),  # it could not start
        (0, False, False, 1, 0),
        (0, True, False, 1, 0),  # `quiesce stop`
        (3, True, False, 1, None),  # it has workers to adopt
        (3, True, True, 1, 3),
        (-9, True, False, 99, None),  # never given up
        (-9, True, True, 1, 137),  # who was asked to stop stays stopped
        (-9, False, False, 1, None),
        (-9, False, False, keeper.HOPELESS, 137),
        (-9, False, True, 1, 137),
        (None, True, False, 1, None),
        (None, True, True, 1, 0),
    ],
)
def test_who_comes_back(
    exit_code: int | None, served: bool, leaving: bool, deaths: int, status: int | None
) -> None:
    assert keeper.judge(exit_code, served, leaving, deaths) == status


def test_delays_grow() -> None:
    assert [keeper.delay_s(deaths, False) for deaths in range(1, 10)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [keeper.delay_s(deaths, True) for deaths in range(1, 7)] == [0, 0.5, 1, 2, 2, 2]
    assert keeper.delay_s(10**6, False) == 30


@given(st.lists(st.text(st.characters(exclude_categories=[]))), st.booleans())
def test_lists_of_strings_are_read_as_json_reads_them(words: list[str], ascii_only: bool) -> None:
    text = json.dumps(words, ensure_ascii=ascii_only, indent=None if ascii_only else 1)
    assert keeper.parse_strings(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "x", "{}", '["a"', '["a" "b"]', '["a]', "[1]", '["a",]', r'["\u12"]'])
def test_what_is_no_list_of_strings_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        keeper.parse_strings(text)


@pytest.mark.slow
@settings(deadline=None)  # each example is a process
@given(st.permutations(range(20, 29)), st.integers(3, 40))
def test_descriptors_are_placed_however_they_overlap(order: list[int], first: int) -> None:
    program = (
        "import os, sys\n"
        "from quiesce.supervisor.keeper import place\n"
        "fds = list(map(int, sys.argv[2].split(',')))\n"
        "for fd in fds:\n"
        "    made = os.memfd_create(str(fd)); os.dup2(made, fd, inheritable=False); os.close(made)\n"
        "first = int(sys.argv[1]); place(fds, first)\n"
        "for at, fd in enumerate(fds, first):\n"
        "    assert f'memfd:{fd} ' in os.readlink(f'/proc/self/fd/{at}'), (at, fd)\n"
        "    assert os.get_inheritable(at)\n"
    )
    pid = os.fork()  # dearer ways would make this slow
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            sys.argv[1:] = [str(first), ",".join(map(str, order))]
            exec(compile(program, "place", "exec"), {})
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


# Surviving


def test_a_killed_supervisor_gets_its_descriptors_back(kept: Kept) -> None:
    first = kept.start().next()
    assert first.names == []
    assert first.do("keep('a', memfd('one')) and keep('p', pipe()) and keep('b', memfd('two'))")
    assert first.do("keep('twice', memfd('x')) and keep('twice', memfd('y'))")
    first.ready()
    kill(first.pid, signal.SIGKILL)
    second = kept.next()
    assert second.pid != first.pid
    # The pipe's reader died with the first one: nobody is at its other end.
    assert second.names == ["a", "b", "twice", "twice"]
    assert second.do("[content(fd) for name in ('a', 'b', 'twice') for fd in fds[name]]") == [
        "one",
        "two",
        "x",
        "y",
    ]
    assert "WARNING supervisor died; starting it again" in kept.errors
    assert f"pid={first.pid} signal=SIGKILL delay_s=0.0\n" in kept.errors
    kill(second.pid, signal.SIGSEGV)
    third = kept.next()
    assert third.names == second.names
    assert "signal=SIGSEGV delay_s=0.5\n" in kept.errors
    third.end(0)
    assert kept.wait() == 0


def test_what_is_put_again_is_kept_once(kept: Kept) -> None:
    """A supervisor that goes on, after a death or a `reexec`, puts again what it has, and there is no end to that."""
    first = kept.start().next()
    assert (
        first.do(
            "fds.update(file=memfd('x'), sock=os.dup(conn.fileno()), process=os.pidfd_open(os.getppid()))"
        )
        is None
    )
    again = "[keep(name, fds[name]) for name in ('file', 'sock', 'process')]"
    assert first.do(again) == first.do(again) == [True] * 3
    assert first.do("keep('process', os.pidfd_open(os.getpid()))")
    first.ready()
    kill(first.pid, signal.SIGKILL)
    second = kept.next()
    assert second.names == ["file", "sock", "process", "process"], "two processes are two"
    second.end(0)
    assert kept.wait() == 0


def test_what_a_supervisor_finds(kept: Kept, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # what is ignored above us must not be ignored below
    try:
        kept.start("--keep", f"quiesce.report={write}", "--watchdog", "12.5", pass_fds=[write])
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.close(write)
    found = kept.next().hello
    env = found["env"]
    assert found["ppid"] == kept.pid and found["sid"] == found["pid"], "a session of its own"
    assert (env["LISTEN_PID"], env["LISTEN_FDS"], env["LISTEN_FDNAMES"]) == (
        str(found["pid"]),
        "1",
        "quiesce.report",
    )
    assert (env["WATCHDOG_PID"], env["WATCHDOG_USEC"]) == (str(found["pid"]), "12500000")
    assert env["QUIESCE_KEEPER"] == str(kept.pid) and int(env["FDSTORE"]) >= 64
    assert set(map(int, found["fds"])) <= {0, 1, 2, 3}, "the keeper's own descriptors have leaked"
    assert set(found["mask"]) >= {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}, (
        "a signal could kill it before handlers stand"
    )
    assert found["defaults"]
    # The keeper and its supervisor are the only ones that hold it.
    kill(found["pid"], signal.SIGKILL)
    assert kept.next().do("os.write(3, b'told')") == 4
    assert os.read(read, 10) == b"told"
    os.close(read)


def test_without_a_watchdog_there_is_none_in_the_environment(kept: Kept) -> None:
    assert not {"WATCHDOG_PID", "WATCHDOG_USEC"} & set(kept.start("--watchdog", "0").next().hello["env"])


def test_the_store(kept: Kept) -> None:
    one = kept.start().next()
    one.do("[keep('rm', memfd('1')), keep('rm', memfd('2')), keep('stays', memfd('3'))]")
    one.do("say('FDSTOREREMOVE=1\\nFDNAME=rm')")
    # Its other end goes away: removed, unless it was asked not to look.
    one.do("[keep('hup', pipe()), keep('blind', pipe(), '\\nFDPOLL=0')]")
    one.do("[os.close(fd) for fd in kept if 'pipe' in os.readlink(f'/proc/self/fd/{fd}')]")
    # The same socket, or file, under the same name.
    one.do(
        "[keep('same', manager.fileno()), keep('same', manager.fileno()), keep('other', manager.fileno())]"
    )
    one.do("keep('bad:name', memfd('4'))")
    one.do("say('FDSTORE=1\\nFDNAME=several', memfd('5'), memfd('6'), memfd('7'))")
    assert one.do("barrier()")
    kill(one.pid, signal.SIGKILL)
    two = kept.next()
    assert sorted(two.names) == sorted(["stays", "blind", "same", "other", "stored", *["several"] * 3])
    assert two.do("[content(fd) for fd in fds['several']]") == ["5", "6", "7"]


@pytest.mark.slow
def test_two_hundred_descriptors(kept: Kept) -> None:
    one = kept.start().next()
    assert all(one.do("[keep(f'n{number}', memfd(str(number))) for number in range(200)]"))
    before = footprint(kept.pid).descriptors
    for _ in range(3):
        kill(one.pid, signal.SIGKILL)
        one = kept.next()
        assert one.do("all(content(fds[f'n{number}'][0]) == str(number) for number in range(200))")
        one.ready()
    assert footprint(kept.pid).descriptors == before


def test_a_full_store_is_said_and_takes_no_more(kept: Kept) -> None:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

    one = kept.start(preexec_fn=limit).next()
    assert one.hello["env"]["FDSTORE"] == "16"
    assert all(one.do("[keep(f'n{number}', memfd('x')) for number in range(20)]"))
    assert "descriptor not stored: the store is full limit=16" in kept.errors
    kill(one.pid, signal.SIGKILL)
    assert kept.next().names == [f"n{number}" for number in range(16)]


def test_strangers_are_not_heard(kept: Kept) -> None:
    one = kept.start().next()
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + one.hello["env"]["NOTIFY_SOCKET"][1:])
        for _ in range(3):
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=evil\nSTOPPING=1"], [write])
    os.close(write)
    assert select.select([read], [], [], 20)[0], "a descriptor of a rejected message is kept open"
    os.close(read)
    # Nor is its own child.
    one.do("os.waitpid(os.fork() or say('STOPPING=1') or os._exit(0), 0)")
    assert one.do("barrier()")
    one.ready()
    kill(one.pid, signal.SIGKILL)
    assert kept.next().names == []
    assert kept.errors.count("message of another process rejected") == 1, "one line, not one for each"


def test_a_stranger_cannot_stop_the_keeper_with_a_socket_that_lingers(kept: Kept) -> None:
    """socket(7) SO_LINGER: whoever closes the last descriptor waits until the peer has read everything."""
    one = kept.start().next()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(bytes(1 << 16))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        sock.connect("\0" + one.hello["env"]["NOTIFY_SOCKET"][1:])
        kill(kept.pid, signal.SIGSTOP)
        socket.send_fds(sock, [b"X=1"], [theirs.fileno()])
        theirs.close()  # the last descriptor is the keeper's
        kill(kept.pid, signal.SIGCONT)
        assert one.do("barrier()")


def test_rubbish_is_survived(kept: Kept) -> None:
    one = kept.start().next()
    one.do(
        "[say(text) for text in ('=', 'FDSTORE=1', '\\n\\n', 'EXIT_STATUS=x',"
        " 'WATCHDOG_USEC=', 'QUIESCE_ARGV=[', chr(233))]"
    )
    one.do("manager.send(b'\\xff' * 100000)")
    assert one.do("barrier()")
    assert footprint(kept.pid).descriptors == 7, "0 to 2, socket, pipe, pidfd"


def test_last_messages_of_a_killed_supervisor_count(kept: Kept) -> None:
    one = kept.start().next()
    one.ready()
    kill(kept.pid, signal.SIGSTOP)  # so that they lie unread when it dies
    one.do("say('FDSTORE=1\\nFDNAME=late', memfd('late')) or say('STATUS=x')")
    kill(one.pid, signal.SIGKILL)
    assert wait_gone(one.pid)
    kill(kept.pid, signal.SIGCONT)
    assert kept.next().names == ["late"]


def test_another_command_line_for_the_next_one(kept: Kept) -> None:
    one = kept.start().next()
    argv = json.dumps([*kept.command, "--new", "ünï\n\udcff"])
    one.do(f"say('QUIESCE_ARGV=' + {argv!r}) or barrier()")
    kill(one.pid, signal.SIGKILL)
    assert kept.next().hello["argv"] == ["--new", "ünï\n\udcff"]


def test_the_log_becomes_the_keepers_own_output(kept: Kept, tmp_path: Path) -> None:
    one = kept.start().next()
    one.do(
        f"keep('quiesce.log', os.open({str(tmp_path / 'new.log')!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND))"
    )
    kill(one.pid, signal.SIGKILL)
    two = kept.next()
    assert "supervisor died" in (tmp_path / "new.log").read_text() and kept.errors == ""
    assert two.hello["fds"]["1"] == two.hello["fds"]["2"] == str(tmp_path / "new.log")
    assert two.names == ["quiesce.log"]


@pytest.mark.slow
def test_nobody_reads_stderr(kept: Kept) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    one = kept.start(stderr=write).next()
    os.close(write)
    one.ready()
    for _ in range(2):
        kill(one.pid, signal.SIGKILL)
        one = kept.next()
    rest = b"x"
    while rest.strip(b"x") == b"":  # the pipe is emptied
        rest = os.read(read, 65536)
        if not select.select([read], [], [], 0)[0]:
            break
    kill(one.pid, signal.SIGKILL)
    kept.next()
    assert b"log lines lost count=2\n" in os.read(read, 65536)
    os.close(read)


def test_it_is_small(kept: Kept) -> None:
    one = kept.start().next()
    one.do("[keep(f'n{number}', memfd('')) for number in range(100)]")
    rollup = Path(f"/proc/{kept.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 10_000, rollup
    assert Path(f"/proc/{kept.pid}/comm").read_text() == "quiesce-keeper\n"


# Ends


def test_a_start_that_fails_is_not_tried_again(kept: Kept) -> None:
    kept.start().next().end(2)
    assert kept.wait() == 2
    kept.no_next()
    assert kept.errors == "", "it has said itself why"


def test_a_clean_end_is_the_end(kept: Kept) -> None:
    one = kept.start().next()
    one.ready()
    one.end(0)
    assert kept.wait() == 0
    kept.no_next()


def test_after_stopping_any_status_is_passed_on(kept: Kept) -> None:
    one = kept.start().next()
    one.ready()
    one.do("say('STOPPING=1')")
    one.end(7)
    assert kept.wait() == 7
    kept.no_next()


def test_who_has_served_is_started_again_whatever_its_status(kept: Kept) -> None:
    one = kept.start().next()
    one.ready()
    one.end(1)
    two = kept.next()
    assert f"pid={one.pid} status=1 delay_s=0.0\n" in kept.errors
    two.end(5)  # before its own READY: an earlier one has served
    three = kept.next()
    assert "status=5 delay_s=0.5\n" in kept.errors
    three.end(0)
    assert kept.wait() == 0


@pytest.mark.slow
def test_one_that_never_comes_to_ready_is_given_up(kept: Kept) -> None:
    kept.start()
    for _ in range(keeper.HOPELESS):
        kill(kept.next().pid, signal.SIGABRT)
    assert kept.wait() == 128 + signal.SIGABRT
    assert "supervisor died; not starting it again" in kept.errors
    kept.no_next()


def test_killed_while_stopping_it_stays_stopped_and_its_workers_are_waited_for(kept: Kept) -> None:
    one = kept.start().next()
    one.ready()
    worker = one.do("worker('channel', 0.3)")
    kill(kept.pid, signal.SIGTERM)
    assert one.do("signals(1)") == [signal.SIGTERM]
    with pidfd(worker) as fd:
        kill(one.pid, signal.SIGKILL)
        # 143 would say that TERM killed it; what ended it was SIGKILL.
        assert kept.wait() == 128 + signal.SIGKILL
        # It is no child of the keeper here (nobody made it a subreaper), but it must have seen the end.
        assert select.select([fd], [], [], 20)[0]
    kept.no_next()


def test_a_program_that_is_not_there(kept: Kept) -> None:
    kept.command = ["/nowhere/python", "-m", "x"]
    assert kept.start().wait() == 3
    assert "the supervisor cannot be started program=/nowhere/python" in kept.errors


def test_a_wrong_command_line() -> None:
    for argv in ([], ["--"], ["--keep"], ["--nonsense", "1", "--", "x"]):
        assert subprocess.run([sys.executable, keeper.__file__, *argv], capture_output=True).returncode == 2


# Signals


def test_each_signal_is_forwarded_once(kept: Kept) -> None:
    one = kept.start(start_new_session=True).next()
    one.ready()
    sent: list[int] = []
    for number in ("HUP", "INT", "QUIT", "USR1", "USR2", "TTIN", "TTOU", "WINCH", "TERM"):
        sent.append(signal.Signals[f"SIG{number}"])
        kill(kept.pid, sent[-1])
        assert one.do(f"signals({len(sent)})") == sent


def test_a_signal_to_nobody_is_for_the_next_one(kept: Kept) -> None:
    one = kept.start(start_new_session=True).next()
    one.ready()
    one.end(1)
    two = kept.next()
    two.end(1)
    kept.errors_with("delay_s=0.5")
    kill(kept.pid, signal.SIGHUP)
    kill(kept.pid, signal.SIGHUP)
    assert kept.next().do("signals(1)") == [signal.SIGHUP]


def test_term_while_nobody_runs_lets_the_workers_go(kept: Kept) -> None:
    one = kept.start(above=SUBREAPER).next()
    one.ready()
    worker = one.do("worker('channel', 0.5)")
    one.end(1)
    two = kept.next()
    assert two.names == ["channel"]
    two.end(1)
    kept.errors_with("delay_s=0.5")
    with pidfd(worker) as fd:
        kill(kept.pid, signal.SIGTERM)
        assert kept.wait() == 0
        assert select.select([fd], [], [], 0)[0], "it left before the worker had drained"
    kept.no_next()


def test_a_second_term_waits_for_nobody(kept: Kept) -> None:
    one = kept.start(above=SUBREAPER).next()
    one.ready()
    orphan = one.do("child(100)")
    one.end(1)
    kept.next().end(1)
    kept.errors_with("delay_s=0.5")
    kill(kept.pid, signal.SIGTERM)
    kept.errors_with("INFO stopping")
    assert not wait_gone(kept.pid, 0.2)
    kill(kept.pid, signal.SIGTERM)
    assert kept.wait() == 0
    assert read_proc(orphan) is not None


def test_a_start_that_hangs_can_be_ended(kept: Kept) -> None:
    one = kept.start().next()
    one.do("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) is None")
    for _ in range(3):
        assert one.do("0") == 0
        kill(kept.pid, signal.SIGINT)
        time.sleep(0.05)
    assert kept.wait() == 128 + signal.SIGKILL


# The watchdog


@pytest.mark.slow
def test_a_supervisor_that_is_silent_is_aborted(kept: Kept) -> None:
    one = kept.start("--watchdog", "0.4").next()
    assert not wait_gone(one.pid, 0.6), "it runs before READY"
    one.do("keep('a', memfd('x'))")
    one.ready()
    for _ in range(4):
        one.do("say('WATCHDOG=1') or time.sleep(0.2)")
    assert read_proc(one.pid) is not None
    two = kept.next()
    assert two.names == ["a"]
    assert f"supervisor does not answer: SIGABRT pid={one.pid} watchdog_s=0.4" in kept.errors
    assert f"pid={one.pid} signal=SIGABRT" in kept.errors


@pytest.mark.slow
def test_one_that_does_not_die_of_it_is_killed(kept: Kept) -> None:
    one = kept.start("--watchdog", "0.1").next()
    one.do("signal.signal(signal.SIGABRT, signal.SIG_IGN) and None")
    one.ready()
    kept.next()
    assert f"pid={one.pid} signal=SIGKILL" in kept.errors


def test_the_watchdog_can_be_pulled_and_turned_off(kept: Kept) -> None:
    one = kept.start("--watchdog", "0.3").next()
    one.do("say('WATCHDOG_USEC=0') or say('READY=1') or barrier()")
    assert not wait_gone(one.pid, 0.6)
    one.tell("say('WATCHDOG=trigger')")
    assert kept.next().pid != one.pid


@pytest.mark.slow
def test_a_keeper_that_was_stopped_itself_blames_nobody(kept: Kept) -> None:
    one = kept.start("--watchdog", "1").next()
    one.ready()
    kill(kept.pid, signal.SIGSTOP)
    time.sleep(2.2)
    kill(kept.pid, signal.SIGCONT)
    assert one.do("say('WATCHDOG=1') or barrier()")
    assert "SIGABRT" not in kept.errors


# A supervisor that runs already


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind("")
    return sock


@contextlib.contextmanager
def running_already(kept: Kept, *options: str) -> Iterator[tuple[Supervisor, subprocess.Popen[bytes]]]:
    with bound() as sock:
        env = {**os.environ, "NOTIFY_SOCKET": "@" + sock.getsockname()[1:].decode()}
        with subprocess.Popen(kept.command, env=env) as process:
            one = kept.next()
            one.do("say('FDSTORE=1\\nFDNAME=early', memfd('early'))")
            fd = sock.fileno()
            kept.start("--watch", str(one.pid), "--socket", str(fd), *options, pass_fds=[fd])
            sock.close()
            yield one, process
            process.kill()


def test_it_takes_over_a_supervisor_that_is_not_its_child(kept: Kept) -> None:
    with running_already(kept) as (one, process):
        assert one.do("keep('late', memfd('late'))")
        kill(kept.pid, signal.SIGUSR1)
        assert one.do("signals(1)") == [signal.SIGUSR1]
        process.kill()
        two = kept.next()
        assert two.names == ["early", "late"] and two.hello["ppid"] == kept.pid
        assert two.hello["env"]["NOTIFY_SOCKET"] == one.hello["env"]["NOTIFY_SOCKET"]
        two.ready()
        two.end(0)
        assert kept.wait() == 0


@pytest.mark.parametrize(
    ("words", "status"), [("STOPPING=1\\nEXIT_STATUS=3", 3), ("EXIT_STATUS=0", 0), ("STOPPING=1", 0)]
)
def test_it_leaves_with_the_status_that_was_said(kept: Kept, words: str, status: int) -> None:
    with running_already(kept) as (one, process):
        one.do(f"say('{words}')")
        process.kill()
        assert kept.wait() == status
        kept.no_next()


@pytest.mark.parametrize("names", [["early"], []])
def test_one_that_died_meanwhile_is_replaced(kept: Kept, names: list[str]) -> None:
    with bound() as sock:
        env = {**os.environ, "NOTIFY_SOCKET": "@" + sock.getsockname()[1:].decode()}
        process = subprocess.Popen(kept.command, env=env)
        one = kept.next()
        for name in names:
            one.do(f"say('FDSTORE=1\\nFDNAME={name}', memfd('early'))")
        process.kill()
        process.wait()
        kept.start("--watch", str(one.pid), "--socket", str(sock.fileno()), pass_fds=[sock.fileno()])
    assert kept.next().names == names


# Terminals and namespaces


@contextlib.contextmanager
def terminal(kept: Kept) -> Iterator[tuple[int, Supervisor]]:
    """A keeper in the foreground of a terminal, and the master's end of it."""
    master, slave = pty.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    kept.start(preexec_fn=take)
    os.close(slave)
    try:
        yield master, kept.next()
    finally:
        with contextlib.suppress(OSError):
            os.close(master)


def test_ctrl_c_reaches_the_supervisor_once(kept: Kept) -> None:
    with terminal(kept) as (master, one):
        os.write(master, b"\x03")
        assert one.do("signals(1)") == [signal.SIGINT]
        kill(kept.pid, signal.SIGUSR1)
        assert one.do("signals(2)") == [signal.SIGINT, signal.SIGUSR1]


def test_a_window_that_changes_its_size_quiesces_nobody(kept: Kept) -> None:
    with terminal(kept) as (master, one):
        termios.tcsetwinsize(master, (40, 100))
        kill(kept.pid, signal.SIGHUP)  # sent by hand, the terminal is there: it is the operator's
        assert one.do("signals(1)") == [signal.SIGHUP]


def test_a_terminal_that_is_gone_ends_it(kept: Kept) -> None:
    with terminal(kept) as (master, one):
        os.close(master)
        assert one.do("signals(1)") == [signal.SIGTERM]
        assert "the terminal is gone: stopping" in kept.errors


def test_nohup_is_respected(kept: Kept) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal(kept) as (master, one):
            os.close(master)
            time.sleep(keeper.HANGUP_S * 2)
            kill(kept.pid, signal.SIGHUP)  # now it can only be meant for us
            assert one.do("signals(1)") == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace here")
def test_as_process_1_it_reaps_orphans_forwards_and_passes_the_status_on(kept: Kept) -> None:
    kept.start(above=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    one = kept.next()
    assert (one.pid, one.hello["ppid"]) == (2, 1)
    one.do("keep('a', memfd('one'))")
    one.ready()
    orphan = one.do("grandchild()")
    while one.do(f"os.path.exists('/proc/{orphan}')"):
        pass  # it is reaped, or this test times out
    init = next(proc.pid for proc in descendants(kept.pid).values() if proc.parent == kept.pid)
    kill(init, signal.SIGTERM)  # without a handler, process 1 would not even notice
    assert one.do("signals(1)") == [signal.SIGTERM]
    one.do("say('STOPPING=1')")
    one.end(9)
    assert kept.wait() == 9


def test_zombies_of_others_are_reaped(kept: Kept) -> None:
    one = kept.start(above=SUBREAPER).next()
    one.ready()
    worker = one.do("child(0.3)")
    kill(one.pid, signal.SIGKILL)
    kept.next()
    proc = read_proc(worker)
    assert proc is None or proc.parent == kept.pid
    deadline = time.monotonic() + 20
    while read_proc(worker) is not None:
        assert time.monotonic() < deadline, "a zombie is left"
