"""The library gives its live connections to another daemon, in every mode."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from embedded.serving import GET, Running, Setup, running
from harness.gate import Gate
from quiesce import Connection, Daemon, Request, Response
from wire.serving import PATIENCE_S, read_reply, read_to_end

WAIT = GET.replace(b"GET /", b"GET /wait")


class Stage:
    """Two daemons and the socket pair between them."""

    def __init__(self, old: Running, new: Running) -> None:
        self.old, self.new = old, new
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def receive(self) -> None:
        self.new.do(lambda: self.new.daemon.receive(self.theirs))

    def hand_over(self, sock: socket.socket | None = None) -> int:
        return self.old.do(lambda: self.old.daemon.hand_over(sock))


@contextlib.contextmanager
def staged(setup: Setup, gate: Gate | None = None, **options: Any) -> Iterator[Stage]:
    """Two daemons; with a gate, /wait of the old one lies behind it."""

    def old_handler(request: Request) -> Response:
        if request.path == "/wait" and gate is not None:
            gate.wait()
        return Response("old")

    with (
        running(setup, old_handler) as old,
        running(setup, lambda request: Response("new"), **options) as new,
    ):
        stage = Stage(old, new)
        try:
            yield stage
        finally:
            stage.ours.close()
            stage.theirs.close()


def idle(side: Running, count: int) -> list[socket.socket]:
    clients = [side.connect() for _ in range(count)]
    for client in clients:
        assert ask(client) == b"old"
    side.until(lambda: side.daemon.info.idle == count)  # an answer is out a moment before that
    return clients


def ask(client: socket.socket, request: bytes = GET) -> bytes:
    client.sendall(request)
    reply = read_reply(client)
    assert reply.get("connection") is None
    return reply.body


def test_idle_ones_move_and_are_answered_on_the_same_socket(setup: Setup) -> None:
    with staged(setup) as stage:
        stage.receive()
        clients = idle(stage.old, 5)
        with stage.old.connect() as half:
            half.sendall(GET[:12])
            stage.old.until(lambda: (stage.old.daemon.info.idle, stage.old.daemon.info.busy) == (5, 1))
            assert stage.hand_over(stage.ours) == 6
            half.sendall(GET[12:])
            assert read_reply(half).body == b"new"
        for client in clients:
            for _ in range(2):
                assert ask(client) == b"new"
        assert stage.old.daemon.connections == 0
        assert stage.new.daemon.connections >= 5


def test_a_busy_one_moves_when_it_has_its_answer(threaded: Setup) -> None:
    gate = Gate()
    with staged(threaded, gate) as stage, stage.old.connect() as client:
        stage.receive()
        client.sendall(WAIT)
        gate.wait_entered()
        # A seat whose thread is in the handler is told when it comes back.
        giver = threading.Thread(target=lambda: stage.hand_over(stage.ours))
        giver.start()
        gate.open()
        assert read_reply(client).body == b"old"
        giver.join(PATIENCE_S)
        stage.new.until(lambda: stage.new.daemon.connections == 1)
        assert ask(client) == b"new"


def test_a_suspended_one_stays_until_it_is_answered(setup: Setup) -> None:
    held: list[Connection] = []

    def handler(connection: Connection) -> Any:
        if connection.request.path == "/wait" and not held:
            held.append(connection)
            connection.suspend()
            return True
        return Response("old")

    with (
        running(setup, access_handler=handler, allow_suspend=True) as old,
        running(setup, lambda request: Response("new")) as new,
        old.connect() as client,
    ):
        stage = Stage(old, new)
        stage.receive()
        client.sendall(WAIT)
        old.until(lambda: bool(held))
        assert stage.hand_over(stage.ours) == 0
        held[0].resume()
        assert read_reply(client).body == b"old"
        new.until(lambda: new.daemon.connections == 1)
        assert ask(client) == b"new"
        stage.theirs.close()


def test_none_ends_it_and_says_how_many_have_moved(setup: Setup) -> None:
    with staged(setup) as stage:
        stage.receive()
        clients = idle(stage.old, 3)
        assert stage.hand_over(stage.ours) == 3
        assert stage.hand_over(None) == 3
        assert stage.ours.fileno() == -1
        (late,) = idle(stage.old, 1)
        assert ask(late) == b"old"
        assert {ask(client) for client in clients} == {b"new"}


def test_who_comes_after_the_order_moves_too(setup: Setup) -> None:
    """Nobody had it quiesced."""
    with staged(setup) as stage:
        stage.receive()
        stage.hand_over(stage.ours)
        with stage.old.connect() as client:
            client.sendall(GET)
            read_reply(client)
            stage.new.until(lambda: stage.new.daemon.connections == 1)
            assert ask(client) == b"new"


def test_callbacks_hear_of_each_once(setup: Setup) -> None:
    heard: list[tuple[str, bool]] = []
    completed: list[Any] = []
    with (
        running(
            setup,
            lambda request: Response("old"),
            on_connection=lambda connection, begins: heard.append(("old", begins)),
            on_completed=lambda connection, state, why: completed.append(why),
        ) as old,
        running(
            setup,
            lambda request: Response("new"),
            on_connection=lambda connection, begins: heard.append(("new", begins)),
        ) as new,
    ):
        stage = Stage(old, new)
        stage.receive()
        (client,) = idle(old, 1)
        stage.hand_over(stage.ours)
        assert ask(client) == b"new"
        client.close()
        new.until(lambda: new.daemon.connections == 0)
        assert sorted(heard) == [("new", False), ("new", True), ("old", False), ("old", True)]
        assert len(completed) == 1
        stage.theirs.close()


def test_limits_turn_away_none_of_those_who_come_so_and_count_them(setup: Setup) -> None:
    from quiesce import Limits

    with staged(setup, limits=Limits(connections=2), policy=lambda peer: True) as stage:
        stage.receive()
        clients = idle(stage.old, 4)
        assert stage.hand_over(stage.ours) == 4
        assert {ask(client) for client in clients} == {b"new"}
        with stage.new.connect() as another:
            another.sendall(GET)
            assert read_reply(another).status == 503


def test_a_drain_after_it_is_over_when_the_last_has_moved(setup: Setup) -> None:
    with staged(setup) as stage:
        stage.receive()
        clients = idle(stage.old, 3)
        stage.old.do(lambda: stage.old.daemon.quiesce().close())
        stage.hand_over(stage.ours)
        stage.old.do(lambda: stage.old.daemon.drain(PATIENCE_S))
        assert stage.old.do(lambda: stage.old.daemon.wait_drained(PATIENCE_S))
        assert {ask(client) for client in clients} == {b"new"}


def test_stop_of_the_receiver_lets_go_of_its_end(setup: Setup) -> None:
    with staged(setup) as stage:
        stage.receive()
        stage.new.stop()
        with pytest.raises(BrokenPipeError):
            stage.ours.send(b"x")


def test_the_givers_end_is_the_receivers_end(setup: Setup) -> None:
    with staged(setup) as stage:
        before = set(os.listdir("/proc/self/fd"))
        stage.receive()
        stage.hand_over(stage.ours)
        stage.hand_over(None)
        stage.new.until(lambda: not set(os.listdir("/proc/self/fd")) - before)


def test_a_socket_of_another_kind_is_refused_and_stays_the_callers(setup: Setup) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, running(setup, lambda request: Response("old")) as made:
        for call in (made.daemon.hand_over, made.daemon.receive):
            with pytest.raises(ValueError, match="SOCK_SEQPACKET"):
                made.do(lambda call=call: call(ours))  # type: ignore[misc]
        ours.send(b"x")


def test_with_nobody_left_to_read_all_stay() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with Daemon(lambda request: Response("old")) as daemon:
        client = socket.create_connection(("127.0.0.1", daemon.info.port), PATIENCE_S)
        assert ask(client) == b"old"
        assert daemon.hand_over(ours) == 0
        assert ask(client) == b"old"
        client.close()


@pytest.mark.slow
def test_a_timeout_of_its_own_goes_on_by_the_rules_of_who_takes_it(setup: Setup) -> None:
    with (
        running(setup, lambda request: Response("old"), timeout_s=30.0) as old,
        running(setup, lambda request: Response("new"), timeout_s=0.3) as new,
    ):
        stage = Stage(old, new)
        stage.receive()
        (client,) = idle(old, 1)
        stage.hand_over(stage.ours)
        assert read_to_end(client) == b""


def test_what_is_wrong_with_a_lane_is_told_to_the_logger(
    setup: Setup, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    with staged(setup, logger=heard.append) as stage:
        stage.receive()
        stage.ours.send(b"this is no packet")
        stage.new.until(lambda: bool(heard))
    assert heard[0].startswith("lane 'lane 1': a packet of 17 bytes is not JSON")
    assert "lane" not in capfd.readouterr().err
