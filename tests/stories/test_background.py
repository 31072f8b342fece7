"""In the background: start, a second start, stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps import Notes, build
from harness import Port, prepared
from harness.processes import wait_gone
from harness.verdict import assert_all_well, assert_serves
from load import LoadClient, fresh, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_start_upgrade_and_stop_in_the_background(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    log = f'[log]\nfile = "{tmp_path}/shop.log"\n'
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start", config=log) as instance:
        instance.must_start()
        # It accepts when `start` returns: no retry, no wait.
        assert instance.get("/").release == "v1"
        pid = instance.supervisor_pid
        with LoadClient(instance.target, fresh(2, think_s=0.002), post(1)) as load:
            instance.ok("upgrade", "--release", str(v2.path))
            report = load.stop()
        assert_all_well(report, notes)
        assert_serves(instance, v2, 2)
        assert instance.supervisor_pid == pid
        instance.ok("stop")
        assert wait_gone(pid, 0.0), "stop returned before the supervisor had gone"
        assert instance("status").code == 4
        assert instance("stop").code == 4


@pytest.mark.parametrize("mode", ["run", "start"])
def test_a_second_start_is_refused_with_busy(mode: str, tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode=mode) as instance:
        instance.must_start()
        again = instance.begin("start", "--bind", port.address, *instance.arguments).finish()
        assert again.code == 5, again
        assert_serves(instance, v1, 2)
        assert instance.stop() == 0


def test_start_and_start_again_after_stop(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1 = build(tmp_path, "v1", notes)
    with prepared(tmp_path / "instance", v1, binds=[port.address], mode="start") as instance:
        for _ in range(2):
            instance.must_start()
            assert_serves(instance, v1, 2)
            instance.ok("stop")
