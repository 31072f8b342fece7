"""Workers on one listener: each takes its share, and nobody waits for one that cannot take."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.scoreboard import Field, Scoreboard
from quiesce.worker.core.share import MOST_OPEN, NEVER, PATIENCE_S
from quiesce.worker.net import gate as module
from quiesce.worker.net.counters import Counters
from quiesce.worker.net.gate import Gate, Neighbours
from unit.worker.fake_supervisor import FakeSupervisor, ask
from wire.serving import PATIENCE_S as LONG_S
from wire.serving import Served, read_reply, serving
from wire.test_answers import GET, hello

pytestmark = pytest.mark.slow

APP = """\
import os
from quiesce import Response

def app(request):
    if request.path == "/block":
        with open("pipe") as pipe:
            pipe.read()
    return Response(str(os.getpid()))
"""
OWN, OTHER = 3, 5  # slots


# -- what a worker sees of the others --------------------------------------------------------


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    gc.collect()  # whatever has looked at it has let go
    board.close()


def neighbour(board: Scoreboard, number: int = OTHER, **fields: int) -> memoryview:
    """One that accepts, with a loop that has turned just now, and no connection."""
    slot = board.slot(number)
    slot[Field.ACCEPTING], slot[Field.TURN_NS] = 1, time.monotonic_ns()
    for name, value in fields.items():
        slot[Field[name]] = value
    return slot


def test_who_accepts_and_turns_counts(board: Scoreboard) -> None:
    seen = Neighbours(board, OWN)
    assert seen.open() == []
    neighbour(board, OWN, CONN_OPEN=50)
    neighbour(board, 4, CONN_OPEN=7)
    neighbour(board, 6, CONN_OPEN=9)  # has come since the last heartbeat
    assert seen.open() == [7, 9]


@pytest.mark.parametrize(
    "fields",
    [
        {"ACCEPTING": 0},
        {"ACCEPTING": 2**64 - 1},
        {"TURN_NS": 0},
        {"TURN_NS": 2**64 - 1},
        {"CONN_OPEN": 2**64 - 1},
        {"CONN_OPEN": MOST_OPEN + 1},
    ],
    ids=str,
)
def test_who_does_not_accept_and_what_makes_no_sense_does_not_count(
    board: Scoreboard, fields: dict[str, int]
) -> None:
    neighbour(board, **fields)
    neighbour(board, OWN)
    neighbour(board, 6, CONN_OPEN=4)
    assert Neighbours(board, OWN).open() == [4]


def test_whose_loop_has_not_turned_for_half_a_second_does_not_count(board: Scoreboard) -> None:
    slot = neighbour(board, CONN_OPEN=4)
    slot[Field.TURN_NS] = time.monotonic_ns() - 2 * module._FRESH_NS
    assert Neighbours(board, OWN).open() == []


def test_every_slot_may_be_in_use(board: Scoreboard) -> None:
    made = gate(board, 0)
    neighbour(board, 1023, CONN_OPEN=8, ACCEPTED=30)
    neighbour(board, OWN, ACCEPTED=2**63)
    made.beat()
    seen = made.neighbours
    assert seen is not None
    assert seen.open() == [8] and seen.accepted() == 30


def gate(board: Scoreboard, own: int) -> Gate:
    made = Gate(Counters(board.slot(OWN)), Neighbours(board, OWN))
    made.counters.connection(own, 0)
    neighbour(board, OWN)
    return made


def test_above_the_mean_and_a_little(board: Scoreboard) -> None:
    neighbour(board, CONN_OPEN=100)
    made = gate(board, 108)
    assert not made.is_above() and made.limit == 109
    made.counters.connection(4, 0)
    assert made.is_above()
    board.slot(OTHER)[Field.CONN_OPEN] = 120
    assert not made.is_above()


def test_no_scoreboard_no_gate() -> None:
    made = Gate(Counters(None))
    made.counters.connection(10**6, 0)
    made.beat()
    assert made.limit == NEVER and not made.is_above() and made.may_take()


@pytest.mark.parametrize("kind", ["a connection for each request", "long-lived", "all leave and come back"])
def test_clients_that_connect_for_each_request_are_not_gated(board: Scoreboard, kind: str) -> None:
    neighbour(board)
    made = gate(board, 0)
    slot = made.counters.slot

    def come(count: int) -> None:
        slot[Field.ACCEPTED] += count
        made.counters.connection(count, 0)

    come(64)
    for _ in range(3):
        if kind == "a connection for each request":
            for _ in range(40):
                made.counters.connection(-64, 0)
                come(64)
        made.beat()
    if kind == "all leave and come back":
        made.counters.connection(-64, 0)
        come(64)
        made.beat()
    board.slot(OTHER)[Field.TURN_NS] = time.monotonic_ns()
    assert made.is_above() is (kind != "a connection for each request")
    if kind == "a connection for each request":
        made.beat()
        made.beat()  # they keep them open now
        board.slot(OTHER)[Field.TURN_NS] = time.monotonic_ns()
        assert made.is_above()


@pytest.mark.parametrize(("times", "above"), [(1, True), (3, False)])
def test_it_is_known_before_the_next_heartbeat(board: Scoreboard, times: int, above: bool) -> None:
    """All leave and come back: once, or for each request."""
    neighbour(board)
    made = gate(board, 0)
    slot = made.counters.slot
    for time_ in range(times + 1):
        if time_:
            made.counters.connection(-300, 0)
        for _ in range(10):  # one of them looks, now and then
            slot[Field.ACCEPTED] += 30
            made.counters.connection(30, 0)
            made.is_above()
    assert made.is_above() is above


@pytest.mark.parametrize("ended", [0, 300])
def test_handed_over_is_not_ended(board: Scoreboard, ended: int) -> None:
    """And who comes by a lane has come, so that those who end are not missed."""
    made = gate(board, 200)
    slot = made.counters.slot
    slot[Field.ACCEPTED] = 200 + ended
    made.beat()
    slot[Field.HANDED_OUT] += 600
    slot[Field.HANDED_IN] += 600
    made.beat()
    neighbour(board)
    assert made.is_above() is not bool(ended)


def test_a_lane_is_for_who_has_its_share(board: Scoreboard) -> None:
    """As it is now, and as it was a moment ago."""
    slot = neighbour(board, CONN_OPEN=40)
    made = gate(board, 10)
    assert made.may_take()
    made.counters.connection(90, 0)
    assert not made.may_take() and not made.may_take()
    slot[Field.CONN_OPEN], slot[Field.TURN_NS] = 100, time.monotonic_ns()
    assert made.may_take()


# -- what it does about it ---------------------------------------------------------------------


@contextlib.contextmanager
def served_beside_a_ghost(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A neighbour without a connection that seems to turn and to accept, and takes nobody, ever."""
    monkeypatch.setattr(module, "_FRESH_NS", 1 << 62)
    neighbour(board)
    with serving(hello, slot=board.slot(OWN), neighbours=Neighbours(board, OWN)) as served:
        yield served


