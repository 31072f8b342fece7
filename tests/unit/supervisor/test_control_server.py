"""The control socket's server, with the supervisor's own loop and real sockets."""

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce.shared.clock import ManualClock
from quiesce.shared.errors import ControlError
from quiesce.supervisor.control_protocol import MAX_REQUEST_BYTES, Peer, Request
from quiesce.supervisor.control_server import (
    IDLE_TIMEOUT_S,
    MAX_CLIENTS,
    MAX_OUTPUT_BYTES,
    STUCK_TIMEOUT_S,
    ControlServer,
    Reply,
    allow_owner_and_group,
    open_control_socket,
    peer_of,
    remove_own_socket,
)
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.places import Places, connect


class Stage:
    """A server whose loop is turned by hand, and whose clock stands still."""

    def __init__(self, places: Places) -> None:
        self.clock = ManualClock()
        self.loop = Loop(self.clock)
        self.places = places
        self.asked: list[tuple[Request, Reply]] = []
        self.allowed = True
        listener = open_control_socket(places)
        self.server = ControlServer(self.loop, listener, lambda _: self.allowed, self.handle)

    def handle(self, request: Request, reply: Reply) -> None:
        self.asked.append((request, reply))

    def turn(self, times: int = 3) -> None:
        """Turn without waiting: everything that is ready is served."""
        for _ in range(times):
            self.loop.call_at(self.clock.now(), lambda: None)
            self.loop.turn()

    def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    def client(self) -> socket.socket:
        sock = connect(self.places.control_sock)
        sock.settimeout(5)
        self.turn()
        return sock

    def ask(self, sock: socket.socket, command: str = "status", **args: Any) -> tuple[Request, Reply]:
        sock.sendall(line(command, **args))
        self.turn()
        return self.asked[-1]


def line(command: str = "status", **args: Any) -> bytes:
    return json.dumps({"v": 1, "id": "a" * 32, "command": command, "args": args}).encode() + b"\n"


