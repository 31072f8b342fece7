"""One worker as the supervisor sees it: a real process, a real channel, whose other end the test speaks."""

import array
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel, make_pair
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import Field, Scoreboard
from quiesce.supervisor import worker_deadline, worker_lanes
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.config import Listen
from quiesce.supervisor.core import lanes
from quiesce.supervisor.core.lifecycle import Event, State
from quiesce.supervisor.health import health_rule
from quiesce.supervisor.lanes import Lanes, Named
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.worker_link import Worker
from quiesce.supervisor.worker_parts import Parts, Terms


class Store:
    """A descriptor store that answers when the test says so."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.waits = False
        self.waiting: list[Callable[[bool], None]] = []

    def put(self, name: str, fd: int) -> None:
        os.fstat(fd)  # open, or the next supervisor gets nothing
        self.names.append(name)

    def drop(self, name: str) -> None:
        self.names.remove(name)

    def sync(self, then: Callable[[bool], None]) -> None:
        self.waiting.append(then)
        if not self.waits:
            self.answer()

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then(True)


class Stage:
    """A supervisor's surroundings, and the worker's end of the channel in the test's hand."""

    def __init__(self, start_timeout_s: float = 30.0) -> None:
        self.loop = Loop()
        self.out = os.memfd_create("log")
        self.log = Log(self.out, "debug", journal=False)
        self.listeners = Listeners()
        self.listeners.open((Listen("http", "127.0.0.1:0"), Listen("admin", "127.0.0.1:0")), [])
        self.scoreboard = Scoreboard.create()
        self.store = Store()
        self.lanes = Lanes(self.store, self.log)
        self.lane = self.lanes.make("r1")
        assert self.lane is not None
        self.readers = (2, 2)  # the newest record that each of those who read the lane reads
        self.capture = Capture()
        ours, theirs = make_pair()
        self.theirs = theirs
        # It lives until its standard input closes: nothing else can end it but a signal.
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], stdin=subprocess.PIPE
        )
        self.saved: list[str] = []
        parts = Parts(
            "0" * 16,
            self.process.pid,
            os.pidfd_open(self.process.pid),
            Channel(ours, max_fds=0),
            self.capture,
        )
        configure = msg.Configure("shop", "r1", "", "r1/1", "shop", "auto", "/", 1, start_timeout_s, 1.0)
        terms = Terms(configure, health_rule("/healthz", "h", {}, 1, ()), 5.0)
        self.terms = terms
        self.worker = Worker(self, parts, 3, 1, terms, self.lane.key)
        self.seen: list[State] = []
        self.worker.watcher = lambda worker, old, new: self.seen.append(new)
        self.channel = Channel(theirs)

    def save(self) -> None:
        """As the crew does: written down before it is done."""
        self.saved.append(self.worker.state.value if hasattr(self, "worker") else "")

    def named(self, key: str, writer: str) -> Named | None:
        """As the crew says it: a lane, if somebody reads it."""
        assert writer == "r1/1"
        lane, terms = self.lanes.get(key), lanes.terms(self.readers)
        return Named(lane, terms) if lane is not None and terms is not None else None

    def save_soon(self) -> None:
        """For what is no order."""

    def until(self, fact: Callable[[], Any]) -> None:
        """Turn the loop until something is so."""
        guard = self.loop.call_at(self.loop.now() + 20, lambda: None)
        while not fact():
            assert guard.pending, f"it never came; state {self.worker.state}, log:\n{self.text()}"
            self.loop.turn()
        guard.cancel()

    def say(self, message: msg.Message, state: State) -> None:
        self.channel.send(message)
        self.until(lambda: self.worker.state is state)

    def raw(self, data: bytes) -> None:
        self.theirs.send(data)

    def heard(self) -> list[str]:
        words = []
        while (incoming := self.channel.receive()) is not None:
            words.append(msg.WORD_OF[type(incoming.message)])
            for fd in incoming.fds:
                os.close(fd)
        return words

    def up(self) -> None:
        """To work."""
        self.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
        self.say(msg.Ready("wsgi"), State.READY)
        self.worker.ask(Event.ACCEPT_ASKED)
        self.say(msg.Accepting(), State.ACCEPTING)
        self.heard()

    def end_process(self) -> None:
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def text(self) -> str:
        return os.pread(self.out, 1 << 20, 0).decode()

    def close(self) -> None:
        self.end_process()
        self.until(lambda: self.worker.state is State.REAPED)
        self.process.returncode = 0  # reaped by the worker's own pidfd
        self.channel.close()
        self.listeners.close()
        self.lanes.close()
        self.scoreboard.close()
        self.loop.close()
        os.close(self.out)


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = len(os.listdir("/proc/self/fd"))
    it = Stage()
    yield it
    it.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"