def test_what_nobody_takes_is_taken(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_beside_a_ghost(board, monkeypatch) as served:
        clients = [served.connect() for _ in range(120)]
        for sock in clients:
            sock.sendall(GET)
        assert [read_reply(sock).status for sock in clients] == [200] * 120
        assert board.slot(OWN)[Field.ACCEPTING] == 1  # gated is accepting


def test_above_the_limit_the_listener_is_not_watched_unless_nobody_comes(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_beside_a_ghost(board, monkeypatch) as served:
        acceptor = served.daemon._acceptor
        listener = acceptor.listeners["http"]
        held: list[int] = []
        hold = acceptor._hold_back

        def hold_back(one: object) -> None:
            hold(one)  # type: ignore[arg-type]
            assert not listener.watched
            held.append(served.daemon.open)

        acceptor._hold_back = hold_back  # type: ignore[method-assign, assignment]
        for _ in range(12):
            sock = served.connect()
            sock.sendall(GET)
            read_reply(sock)
        assert held[0] == 9  # of two workers, with 0 and n: n > n / 2 + 4
        # A gate that is closed costs nothing while nobody comes.
        served.until(lambda: listener.watched)
        assert served.daemon.gate.is_above()
        # ... and is as closed as before.
        before = len(held)
        sock = served.connect()
        sock.sendall(GET)
        assert read_reply(sock).status == 200
        assert len(held) > before
        # The mean rises: accept as before.
        board.slot(OTHER)[Field.CONN_OPEN] = 100
        served.until(lambda: listener.watched)
        before = len(held)
        for _ in range(20):
            sock = served.connect()
            sock.sendall(GET)
            read_reply(sock)
        assert len(held) == before


def test_a_gated_worker_that_is_quiesced_accepts_nobody(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_beside_a_ghost(board, monkeypatch) as served:
        for _ in range(12):
            sock = served.connect()
            sock.sendall(GET)
            read_reply(sock)
        waiting = served.connect()
        served.do(served.daemon.quiesce)
        opened = served.daemon.open
        assert opened <= 13 and board.slot(OWN)[Field.ACCEPTING] == 0
        fact = served.loop.now() + 10 * PATIENCE_S
        served.until(lambda: served.loop.now() > fact)
        assert served.daemon.open == opened
        served.do(served.daemon.resume)
        waiting.sendall(GET)
        assert read_reply(waiting).status == 200 and board.slot(OWN)[Field.ACCEPTING] == 1


def test_another_scoreboard(board: Scoreboard) -> None:
    """One that took over made a new one: figures and neighbours are there now."""
    other = Scoreboard.create()
    with serving(hello, slot=board.slot(OWN), neighbours=Neighbours(board, OWN)) as served:
        served.do(lambda: served.daemon.use_slot(other.slot(OWN), Neighbours(other, OWN)))
        assert other.slot(OWN)[Field.ACCEPTING] == 1
        neighbour(other, CONN_OPEN=70)
        assert served.daemon.gate.neighbours is not None
        assert served.daemon.gate.neighbours.open() == [70]
    other.close()


def test_who_rests_for_want_of_descriptors_does_not_count(board: Scoreboard) -> None:
    with serving(hello, slot=board.slot(OWN)) as served:
        seen = Neighbours(board, OTHER)
        served.until(lambda: board.slot(OWN)[Field.TURN_NS] > 0)
        assert seen.open() == [0]
        rest = served.daemon._acceptor._rest
        assert served.do(lambda: (rest(OSError(24, "planted")), seen.open())[1]) == []
        served.until(lambda: seen.open() == [0])


# -- real workers --------------------------------------------------------------------------------


class Team:
    """Real worker processes that accept on one listener and share a scoreboard."""

    def __init__(self, directory: Path, count: int, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        (directory / "team_app.py").write_text(APP)
        os.mkfifo(directory / "pipe")
        self.board = Scoreboard.create()
        stack.callback(self.board.close)
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        self.workers = [stack.enter_context(FakeSupervisor(directory)) for _ in range(count)]
        for number, worker in enumerate(self.workers):
            worker.expect(msg.Hello)
            worker.send(msg.UseScoreboard(number), [self.board.fd])
            worker.send(msg.Listen(["http"]), [self.listener.fileno()])
            worker.configure("team_app:app", interface="native", threads=1)
            worker.expect(msg.Ready)
            worker.accept()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=LONG_S)

    def figure(self, number: int, field: Field) -> int:
        return self.board.slot(number)[field]

    def wait(self, fact: Callable[[], bool]) -> None:
        """For a fact that is in shared memory, or of the kernel's; the time only bounds a failing test."""
        until = time.monotonic() + LONG_S
        while not fact():
            assert time.monotonic() < until, "the fact never held"
            time.sleep(0.002)


@contextlib.contextmanager
def team(directory: Path, count: int) -> Iterator[Team]:
    with contextlib.ExitStack() as stack:
        yield Team(directory, count, stack)


def stop(team: Team, directory: Path) -> int:
    worker = team.workers[0]
    worker.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
    return 0


def kill(team: Team, directory: Path) -> int:
    worker = team.workers[0]
    worker.signal(signal.SIGKILL)
    worker.wait()  # nobody clears its slot: the supervisor may be dead too
    return 0


def block(team: Team, directory: Path) -> int:
    sock = team.stack.enter_context(team.connect())
    sock.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
    team.stack.enter_context((directory / "pipe").open("w"))  # returns when somebody reads
    return next(i for i in range(2) if team.figure(i, Field.IN_REQUEST_SINCE_NS))


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [stop, kill, block])
def test_the_other_worker_accepts_everything(trouble: Callable[[Team, Path], int], tmp_path: Path) -> None:
    with team(tmp_path, 2) as made:
        number = trouble(made, tmp_path)
        other = made.workers[1 - number]
        with contextlib.ExitStack() as sockets:
            for count in range(200):
                sock = sockets.enter_context(made.connect())
                # The neighbour is in trouble still, for the whole time: nobody ends it but the test.
                assert ask(sock).body == str(other.process.pid).encode(), count
            assert made.figure(number, Field.ACCEPTED) <= 1
            burst = [sockets.enter_context(made.connect()) for _ in range(200)]
            assert {ask(sock).body for sock in burst} == {str(other.process.pid).encode()}


def share(team: Team, kind: str) -> float:
    """max/mean of 1,000 connections, by who answers on each."""
    with contextlib.ExitStack() as sockets:
        owners: Counter[bytes] = Counter()
        opened = []
        for _ in range(1000):
            sock = sockets.enter_context(team.connect())
            opened.append(sock)
            if kind == "in sequence":
                owners[ask(sock).body] += 1
        if kind == "in a burst":
            owners.update(ask(sock).body for sock in opened)
    return max(owners.values()) * len(team.workers) / 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["in sequence", "in a burst"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_thousand_connections_are_shared(count: int, kind: str, tmp_path: Path) -> None:
    """The median of three: a worker that the machine keeps from running is relieved, rightly."""
    shares = []
    for number in range(3):  # others each time: clients that come and go would not be gated
        directory = tmp_path / str(number)
        directory.mkdir()
        with team(directory, count) as made:
            shares.append(share(made, kind))
    assert statistics.median(shares) <= 1.1, shares


@pytest.mark.slow
def test_a_quiesced_neighbour_does_not_count(tmp_path: Path) -> None:
    with team(tmp_path, 2) as made, contextlib.ExitStack() as sockets:
        first, second = made.workers
        assert [made.figure(i, Field.ACCEPTING) for i in range(2)] == [1, 1]
        first.expect(msg.Quiesced, re=first.send(msg.Quiesce()))
        assert [made.figure(i, Field.ACCEPTING) for i in range(2)] == [0, 1]
        assert Neighbours(made.board, 1).open() == []
        for _ in range(40):
            assert ask(sockets.enter_context(made.connect())).body == str(second.process.pid).encode()
        first.expect(msg.Resumed, re=first.send(msg.Resume()))
        assert [made.figure(i, Field.ACCEPTING) for i in range(2)] == [1, 1]
        made.wait(lambda: Neighbours(made.board, 1).open() == [0])
        second.send(msg.Drain(60.0))
        made.wait(lambda: made.figure(1, Field.ACCEPTING) == 0)
