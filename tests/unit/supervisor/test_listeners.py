"""Listeners: bound, inherited, stale, foreign; real sockets all."""

import os
import socket
import stat
from pathlib import Path

import pytest

from quiesce.shared.errors import ConfigError, ListenError
from quiesce.supervisor.config import Listen
from quiesce.supervisor.listeners import Listeners


def opened(*wanted: Listen, inherited: list[tuple[str, int]] | None = None) -> Listeners:
    listeners = Listeners()
    listeners.open(wanted, inherited or [])
    return listeners


@pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1:0", socket.AF_INET), ("[::1]:0", socket.AF_INET6)]
)
def test_tcp_listens_with_the_port_that_the_kernel_chose(address: str, family: int) -> None:
    listeners = opened(Listen("http", address))
    (listener,) = listeners
    assert listener.address.port > 0
    with socket.create_connection((listener.address.host, listener.address.port), timeout=5) as client:
        assert client.family == family
    assert not os.get_inheritable(listener.sock.fileno())
    assert not os.get_blocking(listener.sock.fileno())
    listeners.close()


def test_v6_and_v4_of_the_same_port_live_side_by_side() -> None:
    first = opened(Listen("a", "[::]:0"))
    port = next(iter(first)).address.port
    both = opened(Listen("b", f"0.0.0.0:{port}"))
    both.close()
    first.close()


def test_a_taken_port_says_so_and_closes_what_was_opened_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ListenError, match="another process listens there"):
            opened(Listen("a", "127.0.0.1:0"), Listen("b", f"127.0.0.1:{port}"))
        assert len(os.listdir("/proc/self/fd")) == before


def test_backlog_is_the_kernels_maximum_by_default() -> None:
    listeners = opened(Listen("http", "127.0.0.1:0"))
    port = next(iter(listeners)).address.port
    # /proc/net/tcp says nothing of it; the queue itself does: more than any small default fits.
    clients = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
    for client in clients:
        client.close()
    listeners.close()


def test_unix_mode_and_removal_at_close(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = opened(Listen("http", f"unix:{path}", mode="0660"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listeners.close()
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # closed without unlink: as after SIGKILL
    listeners = opened(Listen("http", f"unix:{path}"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listeners.close()


def test_a_live_unix_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(ListenError, match="another process listens there"):
            opened(Listen("http", f"unix:{path}"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_live_unix_socket_with_a_full_queue_is_not_taken_for_stale(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        waiting = []
        for _ in range(16):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue never filled")
        with pytest.raises(ListenError, match="another process listens there"):
            opened(Listen("http", f"unix:{path}"))
        for client in waiting:
            client.close()


def test_what_is_not_a_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="not a socket"):
        opened(Listen("http", f"unix:{path}"))
    assert path.read_text() == "data"


def test_close_leaves_a_successors_unix_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = opened(Listen("http", f"unix:{path}"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        listeners.close()
        assert path.exists()


def test_an_abstract_socket_has_no_file() -> None:
    name = f"quiesce-test-{os.getpid()}"
    listeners = opened(Listen("http", f"unix:@{name}"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{name}")
    listeners.close()


def test_an_unknown_owner_is_a_configuration_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="no user 'nobody-has-this-name'"):
        opened(Listen("http", f"unix:{tmp_path}/s", owner="nobody-has-this-name"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_passed_socket_is_found_by_name_and_made_non_blocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        passed.setblocking(True)
        listeners = opened(Listen("http", "fd://web"), inherited=[("web", passed.fileno())])
        (listener,) = listeners
        assert listener.address.port == passed.getsockname()[1]
        assert not os.get_blocking(passed.fileno()), "O_NONBLOCK lives on the shared description"
        listeners.close()
        with socket.create_connection(passed.getsockname(), timeout=5):
            pass  # closing ours did nothing to theirs


def test_a_missing_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(ListenError, match=r"no socket named 'web'.*passed: other"):
        opened(Listen("http", "fd://web"), inherited=[("other", 0)])


def test_a_passed_descriptor_that_does_not_listen_is_refused() -> None:
    with socket.socket() as plain, pytest.raises(ListenError, match="ListenStream"):
        opened(Listen("http", "fd://web"), inherited=[("web", plain.fileno())])


def test_all_sockets_of_one_unit_share_a_name_and_all_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        passed = [("web", one.fileno()), ("other", 0), ("web", two.fileno())]
        listeners = opened(Listen("http", "fd://web"), inherited=passed)
        assert listeners.names() == ["http", "http-2"]
        assert {item.address.port for item in listeners} == {one.getsockname()[1], two.getsockname()[1]}
        listeners.close()
