"""A command whose supervisor is killed: who takes over is asked the same, and nobody is asked for ever."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.supervisor import control_client
from quiesce.supervisor.control_client import LostConnection, NoInstance, ask
from quiesce.supervisor.control_protocol import Progress, Result, decode_request, encode_reply
from quiesce.supervisor.places import Places

WENT_AWAY = "the supervisor went away; waiting for the next one to take over"
Play = Callable[[socket.socket, bytes], None]


class Stage:
    """The files of an instance, and supervisors that play on its control socket one after the other."""

    def __init__(self, folder: Path) -> None:
        self.places = Places("shop", str(folder), str(folder / "state"))
        self.lines: list[bytes] = []
        self.told: list[str] = []
        self.failed: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._listeners: list[socket.socket] = []
        self._stack = contextlib.ExitStack()

    def hold_lock(self) -> None:
        """As the descriptor store does, whoever dies."""
        fd = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)

    def listen(self, backlog: int = 32) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        self._listeners.append(sock)
        sock.bind(self.places.control_sock)
        sock.listen(backlog)
        return sock

    def unlink(self) -> None:
        os.unlink(self.places.control_sock)

    def play(self, listener: socket.socket, *plays: Play) -> None:
        """Each of ``plays`` is one supervisor: it is given one connection and its first line, then dies."""

        def run() -> None:
            try:
                for play in plays:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return  # the test is over
                    with sock, sock.makefile("rb") as file:
                        line = file.readline()
                        self.lines.append(line)
                        play(sock, line)
            except BaseException as exc:
                self.failed.append(exc)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def ask(self, command: str = "upgrade", timeout_s: float | None = None) -> Result:
        return ask(self.places, command, {"label": "x"}, lambda item: self.told.append(item.text), timeout_s)

    def close(self) -> None:
        for sock in self._listeners:
            with contextlib.suppress(OSError):  # closed by a play
                sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for sock in self._listeners:
            sock.close()
        self._stack.close()
        assert self.failed == []


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(control_client, "AGAIN_S", 0.02)
    made = Stage(tmp_path)
    yield made
    made.close()


def dies(_sock: socket.socket, _line: bytes) -> None:
    """SIGKILL."""


def says(*texts: str) -> Play:
    def play(sock: socket.socket, line: bytes) -> None:
        for text in texts:
            sock.sendall(encode_reply(decode_request(line).id, Progress(text)))

    return play


def answers(text: str, code: int = 0) -> Play:
    return lambda sock, line: sock.sendall(encode_reply(decode_request(line).id, Result(code, text)))


def breaks_off(sock: socket.socket, line: bytes) -> None:
    """Killed in the middle of its answer."""
    sock.sendall(encode_reply(decode_request(line).id, Result(0, "r2 serves"))[:-9])


# Somebody takes over


def test_the_next_supervisor_is_asked_the_same(stage: Stage) -> None:
    stage.hold_lock()
    stage.play(stage.listen(), says("starting r2"), says("probing r2"), breaks_off, answers("r2 serves"))
    assert stage.ask() == Result(0, "r2 serves")
    assert len(stage.lines) == 4 and len(set(stage.lines)) == 1
    request = json.loads(stage.lines[0])
    assert request["command"] == "upgrade" and request["args"] == {"label": "x"} and len(request["id"]) == 32
    assert stage.told == ["starting r2", WENT_AWAY, "probing r2"], "once"


def test_two_requests_have_two_ids(stage: Stage) -> None:
    stage.play(stage.listen(), answers(""), answers(""))
    stage.ask()
    stage.ask()
    assert len({json.loads(line)["id"] for line in stage.lines}) == 2


def test_it_waits_in_the_queue_while_nobody_accepts(stage: Stage) -> None:
    """The listener survives in the descriptor store: connect() succeeds at once, and then it is a wait."""
    stage.hold_lock()
    listener = stage.listen()
    stage.play(listener, dies)
    later = threading.Timer(0.5, lambda: stage.play(listener, answers("stopped")))
    later.start()
    assert stage.ask("stop") == Result(0, "stopped")
    later.join()
    assert stage.told == [WENT_AWAY] and len(set(stage.lines)) == 1


@pytest.mark.slow
def test_the_lock_is_held_and_a_second_later_somebody_listens(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "REFUSED_S", 20)
    stage.hold_lock()
    first = stage.listen()

    def gone(_sock: socket.socket, _line: bytes) -> None:
        stage.unlink()
        first.close()

    stage.play(first, gone)
    later = threading.Timer(1.0, lambda: stage.play(stage.listen(), answers("r2 was rolled back", 1)))
    later.start()
    assert stage.ask() == Result(1, "r2 was rolled back")
    later.join()
    assert stage.lines[0] == stage.lines[1] and stage.told == [WENT_AWAY]


def test_a_socket_that_is_refused_for_a_second(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "REFUSED_S", 20)
    stage.hold_lock()
    first = stage.listen()
    stage.play(first, lambda sock, line: first.close())

    def listen_again() -> None:
        stage.unlink()
        stage.play(stage.listen(), answers("done"))

    later = threading.Timer(0.5, listen_again)
    later.start()
    assert stage.ask() == Result(0, "done")
    later.join()


@pytest.mark.slow
def test_a_supervisor_that_has_read_us_may_be_silent_for_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be draining.  What limits the wait is that nobody has read the request."""
    monkeypatch.setattr(control_client, "TAKE_OVER_S", 0.3)
    stage.hold_lock()
    silent = threading.Event()

    def long(sock: socket.socket, line: bytes) -> None:
        silent.wait(0.8)
        answers("r2 serves")(sock, line)

    stage.play(stage.listen(), dies, long)
    assert stage.ask() == Result(0, "r2 serves")