def replies(sock: socket.socket) -> list[dict[str, Any]]:
    """What the supervisor has sent so far."""
    data = b""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while chunk := sock.recv(1 << 20):
            data += chunk
    sock.settimeout(5)
    return [json.loads(text) for text in data.splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    before = set(os.listdir("/proc/self/fd"))
    stage = Stage(Places("shop", str(tmp_path), str(tmp_path)))
    yield stage
    stage.server.close()
    stage.loop.close()
    assert set(os.listdir("/proc/self/fd")) <= before, "a descriptor leaked"


def test_a_command_gets_its_progress_and_its_result(stage: Stage) -> None:
    with stage.client() as sock:
        request, reply = stage.ask(sock, "upgrade", release="/srv/shop")
        assert (request.command, request.args) == ("upgrade", {"release": "/srv/shop"})
        assert request.peer is not None and (request.peer.pid, request.peer.uid) == (
            os.getpid(),
            os.geteuid(),
        )
        reply.progress("starting r2", done=1)
        reply.result(1, "rolled back", "Traceback", {"release": "r1"})
        progress, result = replies(sock)
        assert (progress["kind"], progress["text"], progress["data"]) == (
            "progress",
            "starting r2",
            {"done": 1},
        )
        assert result == {
            "v": 1,
            "id": "a" * 32,
            "kind": "result",
            "code": 1,
            "text": "rolled back",
            "detail": "Traceback",
            "data": {"release": "r1"},
        }


def test_a_request_byte_by_byte_is_one_request(stage: Stage) -> None:
    with stage.client() as sock:
        for byte in line():
            sock.send(bytes([byte]))
            stage.turn(1)
        assert len(stage.asked) == 1


def test_one_connection_can_ask_again_after_the_result(stage: Stage) -> None:
    with stage.client() as sock:
        for number in range(3):
            _, reply = stage.ask(sock)
            reply.result(0, str(number))
            assert replies(sock)[0]["text"] == str(number)
        assert len(stage.asked) == 3


def test_a_second_request_waits_for_the_first_ones_result(stage: Stage) -> None:
    with stage.client() as sock:
        sock.sendall(line("status") + line("history"))
        stage.turn()
        assert [request.command for request, _ in stage.asked] == ["status"]
        stage.asked[0][1].result(0, "")
        stage.turn()
        assert [request.command for request, _ in stage.asked] == ["status", "history"]


def test_a_second_result_is_ignored(stage: Stage) -> None:
    with stage.client() as sock:
        _, reply = stage.ask(sock)
        reply.result(0, "first")
        reply.result(1, "second")
        reply.progress("late")
        assert [item["text"] for item in replies(sock)] == ["first"]


def test_a_client_that_vanishes_in_the_middle_of_a_command_changes_nothing(stage: Stage) -> None:
    sock = stage.client()
    _, reply = stage.ask(sock, "upgrade")
    assert reply.waiting
    sock.close()
    stage.turn()
    assert not reply.waiting and len(stage.server) == 0
    reply.progress("starting")
    reply.result(0, "done")


def test_a_client_that_vanishes_between_two_turns_is_noticed_when_it_is_answered(stage: Stage) -> None:
    sock = stage.client()
    _, reply = stage.ask(sock, "upgrade")
    sock.close()
    reply.progress("starting")
    reply.result(0, "done")
    stage.turn()
    assert len(stage.server) == 0


def test_a_request_whose_client_left_at_once_is_still_a_request(stage: Stage) -> None:
    sock = connect(stage.places.control_sock)
    sock.sendall(line("stop"))
    sock.close()
    stage.turn()
    assert [request.command for request, _ in stage.asked] == ["stop"]
    assert len(stage.server) == 0


def test_a_client_that_shut_its_side_still_gets_the_answer(stage: Stage) -> None:
    with stage.client() as sock:
        sock.sendall(line())
        sock.shutdown(socket.SHUT_WR)
        stage.turn()
        stage.asked[0][1].result(0, "here")
        assert sock.recv(1000).endswith(b"\n") and sock.recv(1000) == b""


def test_an_idle_client_is_dropped_and_one_that_waits_for_a_result_is_not(stage: Stage) -> None:
    with stage.client() as idle, stage.client() as slow, stage.client() as waiting:
        slow.send(b'{"v":')
        stage.ask(waiting, "upgrade")
        stage.after(IDLE_TIMEOUT_S - 0.1)
        assert len(stage.server) == 3
        stage.after(0.2)
        assert idle.recv(10) == b"" and slow.recv(10) == b""
        stage.after(3600)
        assert len(stage.server) == 1


def test_dribbling_bytes_does_not_prolong_the_time_for_a_request(stage: Stage) -> None:
    with stage.client() as sock:
        for _ in range(11):
            with contextlib.suppress(OSError):
                sock.send(b" ")
            stage.after(1.0)
        assert len(stage.server) == 0


def test_an_endless_line_is_refused(stage: Stage) -> None:
    with stage.client() as sock:
        sock.setblocking(False)
        for _ in range(4):
            with contextlib.suppress(OSError):
                sock.send(b"x" * (MAX_REQUEST_BYTES // 2))
            stage.turn()
        (result,) = replies(sock)
        assert result["code"] == 2 and "at most 65536 bytes" in result["text"]
        assert len(stage.server) == 0


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n", b"[]\n", b"{}\n", b"\x00\xff\n"])
def test_what_is_no_request_is_answered_and_hung_up(stage: Stage, junk: bytes) -> None:
    with stage.client() as sock:
        sock.sendall(junk)
        stage.turn()
        (result,) = replies(sock)
        assert result["kind"] == "result" and result["code"] == 2
        assert len(stage.server) == 0 and not stage.asked


def test_the_thirty_third_client_is_told_so(stage: Stage) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            stack.enter_context(stage.client())
        one_more = stack.enter_context(stage.client())
        (result,) = replies(one_more)
        assert result["code"] == 5 and "waiting already" in result["text"]
        assert len(stage.server) == MAX_CLIENTS


def test_who_may_not_is_told_so_and_nothing_is_read(stage: Stage) -> None:
    stage.allowed = False
    with stage.client() as sock:
        (result,) = replies(sock)
        assert result["code"] == 2 and "permission denied" in result["text"]
        assert not stage.asked


def test_a_client_that_does_not_read_is_dropped_and_never_blocks(stage: Stage) -> None:
    with stage.client() as sock:
        _, reply = stage.ask(sock, "upgrade")
        for _ in range(100):
            reply.progress("x" * (MAX_OUTPUT_BYTES // 50))
        assert not reply.waiting and len(stage.server) == 0


def test_a_client_that_stopped_reading_is_dropped_after_a_while(stage: Stage) -> None:
    with stage.client() as sock:
        _, reply = stage.ask(sock, "upgrade")
        reply.result(0, "x" * (MAX_OUTPUT_BYTES // 2))
        stage.after(STUCK_TIMEOUT_S - 1)
        assert len(stage.server) == 1
        stage.after(2)
        assert len(stage.server) == 0


def test_a_long_answer_arrives_whole(stage: Stage) -> None:
    text = "x" * (MAX_OUTPUT_BYTES // 2)
    with stage.client() as sock:
        _, reply = stage.ask(sock)
        reply.result(0, text)
        data = b""
        sock.setblocking(False)
        while not data.endswith(b"\n"):
            with contextlib.suppress(BlockingIOError):
                data += sock.recv(1 << 20)
            stage.turn(1)
        assert json.loads(data)["text"] == text
        stage.ask(sock)
        assert len(stage.asked) == 2


def test_without_descriptors_accepting_rests_instead_of_spinning(stage: Stage) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sock = connect(stage.places.control_sock)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        stage.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    stage.turn()
    assert len(stage.server) == 0
    stage.after(1.1)
    stage.turn()
    assert len(stage.server) == 1
    sock.close()


def test_closing_delivers_what_was_said(stage: Stage) -> None:
    with stage.client() as sock:
        _, reply = stage.ask(sock, "stop")
        reply.result(0, "stopped")
        stage.server.close()
        assert b"stopped" in sock.recv(1000) and sock.recv(1000) == b""
        stage.server = ControlServer(
            stage.loop, open_control_socket(stage.places), lambda _: True, stage.handle
        )


# The file


def test_the_socket_is_the_owners_only(stage: Stage) -> None:
    info = os.lstat(stage.places.control_sock)
    assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600


def test_with_a_control_group_the_socket_is_the_groups_too(tmp_path: Path) -> None:
    places = Places("shop", str(tmp_path), str(tmp_path))
    with open_control_socket(places, control_gid=os.getegid()):
        info = os.lstat(places.control_sock)
        assert stat.S_IMODE(info.st_mode) == 0o660 and info.st_gid == os.getegid()


def test_a_dead_supervisors_socket_is_replaced(tmp_path: Path) -> None:
    places = Places("shop", str(tmp_path), str(tmp_path))
    open_control_socket(places).close()
    with open_control_socket(places):
        connect(places.control_sock).close()


def test_a_living_supervisors_socket_is_left_alone(tmp_path: Path) -> None:
    places = Places("shop", str(tmp_path), str(tmp_path))
    with open_control_socket(places):
        with pytest.raises(ControlError, match="another supervisor answers"):
            open_control_socket(places)
        connect(places.control_sock).close()


@pytest.mark.parametrize("plant", ["file", "folder", "symlink"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, plant: str) -> None:
    places = Places("shop", str(tmp_path), str(tmp_path))
    path = Path(places.control_sock)
    if plant == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir() if plant == "folder" else path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"):
        open_control_socket(places)
    assert path.is_symlink() or path.exists()


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot make the control socket"):
        open_control_socket(Places("shop", str(tmp_path / "none"), ""))


def test_a_path_of_more_than_107_bytes_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    places = Places("shop", str(deep), str(deep))
    with open_control_socket(places):
        connect(places.control_sock).close()
        with pytest.raises(ControlError, match="another supervisor"):
            open_control_socket(places)
    remove_own_socket(places.control_sock)
    assert not os.path.lexists(places.control_sock)


# Who may


def test_owner_root_and_the_control_group_may() -> None:
    allowed = allow_owner_and_group(1000, 50)
    assert allowed(Peer(1, 1000, 1)) and allowed(Peer(1, 0, 0))
    assert allowed(Peer(1, 1001, 1, frozenset({1, 50})))
    assert not allowed(Peer(1, 1001, 1, frozenset({1, 51})))
    assert not allow_owner_and_group(1000, None)(Peer(1, 1001, 50, frozenset({50})))


def test_the_kernel_says_who_and_in_which_groups() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == {os.getegid(), *os.getgroups()}
