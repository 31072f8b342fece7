"""Listeners: bound, inherited, stale, foreign; real sockets all."""

import errno
import json
import os
import re
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quiesce.shared.errors import ConfigError, ListenError
from quiesce.supervisor.config import Listen
from quiesce.supervisor.listeners import Committed, Listeners, retire


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


# A successor takes over


def handed_over(listeners: Listeners) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """State as it comes out of JSON, and what a store would hold: copies, while the first owner dies."""
    state = json.loads(json.dumps(listeners.to_state()))
    store = {item.store_name: os.dup(item.sock.fileno()) for item in listeners if not item.inherited}
    listeners.forget()
    return state, store


def test_a_successor_takes_the_same_sockets_with_everything_that_is_known_of_them(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = opened(Listen("http", "127.0.0.1:0", backlog=7), Listen("u", f"unix:{path}", mode="0600"))
    was = [(item.name, item.address, item.wanted, item.key, item.inode) for item in first]
    assert all(re.fullmatch("[0-9a-f]{16}", item.key) for item in first)
    state, store = handed_over(first)
    second = Listeners()
    with socket.create_connection((was[0][1].host, was[0][1].port), timeout=5):  # it waits in the queue
        adopted = second.adopt(state, store, [])
        assert (adopted.taken, adopted.anew, adopted.problems) == (frozenset(store), (), ())
        assert [(item.name, item.address, item.wanted, item.key, item.inode) for item in second] == was
        next(iter(second)).sock.accept()[0].close()
    assert all(not os.get_inheritable(fd) and not os.get_blocking(fd) for fd in second.fds())
    second.close()
    assert not path.exists()


def test_sockets_of_a_unit_are_found_by_their_address_whatever_their_order() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        first = opened(Listen("http", "fd://web"), inherited=[("web", one.fileno()), ("web", two.fileno())])
        addresses = {item.name: item.address for item in first}
        state, store = handed_over(first)
        assert store == {}
        second = Listeners()
        adopted = second.adopt(state, {}, [("web", two.fileno()), ("x", 0), ("web", one.fileno())])
        assert adopted.problems == () and {item.name: item.address for item in second} == addresses
        second.close()


def test_a_unit_whose_address_has_changed_is_taken_and_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        state, _ = handed_over(opened(Listen("http", "fd://web"), inherited=[("web", one.fileno())]))
        second = Listeners()
        adopted = second.adopt(state, {}, [("web", two.fileno())])
        assert [item.address.port for item in second] == [two.getsockname()[1]]
        assert adopted.anew == tuple(second) and "is opened again" in adopted.problems[0]
        second.close()


def test_what_the_store_has_lost_is_bound_again_and_what_cannot_be_is_said() -> None:
    wanted = [Listen("a", "127.0.0.1:0"), Listen("b", "127.0.0.1:0"), Listen("c", "fd://gone-1")]
    with socket.create_server(("127.0.0.1", 0)) as passed:
        first = opened(*wanted, inherited=[("gone-1", passed.fileno())])
    (a, b, _) = (item.address for item in first)
    state, store = handed_over(first)
    for fd in store.values():
        os.close(fd)
    with socket.create_server(("127.0.0.1", b.port)):
        second = Listeners()
        adopted = second.adopt(state, {}, [])
        assert second.names() == ["a"] and [item.address for item in second] == [a]
        assert adopted.anew == tuple(second) and len(adopted.problems) == 3
        assert "its queue is lost" in adopted.problems[0]
        assert "the listener 'b' is lost: cannot bind" in adopted.problems[1]
        assert "the listener 'c' is lost: fd://gone-1 is not passed any more" in adopted.problems[2]
        second.close()


def test_a_stored_descriptor_that_does_not_listen_is_closed_and_said() -> None:
    state, store = handed_over(opened(Listen("http", "127.0.0.1:0")))
    ((name, fd),) = store.items()
    os.close(fd)
    second = Listeners()
    adopted = second.adopt(state, {name: os.open("/dev/null", os.O_RDONLY)}, [])
    assert adopted.taken == {name} and "no socket" in adopted.problems[0] and second.names() == []


@pytest.mark.parametrize(
    "record", [{}, {"name": "a", "address": "?", "key": "x", "listen": {}}, {"listen": 5}]
)
def test_a_state_that_means_nothing_hurts_nobody(record: dict[str, Any]) -> None:
    state, store = handed_over(opened(Listen("http", "127.0.0.1:0")))
    second = Listeners()
    adopted = second.adopt([record, *state], store, [])
    assert (
        second.names() == ["http"] and len(adopted.problems) == 1 and "cannot be read" in adopted.problems[0]
    )
    second.close()


def test_a_state_of_a_newer_version_is_read() -> None:
    state, store = handed_over(opened(Listen("http", "127.0.0.1:0")))
    state[0]["new"] = 1
    state[0]["listen"]["new"] = 1
    second = Listeners()
    assert second.adopt(state, store, []).problems == ()
    second.close()


def test_a_cold_start_takes_stored_sockets_of_its_addresses(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = opened(Listen("http", "127.0.0.1:0"), Listen("u", f"unix:{path}"))
    port = next(iter(first)).address.port
    _, store = handed_over(first)
    wanted = [Listen("new", "127.0.0.1:0"), Listen("web", f"127.0.0.1:{port}"), Listen("v", f"unix:{path}")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = Listen("bad", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ListenError):
            Listeners().open([*wanted, bad], [], store)
    second = Listeners()
    assert second.open(wanted, [], store) == frozenset(store)
    assert second.names() == ["new", "web", "v"] and {item.store_name for item in second} > set(store)
    second.close()
    assert not path.exists()


# Changed while we live


def change(
    listeners: Listeners, *wanted: Listen, inherited: list[tuple[str, int]] | None = None
) -> Committed:
    plan = listeners.plan_change(wanted, inherited or [])
    return listeners.commit(listeners.prepare(plan, inherited or []))


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_listeners_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    stays, goes = Listen("http", "127.0.0.1:0"), Listen("u", f"unix:{path}")
    listeners = opened(stays, goes)
    socket_before = next(iter(listeners)).sock
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(path))
    done = change(listeners, stays, Listen("more", "[::1]:0"))
    assert listeners.names() == ["http", "more"] and listeners.wanted() == [stays, Listen("more", "[::1]:0")]
    assert next(iter(listeners)).sock is socket_before
    assert done.unlisten == ("u",) and [item.name for item in done.listen] == ["more"] and not done.problems
    assert done.added == done.listen and not path.exists(), "somebody new would be reset"
    (removed,) = done.removed
    removed.sock.accept()[0].close()
    waiting.close()
    retire(removed)
    listeners.close()


def test_an_occupied_address_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = opened(Listen("http", "127.0.0.1:0"))
    before = [*listeners], len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = Listen("bad", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="another process listens there"):
            change(listeners, Listen("u", f"unix:{path}"), bad)
    assert not path.exists() and ([*listeners], len(os.listdir("/proc/self/fd"))) == before
    listeners.close()


def test_a_prepared_change_can_be_given_up() -> None:
    listeners = opened(Listen("http", "127.0.0.1:0"))
    prepared = listeners.prepare(listeners.plan_change([Listen("b", "[::1]:0")], []), [])
    port = prepared.added[0].address.port
    assert answers(port, "::1")
    listeners.abandon(prepared)
    assert not answers(port, "::1") and listeners.names() == ["http"]
    listeners.close()


def test_a_name_whose_address_changes_is_let_go_first() -> None:
    listeners = opened(Listen("http", "127.0.0.1:0"))
    old = next(iter(listeners)).address.port
    done = change(listeners, Listen("http", "[::1]:0"))
    assert done.unlisten == ("http",) and [item.address.kind for item in done.listen] == ["tcp6"]
    retire(done.removed[0])
    assert not answers(old) and listeners.names() == ["http"]
    listeners.close()


def test_a_new_name_keeps_the_socket() -> None:
    listeners = opened(Listen("http", "127.0.0.1:0"))
    was = next(iter(listeners))
    done = change(listeners, Listen("web", "127.0.0.1:0"))
    (now,) = listeners
    assert (now.name, now.sock, now.key) == ("web", was.sock, was.key)
    assert done.unlisten == ("http",) and done.listen == (now,) and done.added == () == done.removed
    listeners.close()


def test_names_can_be_exchanged() -> None:
    a, b = Listen("a", "127.0.0.1:0"), Listen("b", "[::1]:0")
    listeners = opened(a, b)
    sockets = {item.name: item.sock for item in listeners}
    done = change(listeners, Listen("a", "[::1]:0"), Listen("b", "127.0.0.1:0"))
    assert {item.name: item.sock for item in listeners} == {"a": sockets["b"], "b": sockets["a"]}
    assert sorted(done.unlisten) == ["a", "b"] and not done.removed
    listeners.close()


@pytest.mark.parametrize(("old", "new"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_from_one_interface_to_all_and_back_nobody_is_refused(old: str, new: str) -> None:
    """Both listen until the old one is retired, and no option that would let others share is left on."""
    listeners = opened(Listen("http", f"{old}:0"))
    port = next(iter(listeners)).address.port
    listeners.close()
    listeners = opened(Listen("http", f"{old}:{port}"))
    waits = socket.create_connection(("127.0.0.1", port), timeout=5)
    done = change(listeners, Listen("http", f"{new}:{port}"))
    with late_client(port) as late:
        done.removed[0].sock.accept()[0].close()  # who was in the queue is still there, and nobody else
        with pytest.raises(BlockingIOError):
            done.removed[0].sock.accept()
        waits.close()
        retire_and_check(done, listeners)
        select.select([], [late], [], 20)  # its SYN was ignored, not refused, and is sent again
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        next(iter(listeners)).sock.accept()[0].close()
    assert answers(port)
    with pytest.raises(ListenError, match="another process listens there"):
        opened(Listen("http", f"{old}:{port}"))
    listeners.close()


@contextmanager
def late_client(port: int) -> Iterator[socket.socket]:
    """It has begun to connect."""
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", port)) == errno.EINPROGRESS
        yield client


def retire_and_check(done: Committed, listeners: Listeners) -> None:
    for item in (*done.removed, *listeners):
        assert item.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    retire(done.removed[0])


def test_a_socket_of_the_managers_is_not_sealed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        inherited = [("web", passed.fileno())]
        listeners = opened(Listen("http", "127.0.0.1:0"), Listen("web", "fd://web"), inherited=inherited)
        done = change(listeners, Listen("http", "127.0.0.1:0"), inherited=inherited)
        assert answers(passed.getsockname()[1])
        retire(done.removed[0])
        listeners.close()


def test_backlog_changes_on_the_open_socket() -> None:
    listeners = opened(Listen("http", "127.0.0.1:0", backlog=1))
    done = change(listeners, Listen("http", "127.0.0.1:0", backlog=64))
    assert not done.unlisten and not done.listen and not done.problems
    port = next(iter(listeners)).address.port
    # All of them are in at once: with room for one the kernel would let the third wait for its SYN to be sent again.
    clients = [socket.create_connection(("127.0.0.1", port), timeout=0.9) for _ in range(32)]
    for client in clients:
        client.close()
    listeners.close()


def test_mode_and_owner_of_a_unix_socket_change_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = opened(Listen("u", f"unix:{path}", mode="0600"))
    inode = path.stat().st_ino
    assert not change(listeners, Listen("u", f"unix:{path}", mode="0660", owner=str(os.geteuid()))).problems
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (0o660, inode)
    unknown = listeners.plan_change([Listen("u", f"unix:{path}", mode="0666", group="not-there")], [])
    with pytest.raises(ConfigError, match="no group"):
        listeners.prepare(unknown, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    path.unlink()
    path.write_text("somebody else's")
    path.chmod(0o600)
    done = change(listeners, Listen("u", f"unix:{path}", mode="0666"))
    assert "is not the socket that we made" in done.problems[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listeners.close()
    assert path.exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_root_gives_an_open_unix_socket_to_others_and_takes_it_back(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = opened(Listen("u", f"unix:{path}", mode="0600"))
    change(listeners, Listen("u", f"unix:{path}", mode="0600", owner="65534", group="65534"))
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    change(listeners, Listen("u", f"unix:{path}", mode="0600"))
    assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())
    listeners.close()


def test_passed_sockets_can_go_and_come_back_but_a_new_one_takes_a_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        inherited = [("web", passed.fileno())]
        http = Listen("http", "127.0.0.1:0")
        listeners = opened(http, Listen("web", "fd://web"), inherited=inherited)
        done = change(listeners, http, inherited=inherited)
        retire(done.removed[0])
        assert answers(passed.getsockname()[1]), "the socket is the manager's"
        change(listeners, http, Listen("web", "fd://web"), inherited=inherited)
        assert listeners.names() == ["http", "web"]
        before = [*listeners]
        with pytest.raises(ConfigError, match="restart the service"):
            change(listeners, http, Listen("other", "fd://other"), inherited=inherited)
        assert [*listeners] == before
        listeners.close()


def test_two_listeners_never_get_one_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        inherited = [("web", one.fileno()), ("web", two.fileno())]
        web, other = Listen("http", "fd://web"), Listen("http-2", "127.0.0.1:0")
        with pytest.raises(ListenError, match="'http-2'"):
            opened(web, other, inherited=inherited)
        listeners = opened(web, inherited=inherited)
        with pytest.raises(ConfigError, match="'http-2'"):
            change(listeners, web, other, inherited=inherited)
        assert listeners.names() == ["http", "http-2"]
        listeners.close()
