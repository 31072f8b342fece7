"""Two real worker processes and a lane between them, by what a supervisor says and hears."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.scoreboard import Field
from unit.worker.fake_supervisor import PATIENCE_S, FakeSupervisor, ask, read_answer, request

NATIVE = """
import os
from quiesce import Response

def app(request):
    if request.path.startswith("/fork"):
        child = os.fork()
        if not child:
            os.read(int(request.query), 1)
            os._exit(0)
    return Response(str(os.getpid()))
"""
WSGI = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", str(len(str(os.getpid()))))])
    return [str(os.getpid()).encode()]
"""
ASGI = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
APPS = {"native": NATIVE, "wsgi": WSGI, "asgi": ASGI}


class Two:
    """An old worker, a new one, and the new one's lane."""

    def __init__(self, old: FakeSupervisor, new: FakeSupervisor) -> None:
        self.old, self.new = old, new
        self.reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, interface: str = "native") -> None:
        for side in (self.old, self.new):
            side.start(f"shop_{interface}:app", threads=1 if interface == "native" else 3)
            side.accept()

    def use_lane(self, side: FakeSupervisor, name: str = "r42") -> None:
        side.send(msg.UseLane([name]), [self.reader.fileno()])

    @property
    def ends(self) -> list[int]:
        return [self.writer.fileno(), self.reader.fileno()]

    def idle(self, count: int) -> list[socket.socket]:
        clients = [self.old.connect() for _ in range(count)]
        for client in clients:
            assert who(client) == self.old.process.pid
        return clients

    def quiesce(self, **fields: int) -> tuple[msg.Quiesced, msg.HandedOver]:
        fields = {"lane_version": msg.LANE_VERSION, "readers": 1} | fields
        seq = self.old.send(msg.Quiesce(lane="r42", **fields), self.ends)
        return self.old.expect(msg.Quiesced, re=seq), self.old.expect(msg.HandedOver, re=seq)


def until(fact: Callable[[], bool]) -> None:
    """Wait for what the scoreboard is to show."""
    ends = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < ends, "it never did"
        time.sleep(0.002)


def who(client: socket.socket) -> int:
    answer = ask(client)
    assert "connection" not in answer.headers
    return int(answer.body)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    for interface, text in APPS.items():
        (tmp_path / f"shop_{interface}.py").write_text(text)
    with contextlib.ExitStack() as stack:
        pair = Two(
            stack.enter_context(FakeSupervisor(tmp_path)), stack.enter_context(FakeSupervisor(tmp_path))
        )
        stack.callback(pair.reader.close)
        stack.callback(pair.writer.close)
        yield pair


@pytest.mark.parametrize("interface", APPS)
def test_a_quiesce_with_a_lane_moves_what_is_idle_and_says_so(two: Two, interface: str) -> None:
    two.start(interface)
    two.use_lane(two.new)
    clients = two.idle(3)
    half = two.old.connect()
    half.sendall(request()[:8])
    slot = two.old.board.slot(3)
    until(lambda: slot[Field.CONN_OPEN] == 4 and slot[Field.CONN_BUSY] == 1)
    quiesced, handed_over = two.quiesce()
    assert quiesced == msg.Quiesced(4)
    assert handed_over == msg.HandedOver(4, 0)
    for client in clients:
        assert who(client) == two.new.process.pid
    half.sendall(request()[8:])
    assert int(read_answer(half).body) == two.new.process.pid
    assert two.new.board.slot(3)[Field.HANDED_IN] == 4
    drain = two.old.send(msg.Drain(PATIENCE_S))
    assert two.old.expect(msg.HandedOver, re=drain) == msg.HandedOver(0, 0)
    two.old.expect(msg.Drained, re=drain)
    for side in (two.old, two.new):
        assert side.shutdown() == WorkerExit.OK
    for client in (*clients, half):
        client.close()


def test_without_a_lane_nobody_moves_and_that_is_said_at_once(two: Two) -> None:
    two.start()
    clients = two.idle(2)
    for order in (msg.Quiesce(), msg.Quiesce(lane_version=2), msg.Drain(PATIENCE_S)):
        seq = two.old.send(order)
        if isinstance(order, msg.Quiesce):
            two.old.expect(msg.Quiesced, re=seq)
        assert two.old.expect(msg.HandedOver, re=seq) == msg.HandedOver(0, 2)
    for client in clients:
        client.close()


@pytest.mark.parametrize(("version", "moved"), [(0, 0), (1, 2), (99, 2)])
def test_the_version_is_what_the_readers_know(two: Two, version: int, moved: int) -> None:
    two.start()
    two.use_lane(two.new)
    clients = two.idle(2)
    _, handed_over = two.quiesce(lane_version=version)
    assert handed_over == msg.HandedOver(moved, 2 - moved)
    assert {who(client) for client in clients} == {(two.new if moved else two.old).process.pid}
    for client in clients:
        client.close()


def test_a_drain_with_a_lane_says_moved_then_drained_and_closes_nobody(two: Two) -> None:
    two.start()
    two.use_lane(two.new)
    clients = two.idle(5)
    fields = {"lane_version": msg.LANE_VERSION, "readers": 1}
    seq = two.old.send(msg.Drain(PATIENCE_S, lane="r42", **fields), two.ends)  # type: ignore[arg-type]
    assert two.old.expect(msg.HandedOver, re=seq) == msg.HandedOver(5, 0)
    assert two.old.expect(msg.Drained, re=seq).cut == 0
    assert {who(client) for client in clients} == {two.new.process.pid}
    for client in clients:
        client.close()