def test_hello_is_answered_with_listeners_slot_and_configuration(stage: Stage) -> None:
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    listen = stage.channel.receive()
    assert listen is not None and listen.message == msg.Listen(["http", "admin"]) and len(listen.fds) == 2
    for fd, listener in zip(listen.fds, stage.listeners, strict=True):
        with socket.socket(fileno=fd) as sock:
            assert sock.getsockname() == listener.sock.getsockname()
            assert not os.get_inheritable(fd)
    board = stage.channel.receive()
    assert board is not None and board.message == msg.UseScoreboard(3)
    theirs = Scoreboard.attach(board.fds[0])
    theirs.slot(3)[Field.REQUESTS] = 7
    assert stage.worker.counter(Field.REQUESTS) == 7
    theirs.close()
    configure = stage.channel.receive()
    assert configure is not None and isinstance(configure.message, msg.Configure)


def test_an_unknown_message_is_said_and_skipped(stage: Stage) -> None:
    stage.raw(json.dumps({"v": 2, "type": "from-the-future", "seq": 1, "what": 1}).encode())
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    assert "from-the-future" in stage.text()


def test_unknown_fields_of_a_newer_worker_are_dropped(stage: Stage) -> None:
    hello = {
        "v": 2,
        "type": "hello",
        "seq": 1,
        "protocol": 2,
        "oldest_protocol": 1,
        "version": "9",
        "python": "3",
    }
    stage.raw(json.dumps({**hello, "pid": 1, "mood": "good"}).encode())
    stage.until(lambda: stage.worker.state is State.LOADING)


@pytest.mark.parametrize(
    "packet",
    [
        b"garbage",
        b"[]",
        json.dumps({"v": 0, "type": "hello", "seq": 1}).encode(),
        b"x" * 100_000,
        b'{"v":1,"type":"hello","seq":1}',
    ],
    ids=["not JSON", "no object", "an older protocol", "too large", "fields are missing"],
)
def test_nonsense_ends_the_channel_and_not_the_supervisor(stage: Stage, packet: bytes) -> None:
    stage.raw(packet)
    stage.until(lambda: stage.worker.state is State.LEAVING)
    assert "worker talks nonsense" in stage.text()


def test_descriptors_from_a_worker_are_never_installed(stage: Stage) -> None:
    data = json.dumps({"v": 1, "type": "unheard-of", "seq": 1, "fds": 2}).encode()
    reader, writer = os.pipe()
    stage.theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer, writer]))])
    os.close(writer)
    stage.until(lambda: stage.worker.state is State.LEAVING)
    assert os.read(reader, 1) == b"", "every copy of the write end is closed"
    os.close(reader)


def test_a_worker_that_announces_descriptors_it_does_not_send_is_not_believed(stage: Stage) -> None:
    stage.raw(json.dumps({"v": 1, "type": "ready", "seq": 1, "fds": 1, "interface": "wsgi"}).encode())
    stage.until(lambda: stage.worker.state is State.LEAVING)


def test_a_word_out_of_turn_changes_nothing(stage: Stage) -> None:
    stage.channel.send(msg.Accepting())
    stage.until(lambda: "spoke out of turn" in stage.text())
    assert stage.worker.state is State.SPAWNED
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)


