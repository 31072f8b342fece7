"""`quiesce reconfigure`, `quiesce reopen`: what is around the workers changes, and nobody notices but who asked."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Instance, Port, get, prepared, reserved_port
from load import LoadClient, busy, fresh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def listen(*addresses: str) -> str:
    return "".join(
        f'[[listen]]\nname = "l{number}"\naddress = "{address}"\n' for number, address in enumerate(addresses)
    )


@contextmanager
def configured(directory: Path, notes: Notes, config: str, target: str) -> Iterator[Instance]:
    """An instance whose listeners are in its file and not on its command line, which would win."""
    release = build(directory, "v1", notes)
    with prepared(directory / "instance", release, binds=[], config=config) as instance:
        instance.must_start()
        instance.binds = (target,)
        yield instance
        assert instance.stop() == 0


def write(instance: Instance, config: str, rollout: str = "") -> None:
    file = instance.directory / "quiesce.toml"
    file.write_text(f'{config}\n[rollout]\nhealth_path = "/healthz"\nbake = "0.1s"\n{rollout}')


def addresses(instance: Instance) -> list[str]:
    return [item["address"] for item in instance.status()["listeners"]]


def test_a_listener_comes_and_goes_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    more = f"unix:{tmp_path}/more.sock"
    with configured(tmp_path, notes, listen(port.address), port.address) as instance:
        with LoadClient(port.address, fresh(2), busy(2)) as load:
            for _ in range(3):
                write(instance, listen(port.address, more))
                outcome = instance.ok("reconfigure")
                assert " ".join(outcome.out.split()) == f"reconfigured listens on {more}"
                assert addresses(instance) == [port.address, more]
                assert [get(more, "/").release for _ in range(8)] == ["v1"] * 8
                write(instance, listen(port.address))
                assert f"no longer on {more}" in " ".join(instance.ok("reconfigure").out.split())
                assert not (tmp_path / "more.sock").exists()
            assert load.stop().failures() == {}
        assert "nothing has changed" in instance.ok("reconfigure").text


def test_who_was_accepted_stays_when_the_listener_goes(tmp_path: Path, notes: Notes, port: Port) -> None:
    with (
        reserved_port() as other,
        configured(tmp_path, notes, listen(port.address, other.address), port.address) as instance,
    ):
        client = http.client.HTTPConnection(other.host, other.number, timeout=20)
        client.request("GET", "/")
        client.getresponse().read()
        held = client.sock
        write(instance, listen(port.address))
        instance.ok("reconfigure")
        client.request("GET", "/")
        assert client.getresponse().read() and client.sock is held
        client.close()
        with pytest.raises(ConnectionRefusedError):
            get(other.address, "/")


def test_from_one_interface_to_all_of_them_under_load(tmp_path: Path, notes: Notes, port: Port) -> None:
    everywhere = f"0.0.0.0:{port.number}"
    with configured(tmp_path, notes, listen(port.address), port.address) as instance:
        with LoadClient(port.address, fresh(4), busy(2)) as load:
            for address in (everywhere, port.address, everywhere):
                write(instance, listen(address))
                instance.ok("reconfigure")
                assert addresses(instance) == [address]
            assert load.stop().failures() == {}
        assert get(f"127.0.0.2:{port.number}", "/").release == "v1"


def test_what_cannot_be_changes_nothing(tmp_path: Path, notes: Notes, port: Port) -> None:
    with (
        configured(tmp_path, notes, listen(port.address), port.address) as instance,
        socket.create_server(("127.0.0.1", 0)) as taken,
        reserved_port() as free,
    ):
        occupied = f"127.0.0.1:{taken.getsockname()[1]}"
        before = instance.status()
        for config, says in (
            (listen(free.address, occupied), "another process listens there"),
            (listen(port.address, "fd://web"), "restart the service"),
            (listen(port.address) + '[log]\nfile = "/no/such/folder/x.log"\n', "cannot open log.file"),
            (listen(port.address) + "[log]\nlevle = 1\n", 'did you mean "level"?'),
            ("[[listen", "not valid TOML"),
        ):
            write(instance, config)
            outcome = instance("reconfigure")
            assert outcome.code == 2 and says in outcome.text, outcome
            assert addresses(instance) == [port.address]
            with pytest.raises(ConnectionRefusedError):
                get(free.address, "/")
        assert [w["pid"] for w in instance.status()["workers"]] == [w["pid"] for w in before["workers"]]


def test_each_key_says_when_it_comes_into_force(tmp_path: Path, notes: Notes, port: Port) -> None:
    config = listen(port.address)
    with configured(tmp_path, notes, config, port.address) as instance:
        pids = instance.worker_pids()
        write(instance, config + "[service]\nthreads = 3\n", 'drain_delay = "1s"\n')
        text = instance.ok("reconfigure").text
        assert "rollout.drain_delay" in text and "service.threads" in text and "quiesce upgrade" in text
        data = instance.ok("reconfigure", "--json").json
        # What was live is in force, and what takes an upgrade still does.
        assert data["live"] == [] and data["rollout"] == ["service.threads"] and data["restart"] == []
        assert instance.worker_pids() == pids
        instance.ok("upgrade")
        assert "nothing has changed" in instance.ok("reconfigure").text


def test_logrotate_and_a_new_place_for_the_log(tmp_path: Path, notes: Notes, port: Port) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    config = listen(port.address) + f'[log]\nfile = "{first}"\n'
    with configured(tmp_path, notes, config, port.address) as instance:
        rotated = first.rename(tmp_path / "first.log.1")
        assert str(first) in instance.ok("reopen").text
        pid = instance.worker_pids()[0]
        assert not any(str(rotated) == path for path in files_of(pid)), "a worker holds the old file"
        assert str(first) in files_of(pid) and str(first) in files_of(instance.supervisor_pid)
        write(instance, listen(port.address) + f'[log]\nfile = "{second}"\n')
        assert "log.file" in instance.ok("reconfigure").text
        assert str(second) in files_of(pid) and str(first) not in files_of(pid)
        assert instance.status()["log"] == str(second)
    assert "quiesce has stopped" in second.read_text()


def files_of(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(link.readlink()))
        except FileNotFoundError:
            pass  # closed while we look
    return found
