"""Listening addresses of every kind, and what lies at the path of a unix one: stale, foreign, replaced."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, get, prepared, reserved_port, running
from load import LoadClient, fresh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_stale_socket_file_is_replaced_and_removed_at_the_end(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / "shop.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[f"unix:{path}"]) as instance:
        with LoadClient(instance.target, fresh(2), max_answers=50) as load:
            assert load.wait_report().failures() == {}
        assert instance.get("/").release == "v1"
    assert not path.exists()


def test_somebody_elses_living_socket_is_left_alone(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / "shop.sock"
    v1 = build(tmp_path, "v1", notes)
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        inode = path.stat().st_ino
        with prepared(tmp_path / "instance", v1, binds=[f"unix:{path}"]) as instance:
            instance.expect("ERROR")
            outcome = instance.start()
            assert outcome is not None and outcome.code in (2, 3), outcome
            assert str(path) in outcome.text
        assert path.stat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_plain_file_is_left_alone(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / "shop.sock"
    path.write_text("precious")
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[f"unix:{path}"]) as instance:
        instance.expect("ERROR")
        outcome = instance.start()
        assert outcome is not None and outcome.code in (2, 3), outcome
        assert str(path) in outcome.text
    assert path.read_text() == "precious"


def test_a_file_that_replaced_ours_is_not_removed(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / "shop.sock"
    v1 = build(tmp_path, "v1", notes)
    with running(tmp_path / "instance", v1, binds=[f"unix:{path}"]), socket.socket(socket.AF_UNIX) as other:
        os.unlink(path)
        other.bind(str(path))
        inode = path.stat().st_ino
    assert path.stat().st_ino == inode


def test_every_kind_of_address_at_once(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with reserved_port("::1") as port6:
        binds = [port.address, port6.address, f"unix:{tmp_path}/shop.sock", f"unix:@quiesce-{port.number}"]
        with running(tmp_path / "instance", v1, binds=binds) as instance:
            assert len(instance.status()["listeners"]) == 4
            for release in (v1, v2):
                assert [get(bind.replace("@", "\0"), "/").release for bind in binds] == [release.name] * 4
                if release is v1:
                    instance.ok("upgrade", "--release", str(v2.path))
        with pytest.raises(ConnectionRefusedError):
            get(port6.address, "/")
