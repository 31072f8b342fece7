"""What Linux does with shared listeners: the facts that the design stands on.

Nothing of ours runs here but the kernel's own behaviour, with real sockets.  When one of these
fails on a new kernel, a sentence of ARCHITECTURE.md has become wrong.
"""

import ast
import errno
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as sock:
        yield sock


def other_holder(listener: socket.socket) -> socket.socket:
    """Another descriptor of the same socket, as one that a worker got by SCM_RIGHTS."""
    return socket.socket(fileno=os.dup(listener.fileno()))


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=5)


# -- shutdown() ------------------------------------------------------------------------


def test_shutdown_of_a_shared_listener_kills_accept_for_every_holder(listener: socket.socket) -> None:
    with other_holder(listener) as worker:
        worker.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError) as caught:
        listener.accept()
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ConnectionRefusedError):
        connect(listener)


def test_shutdown_of_a_shared_unix_listener_cannot_even_be_seen(tmp_path: Path) -> None:
    """It still says SO_ACCEPTCONN=1, and refuses for ever: only a connect finds out."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with other_holder(listener) as worker:
            worker.shutdown(socket.SHUT_RDWR)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(tmp_path / "sock"))


def test_close_of_a_shared_listener_hurts_nobody(listener: socket.socket) -> None:
    with connect(listener):
        other_holder(listener).close()
        accepted, _ = listener.accept()
        accepted.close()


def shutdowns_of_listeners(source: str) -> list[int]:
    """The lines on which something that is named like a listener is shut down."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "shutdown"
        and any(
            word in ast.unparse(node.func.value).lower() for word in ("listen", "server_sock", "acceptor")
        )
    ]


def test_the_search_for_shutdowns_finds_them() -> None:
    assert shutdowns_of_listeners("self._listeners[name].shutdown(socket.SHUT_RD)") == [1]
    assert shutdowns_of_listeners("\nfor l in xs:\n    l.listener.sock.shutdown(2)") == [3]
    assert shutdowns_of_listeners("self._sock.shutdown(socket.SHUT_WR)  # not the listener") == []


def test_nobody_shuts_a_listener_down() -> None:
    files = [
        path for part in ("supervisor", "worker", "shared") for path in (REPOSITORY / part).rglob("*.py")
    ]
    assert len(files) > 10
    found = [f"{path}:{number}" for path in files for number in shutdowns_of_listeners(path.read_text())]
    assert not found, "shutdown() on a shared listener kills it for every process"


# -- O_NONBLOCK ------------------------------------------------------------------------


def test_o_nonblock_is_shared_by_all_holders(listener: socket.socket) -> None:
    with other_holder(listener) as worker:
        listener.setblocking(False)
        assert not os.get_blocking(worker.fileno())
        os.set_blocking(worker.fileno(), True)
        assert os.get_blocking(listener.fileno())
        # And Python does not look: it believes what it set itself.
        assert listener.gettimeout() == 0.0


def test_accepted_sockets_do_not_inherit_it(listener: socket.socket) -> None:
    os.set_blocking(listener.fileno(), False)
    with connect(listener):
        # Not listener.accept(): Python's own sets what socket.setdefaulttimeout() says.
        descriptor, _ = listener._accept()
        assert os.get_blocking(descriptor)
        os.close(descriptor)


def test_close_on_exec_belongs_to_the_descriptor(listener: socket.socket) -> None:
    with other_holder(listener) as worker:
        worker.set_inheritable(True)
        assert fcntl.fcntl(listener.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


# -- epoll -----------------------------------------------------------------------------


def test_the_ghost_of_a_listener_that_was_closed_but_not_taken_out_of_epoll(listener: socket.socket) -> None:
    reader, writer = os.pipe()
    with connect(listener), select.epoll() as epoll:
        ghost = os.dup(listener.fileno())
        epoll.register(ghost, select.EPOLLIN)
        os.close(ghost)
        assert epoll.poll(5) == [(ghost, select.EPOLLIN)]  # for a descriptor that is closed
        assert epoll.poll(0) == [(ghost, select.EPOLLIN)]  # and again, for ever
        os.dup2(reader, ghost)  # the number is another file's now, and cannot take the old one out
        with pytest.raises(FileNotFoundError):
            epoll.modify(ghost, select.EPOLLIN)
        with pytest.raises(FileNotFoundError):
            epoll.unregister(ghost)
        assert epoll.poll(0) == [(ghost, select.EPOLLIN)]
    for fd in (reader, writer, ghost):
        os.close(fd)


def test_taken_out_before_it_is_closed_it_does_not_haunt(listener: socket.socket) -> None:
    epoll = select.epoll()
    ours = os.dup(listener.fileno())
    epoll.register(ours, select.EPOLLIN)
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.unregister(ours)
    os.close(ours)
    with connect(listener):
        assert epoll.poll(5) == [(listener.fileno(), select.EPOLLIN)]
    epoll.close()


def test_level_triggered_epoll_tells_a_late_listener_of_what_waits(listener: socket.socket) -> None:
    """A worker that resumes puts the listener back, and needs no other wake-up."""
    with connect(listener):
        select.select([listener], [], [], 5)
        epoll = select.epoll()
        epoll.register(listener.fileno(), select.EPOLLIN)
        assert epoll.poll(0) == [(listener.fileno(), select.EPOLLIN)]
        epoll.close()


# -- the accept queue ------------------------------------------------------------------


def test_connections_wait_in_order_while_nobody_accepts(listener: socket.socket) -> None:
    """Quiesce, then resume, in another process: nobody is refused, nobody overtakes."""
    clients = [connect(listener) for _ in range(8)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)  # heard although nobody has accepted yet
    old = other_holder(listener)
    first, _ = old.accept()
    old.close()  # the old worker leaves; the queue is the kernel's
    seen = [first]
    with other_holder(listener) as new:
        new.settimeout(5)
        seen += [new.accept()[0] for _ in range(7)]
    for sock in seen:
        sock.sendall(b"hello " + sock.recv(100))
    assert [client.recv(100) for client in clients] == [b"hello %d" % number for number in range(8)]
    for sock in clients + seen:
        sock.close()


def test_a_second_accept_finds_nothing_although_epoll_woke_both(listener: socket.socket) -> None:
    """Readiness is a hint: the other worker was faster, and a blocking accept would hang."""
    listener.setblocking(False)
    with other_holder(listener) as worker:
        worker.setblocking(False)
        epolls = [select.epoll(), select.epoll()]
        for epoll, sock in zip(epolls, (listener, worker), strict=True):
            epoll.register(sock.fileno(), select.EPOLLIN)
        with connect(listener):
            assert all(epoll.poll(5) for epoll in epolls)
            worker.accept()[0].close()
            with pytest.raises(BlockingIOError):
                listener.accept()
        for epoll in epolls:
            epoll.close()


# -- the end of a channel --------------------------------------------------------------


def test_a_seqpacket_reset_is_reported_before_what_is_still_to_be_read() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(b"never read")
        theirs.send(b"last words")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            ours.recv(100)
        assert ours.recv(100) == b"last words"
        assert ours.recv(100) == b""


def test_an_empty_packet_looks_like_the_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(b"")
        empty = ours.recvmsg(100)
        theirs.close()
        assert empty == ours.recvmsg(100) == (b"", [], 0, None)