def test_what_it_said_just_before_it_died_is_heard(stage: Stage) -> None:
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    os.write(stage.capture.fd, b"Traceback: the whole story\n")
    stage.channel.send(msg.Failed("the application is broken", "Traceback: the whole story"))
    stage.channel.close()
    stage.end_process()
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert stage.worker.failure == "the application is broken"
    assert "the whole story" in stage.worker.detail
    assert "the whole story" in stage.text(), "its output reached the log"


def test_a_peer_gone_in_the_middle_is_told_by_how_it_ended(stage: Stage) -> None:
    stage.up()
    stage.channel.close()
    stage.until(lambda: stage.worker.state is State.DRAINING)  # it may only have lost its channel
    assert not stage.worker.failure
    stage.end_process()
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert stage.worker.failure == "worker r1/1 exited with status 0 while it served"


def test_silence_after_quiesce_ends_in_sigkill(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_deadline, "QUIESCE_ANSWER_S", 0.05)
    stage.up()
    stage.worker.ask(Event.QUIESCE_ASKED)
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert stage.seen[-3:] == [State.QUIESCING, State.KILLED, State.REAPED]
    assert "did not answer `quiesce`" in stage.worker.failure


def test_a_worker_inside_a_request_is_not_killed_for_its_silence(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its one thread runs a request inline: killing it would fail that request."""
    monkeypatch.setattr(worker_deadline, "QUIESCE_ANSWER_S", 0.01)
    stage.up()
    stage.scoreboard.slot(3)[Field.IN_REQUEST_SINCE_NS] = 1
    stage.worker.ask(Event.QUIESCE_ASKED)
    late: list[bool] = []
    stage.loop.call_at(stage.loop.now() + 0.3, lambda: late.append(True))
    stage.until(lambda: late)
    assert stage.worker.state is State.QUIESCING
    stage.scoreboard.slot(3)[Field.IN_REQUEST_SINCE_NS] = 0
    stage.say(msg.Quiesced(), State.QUIESCED)
    assert not stage.worker.failure


def test_a_worker_that_never_gets_ready_is_killed_with_its_last_lines() -> None:
    stage = Stage(start_timeout_s=0.05)
    os.write(stage.capture.fd, b"waiting for the database\n")
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert "start_timeout" in stage.worker.failure
    assert stage.worker.detail == "waiting for the database"
    stage.close()


def test_a_stalled_worker_is_killed_by_pidfd(stage: Stage) -> None:
    stage.up()
    signal.pidfd_send_signal(stage.worker._process.pidfd, signal.SIGSTOP)
    stage.worker.fail("its loop stood still")
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert stage.worker.failure == "its loop stood still"


def test_probe_speaks_http_over_a_socket_that_is_passed(stage: Stage) -> None:
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    stage.say(msg.Ready("wsgi"), State.READY)
    stage.heard()
    stage.worker.ask(Event.PROBE_ASKED)
    incoming = stage.channel.receive()
    assert incoming is not None and isinstance(incoming.message, msg.Probe)
    with socket.socket(fileno=incoming.fds[0]) as client:
        request = client.recv(4096)
        assert request.startswith(b"GET /healthz HTTP/1.1\r\nHost: h\r\n")
        client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    stage.until(lambda: stage.worker.state is State.LEAVING)
    assert (
        stage.worker.failure
        == "health probe of worker r1/1 failed: GET /healthz answered 503 Service Unavailable"
    )


# -- surviving the supervisor ------------------------------------------------------------------


def test_configure_waits_until_the_descriptor_store_has_it(stage: Stage) -> None:
    stage.store.waits = True
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    assert stage.store.names == [
        *(f"quiesce.{kind}.{stage.lane.key}" for kind in "rs"),
        *(f"quiesce.{kind}.{'0' * 16}" for kind in "wpo"),
    ]
    assert stage.heard() == [], "nobody could adopt it yet"
    stage.store.answer()
    assert stage.heard() == ["listen", "scoreboard", "configure"]


def test_each_state_is_written_down_before_its_orders_go_out(stage: Stage) -> None:
    heard: list[list[str]] = []
    stage.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    stage.say(msg.Ready("wsgi"), State.READY)
    stage.heard()
    stage.save = lambda: heard.append(stage.heard())  # type: ignore[method-assign]
    stage.worker.ask(Event.ACCEPT_ASKED)
    assert heard == [[]] and stage.heard() == ["accept"]
    stage.save = lambda: None  # type: ignore[method-assign]


def test_a_dead_worker_leaves_nothing_in_the_store(stage: Stage) -> None:
    stage.up()
    stage.end_process()
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert len(stage.store.names) == 2, "its generation's lane"


# -- lanes -------------------------------------------------------------------------------------


def hello(lane_version: int = msg.LANE_VERSION) -> msg.Hello:
    return msg.Hello(1, 1, "0", "3", 1, lane_version=lane_version)


def connection(stage: Stage, writing: int, reading: int) -> None:
    """These two are the ends of its lane: what goes into one comes out of the other."""
    with socket.socket(fileno=writing) as into, socket.socket(fileno=reading) as out:
        into.send(b"a connection")
        assert out.recv(99, socket.MSG_DONTWAIT) == b"a connection"


def test_a_lane_to_read_comes_with_the_order_to_accept(stage: Stage) -> None:
    stage.say(hello(), State.LOADING)
    stage.say(msg.Ready("wsgi"), State.READY)
    assert stage.heard() == ["listen", "scoreboard", "configure"], "it may not pass its probe"
    stage.worker.ask(Event.ACCEPT_ASKED)
    incoming = stage.channel.receive()
    assert incoming is not None and incoming.message == msg.UseLane([stage.lane.name])
    connection(stage, os.dup(stage.lane.writing.fileno()), incoming.fds[0])
    assert stage.heard() == ["accept"]


def test_a_worker_that_knows_no_lanes_is_told_of_none(stage: Stage) -> None:
    stage.say(hello(0), State.LOADING)
    stage.say(msg.Ready("wsgi"), State.READY)
    stage.heard()
    stage.worker.ask(Event.ACCEPT_ASKED)
    stage.say(msg.Accepting(), State.ACCEPTING)
    stage.worker.lanes.target = stage.lane.key
    stage.worker.ask(Event.QUIESCE_ASKED)
    assert stage.heard() == ["accept", "quiesce"]
    stage.say(msg.Quiesced(), State.QUIESCED)
    assert not stage.worker.moving


def quiesced(stage: Stage) -> None:
    """To where it hands over to its own lane."""
    stage.say(hello(), State.LOADING)
    stage.say(msg.Ready("wsgi"), State.READY)
    stage.worker.ask(Event.ACCEPT_ASKED)
    stage.say(msg.Accepting(), State.ACCEPTING)
    stage.heard()
    stage.worker.lanes.target = stage.lane.key
    stage.worker.ask(Event.QUIESCE_ASKED)
    stage.say(msg.Quiesced(7), State.QUIESCED)


def test_quiesce_brings_both_ends_and_is_over_when_it_says_that_it_has_handed_over(stage: Stage) -> None:
    stage.readers = (2, 1, 2)
    quiesced(stage)
    incoming = stage.channel.receive()
    assert incoming is not None and incoming.message == msg.Quiesce(stage.lane.name, 1, 3)
    connection(stage, *incoming.fds)
    assert stage.worker.moving
    seen = len(stage.seen)
    stage.channel.send(msg.HandedOver(5, 2))
    stage.until(lambda: not stage.worker.moving)
    assert stage.seen[seen:] == [State.QUIESCED], "whoever waits looks again"
    assert stage.worker.lanes.said == (5, 2)


def test_the_answer_to_an_order_that_was_overtaken_ends_no_wait(stage: Stage) -> None:
    """Set aside, stuck on a full lane, then sent elsewhere: it answers the first order when it hears the second."""
    quiesced(stage)
    first = stage.channel.receive()
    other = stage.lanes.make("r2")
    assert other is not None and first is not None
    stage.worker.redirect(other.key)
    second = stage.channel.receive()
    assert second is not None and isinstance(second.message, msg.Quiesce)
    for fd in first.fds + second.fds:
        os.close(fd)
    stage.channel.send(msg.HandedOver(5, 2), re=first.seq)
    stage.channel.send(msg.Quiesced(2), re=second.seq)
    stage.until(lambda: "moved=5" in stage.text())
    assert stage.worker.moving and stage.worker.lanes.said is None
    stage.channel.send(msg.HandedOver(2, 0), re=second.seq)
    stage.until(lambda: not stage.worker.moving)
    assert stage.worker.lanes.said == (2, 0)


def test_what_an_order_without_a_lane_answers_is_not_what_the_one_before_has_moved(stage: Stage) -> None:
    quiesced(stage)
    first = stage.channel.receive()
    assert first is not None
    for fd in first.fds:
        os.close(fd)
    stage.channel.send(msg.HandedOver(5, 2), re=first.seq)
    stage.until(lambda: not stage.worker.moving)
    stage.worker.redirect("")
    second = stage.channel.receive()
    assert second is not None
    stage.channel.send(msg.HandedOver(0, 2), re=second.seq)
    stage.until(lambda: "moved=0" in stage.text())
    assert stage.worker.lanes.said == (5, 2)


def test_a_lane_that_somebody_does_not_read_is_not_named(stage: Stage) -> None:
    stage.readers = (2, 0)
    quiesced(stage)
    assert stage.heard() == ["quiesce"] and not stage.worker.moving


def test_the_wait_for_what_it_moves_has_a_bound(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_lanes, "MOVING_S", 0.05)
    quiesced(stage)
    assert stage.worker.moving
    stage.until(lambda: not stage.worker.moving)
    assert "worker still hands over" in stage.text()


def test_so_has_the_wait_for_one_that_was_quiesced_long_ago(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiesced(stage)
    stage.channel.send(msg.HandedOver())
    stage.until(lambda: not stage.worker.moving)
    other = stage.lanes.make("r2")
    assert other is not None
    monkeypatch.setattr(worker_lanes, "MOVING_S", 0.05)
    stage.worker.redirect(other.key)
    assert stage.worker.moving
    stage.until(lambda: not stage.worker.moving)  # it never answers


def test_resumed_it_is_not_waited_for(stage: Stage) -> None:
    quiesced(stage)
    stage.worker.ask(Event.RESUME_ASKED)
    assert not stage.worker.moving and not stage.worker.lanes.moving
    stage.say(msg.Resumed(), State.ACCEPTING)


def test_another_lane_is_told_at_once_and_saved_before(stage: Stage) -> None:
    quiesced(stage)
    stage.heard()
    saved: list[list[str]] = []
    stage.save = lambda: saved.append(stage.heard())  # type: ignore[method-assign]
    stage.worker.redirect("")
    assert saved == [[]] and stage.heard() == ["quiesce"] and stage.worker.state is State.QUIESCED
    stage.worker.redirect("")
    assert stage.heard() == [], "nothing new"
    stage.save = lambda: None  # type: ignore[method-assign]
    stage.worker.ask(Event.DRAIN_ASKED)
    stage.heard()
    stage.worker.redirect(stage.lane.key)
    incoming = stage.channel.receive()
    assert incoming is not None and isinstance(incoming.message, msg.Drain)
    assert incoming.message.lane == stage.lane.name and 0 < incoming.message.timeout_s <= 5.0, "what is left"
    for fd in incoming.fds:
        os.close(fd)


def test_who_was_told_to_end_at_once_gets_no_more_time_by_another_lane(stage: Stage) -> None:
    quiesced(stage)
    stage.worker.ask(Event.LEAVE_ASKED)
    stage.heard()
    stage.worker.redirect("")
    assert stage.heard() == []


def test_what_goes_with_a_worker_that_dies_is_counted(stage: Stage) -> None:
    stage.up()
    stage.scoreboard.slot(3)[Field.CONN_OPEN] = 37
    signal.pidfd_send_signal(stage.worker._process.pidfd, signal.SIGKILL)
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert stage.worker.failure.endswith("; 37 connections went with it"), stage.worker.failure


def test_what_goes_with_one_that_was_leaving_is_in_the_log(stage: Stage) -> None:
    stage.up()
    stage.worker.ask(Event.DRAIN_ASKED)
    stage.scoreboard.slot(3)[Field.CONN_OPEN] = 3
    signal.pidfd_send_signal(stage.worker._process.pidfd, signal.SIGKILL)
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert not stage.worker.failure and "connections lost with a worker that was leaving" in stage.text()


@pytest.mark.parametrize("killed", [False, True])
def test_one_that_was_told_to_go_and_went_by_itself_is_not_lost(stage: Stage, killed: bool) -> None:
    """Somebody insisted; but what kills it on its way is a loss like any other."""
    wishes: list[Worker] = []
    stage.worker.on_wish = wishes.append
    stage.up()
    stage.channel.send(msg.ReplaceMe())
    stage.until(lambda: wishes == [stage.worker])
    assert stage.worker.state is State.ACCEPTING
    if killed:
        signal.pidfd_send_signal(stage.worker._process.pidfd, signal.SIGKILL)
    else:
        stage.end_process()
    stage.until(lambda: stage.worker.state is State.REAPED)
    assert bool(stage.worker.failure) is killed


class Successor(Stage):
    """The same process and the same ends of its socket, in the hands of another supervisor."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: list[str] = []

    def die(self, state: State) -> None:
        """The first supervisor is gone, without a word; the next one begins."""
        old, record = self.worker, self.worker.record()
        channel, pidfd = old._wire._channel, old._process.pidfd
        assert channel is not None and old._evidence.capture is not None
        for fd in (channel.fileno(), pidfd):
            self.loop.unwatch(fd)
        wire, pidfd = os.dup(channel.fileno()), os.dup(pidfd)
        channel.close()
        os.close(old._process.pidfd)
        old._deadline.disarm()
        record.state = state.value
        again = Channel(socket.socket(fileno=wire), max_fds=0, first_seq=1 << 40)
        capture = Capture.adopt(os.dup(self.capture.cursor))
        self.capture.close()
        self.capture = capture
        parts = Parts("0" * 16, old.pid, pidfd, again, capture)
        self.worker = Worker(self, parts, 3, 1, self.terms, self.lane.key, record)
        self.worker.watcher = lambda worker, before, new: self.seen.append(new)
        self.worker.take_over()

    def identify(self) -> int:
        incoming = self.channel.receive()
        assert incoming is not None and isinstance(incoming.message, msg.Identify)
        assert incoming.seq > 1 << 40, "a number that the last supervisor may have used"
        return incoming.seq

    def answer(self, re: int, state: str, worker: str = "r1/1", release: str = "r1") -> None:
        hello = msg.Hello(1, 1, "0", "3", 1, worker, release, state, "wsgi", 4)
        self.channel.send(hello, re=re)


@pytest.fixture
def successor() -> Iterator[Successor]:
    before = len(os.listdir("/proc/self/fd"))
    it = Successor()
    yield it
    it.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"


def test_an_adopted_worker_is_asked_who_it_is_and_serves_on(successor: Successor) -> None:
    successor.up()
    successor.die(State.ACCEPTING)
    successor.answer(successor.identify(), "accepting")
    successor.until(lambda: "worker adopted" in successor.text())
    assert successor.worker.state is State.ACCEPTING and successor.worker.threads == 4
    assert successor.heard() == ["listen"], "it may lack one that the last supervisor has just opened"


def test_what_was_said_to_the_last_supervisor_is_stale(successor: Successor) -> None:
    successor.up()
    successor.channel.send(msg.Quiesced(0))  # on its way when that one died
    successor.die(State.QUIESCING)
    seq = successor.identify()
    successor.channel.send(msg.Accepting())
    successor.answer(seq, "accepting")
    successor.until(lambda: "worker adopted" in successor.text())
    assert successor.worker.state is State.QUIESCING
    assert successor.heard() == ["listen", "quiesce"], "the order is given again"


def test_lanes_and_the_order_to_hand_over_are_given_again(successor: Successor) -> None:
    quiesced(successor)
    other = successor.lanes.make("r2")
    assert other is not None
    successor.worker.lanes.give(other.key)
    successor.heard()
    successor.channel.send(msg.HandedOver(7, 0))  # read by nobody
    successor.die(State.QUIESCED)
    assert successor.worker.moving, "what the last supervisor heard of it is not known"
    seq = successor.identify()
    hello = msg.Hello(1, 1, "0", "3", 1, "r1/1", "r1", "quiesced", "wsgi", 4, lane_version=2)
    successor.channel.send(hello, re=seq)
    successor.until(lambda: "worker adopted" in successor.text())
    heard = [successor.channel.receive() for _ in range(3)]
    assert [incoming.message for incoming in heard if incoming] == [
        msg.Listen(["http", "admin"]),
        msg.UseLane([successor.lane.name, other.name]),
        msg.Quiesce(successor.lane.name, 2, 2),
    ]
    for incoming in heard:
        for fd in incoming.fds if incoming else ():
            os.close(fd)
    successor.channel.send(msg.HandedOver(7, 0))
    successor.until(lambda: not successor.worker.moving)


def test_an_order_that_never_arrived_is_given_again(successor: Successor) -> None:
    successor.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    successor.say(msg.Ready("wsgi"), State.READY)
    successor.heard()
    successor.die(State.ADMITTED)
    successor.answer(successor.identify(), "ready")
    successor.until(lambda: "worker adopted" in successor.text())
    assert successor.heard() == ["listen", "accept"]
    successor.say(msg.Accepting(), State.ACCEPTING)


def test_a_failure_that_the_last_supervisor_did_not_read_is_the_reason(successor: Successor) -> None:
    successor.say(msg.Hello(1, 1, "0", "3", 1), State.LOADING)
    successor.channel.send(msg.Failed("module 'shop' needs 'stripe'", "Traceback"))
    successor.die(State.LOADING)
    successor.until(lambda: successor.worker.state is State.LEAVING)
    assert successor.worker.failure == "module 'shop' needs 'stripe'"


def test_a_worker_that_claims_another_name_is_not_adopted(successor: Successor) -> None:
    successor.up()
    successor.die(State.ACCEPTING)
    successor.answer(successor.identify(), "accepting", worker="r7/9")
    successor.until(lambda: successor.worker.state is State.REAPED)
    assert "r7/9" in successor.worker.failure


def test_an_answer_to_another_question_identifies_nobody(successor: Successor) -> None:
    successor.up()
    successor.die(State.ACCEPTING)
    seq = successor.identify()
    successor.answer(seq - 1, "draining")
    successor.answer(seq, "accepting")
    successor.until(lambda: "worker adopted" in successor.text())
    assert successor.worker.state is State.ACCEPTING


def test_a_worker_that_died_in_between_is_reported_lost(successor: Successor) -> None:
    successor.up()
    record = successor.worker.record()
    lost = Worker(successor, Parts("1" * 16, 1, -1, None, None), 4, 2, successor.terms, "", record)
    states: list[State] = []
    lost.watcher = lambda worker, old, new: states.append(new)
    lost.take_over()
    assert states == [State.REAPED] and "ended" in lost.failure