@pytest.mark.parametrize("when", ["first", "again"])
def test_a_full_queue_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """33 commands wait for the next supervisor; connect() says EAGAIN at once."""
    monkeypatch.setattr(control_client, "_QUEUE_FULL_S", 20)
    stage.hold_lock()
    listener = stage.listen(0)
    others: list[socket.socket] = []

    def fill() -> None:
        others.append(control_client.connect(stage.places.control_sock))
        others[-1].sendall(b"another\n")

    if when == "first":
        fill()
    else:
        stage.play(listener, lambda sock, line: fill())
    later = threading.Timer(0.5, lambda: stage.play(listener, dies, answers("done")))
    later.start()
    assert stage.ask("status", 20.0) == Result(0, "done")
    later.join()
    for sock in others:
        sock.close()


# Nobody does


@pytest.mark.parametrize("command", ["upgrade", "stop"])
@pytest.mark.parametrize("left", ["a listener", "a file", "nothing"])
def test_nobody_comes_back_where_nobody_holds_the_lock(stage: Stage, command: str, left: str) -> None:
    listener = stage.listen()
    Path(stage.places.lock).touch()

    def last(_sock: socket.socket, _line: bytes) -> None:
        if left != "a listener":
            listener.close()
        if left == "nothing":
            stage.unlink()

    stage.play(listener, last)
    with pytest.raises(LostConnection, match="the supervisor went away before") as caught:
        stage.ask(command)
    assert stage.told == [], "it did not wait"
    if command == "stop":
        assert "no other has taken over" in str(caught.value)


def test_inside_execreload_nobody_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd starts the next supervisor when its reload job has ended, and that is us."""
    monkeypatch.setenv("MAINPID", "1")
    stage.hold_lock()
    stage.play(stage.listen(), dies)
    with pytest.raises(LostConnection, match="before upgrade was decided"):
        stage.ask()
    assert stage.told == []


def test_somebody_holds_the_lock_and_nobody_listens(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "REFUSED_S", 0.5)
    stage.hold_lock()
    listener = stage.listen()
    stage.play(listener, lambda sock, line: listener.close())
    began = time.monotonic()
    with pytest.raises(LostConnection, match="before upgrade was decided"):
        stage.ask()
    assert time.monotonic() - began >= 0.5 and stage.told == [WENT_AWAY]


def test_nobody_reads_the_request(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "TAKE_OVER_S", 0.5)
    stage.hold_lock()
    stage.play(stage.listen(), dies)
    with pytest.raises(LostConnection, match=r"no other has taken over within 0\.5 s"):
        stage.ask()


def test_every_supervisor_dies_over_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten a second, no more, and not for ever."""
    monkeypatch.setattr(control_client, "TAKE_OVER_S", 0.55)
    monkeypatch.setattr(control_client, "AGAIN_S", 0.1)
    stage.hold_lock()
    stage.play(stage.listen(), *[dies] * 50)
    with pytest.raises(LostConnection, match="no other has taken over"):
        stage.ask()
    assert 2 <= len(stage.lines) <= 9


@pytest.mark.slow
def test_words_prove_life_and_give_time_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "TAKE_OVER_S", 1.0)
    monkeypatch.setattr(control_client, "AGAIN_S", 0.1)
    stage.hold_lock()
    plays = [says("draining")] * 12  # at 0.1 s each, longer than the limit
    stage.play(stage.listen(), *plays, answers("done"))
    assert stage.ask() == Result(0, "done") and stage.told.count("draining") == 12


# Questions


def test_a_question_is_asked_once_more(stage: Stage) -> None:
    stage.hold_lock()
    stage.play(stage.listen(), dies, answers("r1 serves"), dies, dies)
    assert stage.ask("status", 10.0) == Result(0, "r1 serves")
    with pytest.raises(LostConnection, match="before status was decided"):
        stage.ask("status", 10.0)
    assert len(stage.lines) == 4


def test_a_question_does_not_wait_longer_for_two(stage: Stage) -> None:
    stage.hold_lock()
    stage.play(stage.listen(), dies)
    began = time.monotonic()
    with pytest.raises(LostConnection, match="does not answer"):
        stage.ask("status", 0.5)
    assert 0.4 <= time.monotonic() - began < 20


@pytest.mark.slow
def test_only_silence_is_limited(stage: Stage) -> None:
    def slowly(sock: socket.socket, line: bytes) -> None:
        for _ in range(4):
            threading.Event().wait(0.3)
            says("looking")(sock, line)
        answers("r1 serves")(sock, line)

    stage.play(stage.listen(), slowly)
    assert stage.ask("status", 1.0) == Result(0, "r1 serves") and stage.told == ["looking"] * 4


def test_no_instance_is_no_lost_connection(stage: Stage) -> None:
    stage.hold_lock()
    with pytest.raises(NoInstance):
        stage.ask()
    assert stage.told == []


# The lock


def test_who_holds_the_lock_is_seen_and_not_disturbed(stage: Stage) -> None:
    assert not control_client.is_held(stage.places.lock)
    Path(stage.places.lock).touch(0o444)
    assert not control_client.is_held(stage.places.lock)
    with open(stage.places.lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert control_client.is_held(stage.places.lock)
    assert not control_client.is_held(stage.places.lock)
    before = set(os.listdir("/proc/self/fd"))
    control_client.is_held(stage.places.lock)
    assert set(os.listdir("/proc/self/fd")) == before