def test_a_worker_of_the_lanes_own_release_hands_over_to_its_fellows(two: Two) -> None:
    two.start()
    two.use_lane(two.new)
    two.use_lane(two.old)
    clients = two.idle(5)
    seq = two.old.send(msg.Drain(PATIENCE_S, lane="r42", lane_version=msg.LANE_VERSION, readers=1), two.ends)
    two.old.expect(msg.HandedOver, re=seq)
    assert (
        two.old.expect(msg.Drained, re=seq).cut == 0
    )  # it does not wait for the end of the lane that lives on
    assert {who(client) for client in clients} == {two.new.process.pid}
    for client in clients:
        client.close()


def test_resume_takes_back_what_lies_in_the_failed_releases_lane(two: Two) -> None:
    two.start()
    clients = two.idle(3)
    two.quiesce()  # nobody reads it
    two.use_lane(two.old)
    two.old.expect(msg.Resumed, re=two.old.send(msg.Resume()))
    assert {who(client) for client in clients} == {two.old.process.pid}
    assert two.old.get().status == 200
    two.writer.shutdown(socket.SHUT_WR)
    drain = two.old.send(msg.Drain(PATIENCE_S))
    for client in clients:
        client.close()
    two.old.expect(msg.Drained, re=drain)


def test_a_lane_may_come_before_everything_else(two: Two) -> None:
    two.start()
    clients = two.idle(2)
    two.quiesce()
    with FakeSupervisor(two.old.app_dir) as late:
        late.expect(msg.Hello)
        two.use_lane(late)
        two.use_lane(late)  # twice: the second takes the place of the first
        late.configure("shop_native:app", threads=1)
        late.expect(msg.Ready)
        # It does not accept yet, but a connection that lives is not accepted.
        assert {who(client) for client in clients} == {late.process.pid}
    for client in clients:
        client.close()


def test_shed(two: Two) -> None:
    two.start()
    two.use_lane(two.old)
    two.use_lane(two.new)
    clients = two.idle(10)
    two.old.send(msg.Shed(4, lane="r42", lane_version=msg.LANE_VERSION, readers=2), two.ends)
    until(lambda: two.new.board.slot(3)[Field.HANDED_IN] == 4)
    pids = [who(client) for client in clients]
    assert (pids.count(two.old.process.pid), pids.count(two.new.process.pid)) == (6, 4)
    assert two.old.identify().state == "accepting"
    for client in clients:
        client.close()


def test_an_orphan_keeps_its_connections_and_leaves_when_they_have_gone(two: Two) -> None:
    two.start()
    two.use_lane(two.old)
    clients = two.idle(2)
    two.old.channel.close()
    answer = ask(clients[0])
    assert answer.headers["connection"] == "close"
    for client in clients:
        client.close()
    assert two.old.wait() == WorkerExit.OK


def test_ends_that_are_none_are_said_and_close_nothing_else(two: Two) -> None:
    two.start()
    clients = two.idle(1)
    two.old.send(msg.UseLane(["r42"]), [two.old.capture])
    seq = two.old.send(msg.Quiesce(lane="r42", lane_version=2, readers=1), [two.old.capture, two.old.capture])
    # An order that cannot be understood is not obeyed, and the worker serves on.
    assert who(clients[0]) == two.old.process.pid
    assert two.old.identify().state == "accepting"
    assert "lane 'r42' is not a socket" in two.old.output()
    del seq
    clients[0].close()


def test_a_forked_child_holds_no_lane_and_no_connection_that_came_by_one(two: Two, tmp_path: Path) -> None:
    child_reads, child_ends = os.pipe()
    with FakeSupervisor(tmp_path, pass_fds=[child_reads]) as forker:
        os.close(child_reads)
        forker.start("shop_native:app", threads=1)
        two.start()
        two.use_lane(forker)
        client, other = two.idle(2)
        two.quiesce()
        until(lambda: forker.board.slot(3)[Field.HANDED_IN] == 2)
        two.old.shutdown()  # it has the lane's ends too
        assert ask(client, f"/fork?{child_reads}").status == 200
        two.reader.shutdown(socket.SHUT_WR)
        two.reader.close()
        forker.process.kill()
        forker.wait()
        assert other.recv(1) == b"" and client.recv(1) == b""
        with pytest.raises(OSError):
            two.writer.send(b"x")  # nobody holds the read end
    os.close(child_ends)
    for sock in (client, other):
        sock.close()


def test_a_child_forked_by_the_import_holds_no_lane_that_came_before(tmp_path: Path) -> None:
    child_reads, child_ends = os.pipe()
    (tmp_path / "forks.py").write_text(
        "import os\nif not os.fork():\n    os.read(int(os.environ['UNTIL']), 1)\n    os._exit(0)\n"
        "def app(environ, start_response):\n    raise AssertionError\n"
    )
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with FakeSupervisor(tmp_path, pass_fds=[child_reads], env={"UNTIL": str(child_reads)}) as worker:
        os.close(child_reads)
        worker.expect(msg.Hello)
        worker.send(msg.UseLane(["r42"]), [reader.fileno()])
        reader.close()
        worker.configure("forks:app")
        worker.expect(msg.Ready)
        writer.send(b"x")  # the worker itself has it
        worker.process.kill()
        worker.wait()
        with pytest.raises(OSError):
            writer.send(b"x")
    os.close(child_ends)
    writer.close()


def test_hello_says_which_records_it_reads(two: Two) -> None:
    assert two.old.expect(msg.Hello).lane_version == msg.LANE_VERSION
