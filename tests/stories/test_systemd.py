"""The units of systemd/ under a real systemd: start, reload to a new release, be refused, stop.

Each test has an instance (or a service) of its own in one box.  Releases lie in a directory that the box sees under
the same path, so a ``current`` link means the same on both sides.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.releases import Behaviour, Notes, build, link
from load import LoadClient, Report, busy, fresh, post
from sdbox.box import Box, require_boxes

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".socket"))
QUIESCE = "/opt/quiesce/bin/quiesce"

CONFIG = """
[service]
app = "shop:app"
release = "{current}"
workers = 2
threads = 4

[[listen]]
name = "http"
address = "fd://http"

[rollout]
health_path = "/healthz"
bake = "0.2s"
drain_timeout = "5s"
"""


@dataclass(frozen=True)
class Instance:
    """One instance of quiesce@.service, with releases a (serves at first), b, and bad (fails on import)."""

    box: Box
    name: str
    releases: Path

    @property
    def service(self) -> str:
        return f"quiesce@{self.name}.service"

    @property
    def socket(self) -> str:
        return f"quiesce@{self.name}.socket"

    @property
    def target(self) -> str:
        """Its listening socket as the load client, which runs outside, sees it."""
        return f"unix:{self.box.root}/run/quiesce-{self.name}.sock"

    def deploy(self, release: str) -> None:
        link(self.releases / "current", self.releases / release)

    def ctl(self, verb: str, *units: str) -> tuple[int, str]:
        """systemctl VERB; its exit status, and what it and the journal said."""
        result = self.box.run("systemctl", verb, *(units or (self.service,)))
        return result.returncode, result.stderr + self.box.journal("-u", self.service)

    def shown(self, *properties: str) -> dict[str, str]:
        """Properties of the service."""
        result = self.box.run("systemctl", "show", "-p", ",".join(properties), self.service)
        return dict(line.split("=", 1) for line in result.stdout.splitlines())

    def pids(self) -> list[str]:
        """The processes in the service's cgroup."""
        control_group = self.shown("ControlGroup")["ControlGroup"]
        if not control_group:
            return []
        return self.box.run("cat", f"/sys/fs/cgroup{control_group}/cgroup.procs").stdout.split()

    def status(self) -> dict[str, object]:
        result = self.box.run(QUIESCE, "status", "--json", "--name", self.name)
        assert result.returncode == 0, result.stderr
        document: dict[str, object] = json.loads(result.stdout)
        return document


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("systemd")


@pytest.fixture(scope="module")
def box(directory: Path) -> Iterator[Box]:
    require_boxes()
    # The overlay holds this machine's root only; what lies on other mounts (a checkout, an interpreter) is bound.
    binds = [str(directory), f"{ROOT}:ro", f"{sys.base_prefix}:ro", f"{sys.prefix}:/opt/quiesce:ro"]
    with Box("units", [spec for spec in binds if not spec.startswith("/usr:")]) as box:
        for unit in UNITS:
            (box.root / "etc/systemd/system" / unit.name).write_text(unit.read_text())
        (box.root / "etc/quiesce").mkdir()
        assert box.run("systemctl", "daemon-reload").returncode == 0
        yield box


@pytest.fixture
def instance(box: Box, directory: Path, request: pytest.FixtureRequest) -> Iterator[Instance]:
    with prepared(box, directory, request.function.__name__.removeprefix("test_")[:30]) as instance:
        yield instance


@contextmanager
def prepared(box: Box, directory: Path, name: str) -> Iterator[Instance]:
    """An instance that has not been started; ends it at the end of the test."""
    releases = directory / name
    notes = Notes(releases / "notes")
    for release, behaviour in (("a", Behaviour()), ("b", Behaviour()), ("bad", Behaviour(on_import="raise"))):
        build(releases, release, notes, behaviour=behaviour)
    instance = Instance(box, name, releases)
    instance.deploy("a")
    config = CONFIG.format(current=releases / "current")
    (box.root / "etc/quiesce" / f"{name}.toml").write_text(config)
    try:
        yield instance
    finally:
        instance.ctl("stop", instance.socket, instance.service)


def assert_clean(report: Report) -> None:
    assert not report.failures(), report.explain()


def test_start_blocks_until_it_serves_and_status_says_what(instance: Instance) -> None:
    code, said = instance.ctl("start")
    assert code == 0, said
    # At once: `start` has returned, so the application answers.
    with LoadClient(instance.target, fresh(2), busy(1), max_answers=50) as load:
        assert_clean(load.wait_report())
    shown = instance.shown("ActiveState", "StatusText", "NRestarts")
    assert shown["ActiveState"] == "active" and shown["NRestarts"] == "0", said
    assert "r1" in shown["StatusText"], shown
    assert instance.status()["name"] == instance.name


def test_the_first_connection_starts_the_service(instance: Instance) -> None:
    code, said = instance.ctl("start", instance.socket)
    assert code == 0, said
    assert instance.shown("ActiveState")["ActiveState"] == "inactive"
    with LoadClient(instance.target, fresh(2), max_answers=10) as load:
        assert_clean(load.wait_report())
    assert instance.shown("ActiveState")["ActiveState"] == "active"


def test_reload_under_load_to_a_new_release(instance: Instance) -> None:
    assert instance.ctl("start")[0] == 0
    with LoadClient(instance.target, fresh(2, think_s=0.002), busy(2), post(1)) as load:
        load.wait_answers(50)
        instance.deploy("b")
        code, said = instance.ctl("reload")
        returned = time.monotonic()
        assert code == 0, said
        load.wait_answers(50)
        report = load.stop()
    assert_clean(report)
    assert report.fresh[-1].release == "b" and report.fresh[0].release == "a"
    assert report.stale_answers(returned, report.ended, "b") == []
    assert not report.judge_tokens(Notes(instance.releases / "notes").tokens)
    assert "r2" in instance.shown("StatusText")["StatusText"]


def test_reload_of_a_broken_release_fails_and_the_old_one_serves(instance: Instance) -> None:
    assert instance.ctl("start")[0] == 0
    with LoadClient(instance.target, fresh(2, think_s=0.002), busy(2)) as load:
        instance.deploy("bad")
        code, said = instance.ctl("reload")
        assert code != 0
        assert "Traceback" in said, said  # the journal says why
        load.wait_answers(50)
        report = load.stop()
    assert_clean(report)
    assert report.fresh[-1].release == "a"
    assert instance.shown("ActiveState")["ActiveState"] == "active"
    assert instance.box.run(QUIESCE, "upgrade", "--name", instance.name).returncode == 1


def test_stop_leaves_no_process_and_no_failure(instance: Instance) -> None:
    assert instance.ctl("start")[0] == 0
    assert len(instance.pids()) >= 3  # a supervisor, two workers
    with LoadClient(instance.target, busy(2), max_answers=20, wait_started=False) as load:
        load.wait_report()
    code, said = instance.ctl("stop", instance.socket, instance.service)
    assert code == 0, said
    # The journal and not `show`: an inactive unit that nobody refers to is unloaded, and its result forgotten.
    assert instance.shown("ActiveState")["ActiveState"] == "inactive"
    assert "Deactivated successfully" in said and "Main process exited" not in said, said
    assert instance.pids() == []
    assert "remains running after unit stopped" not in said
    runtime = instance.box.root / "run/quiesce" / instance.name
    assert not runtime.exists()


def test_a_restart_loses_no_connection(instance: Instance) -> None:
    assert instance.ctl("start")[0] == 0
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        code, said = instance.ctl("restart")
        assert code == 0, said
        load.wait_answers(20)
        assert_clean(load.stop())


def test_after_the_death_of_the_supervisor_another_one_serves(instance: Instance) -> None:
    """The first version: the workers finish and leave, clients wait in the socket unit's queue meanwhile."""
    assert instance.ctl("start")[0] == 0
    dead = instance.shown("MainPID")["MainPID"]
    old = set(instance.pids())
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        assert instance.box.run("kill", "-KILL", dead).returncode == 0
        load.wait_answers(200)
        while old & set(instance.pids()):  # the last of them may still be on its way out
            load.wait_answers(20)
        assert_clean(load.stop())
    assert instance.shown("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}


def test_a_mistake_in_the_configuration_is_not_tried_again(instance: Instance) -> None:
    config = instance.box.root / "etc/quiesce" / f"{instance.name}.toml"
    config.write_text(config.read_text() + '\n[limits]\nheader_byte = "1KiB"\n')
    code, said = instance.ctl("start")
    assert code != 0
    assert "header_bytes" in said  # the nearest key, in the journal
    shown = instance.shown("ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}


def test_one_service_on_port_80(box: Box, directory: Path) -> None:
    with prepared(box, directory, "default"):
        try:
            started = box.run("systemctl", "start", "quiesce.service")
            assert started.returncode == 0, started.stderr + box.journal("-u", "quiesce.service")
            asked = box.run(sys.executable, "-c", ASK, "http://127.0.0.1:80/")
            assert asked.stdout.startswith("200 "), asked.stdout + asked.stderr
        finally:
            stopped = box.run("systemctl", "stop", "quiesce.socket", "quiesce.service")
        assert stopped.returncode == 0, stopped.stderr + box.journal("-u", "quiesce.service")


ASK = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    print(answer.status, answer.read(100))
"""


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_about_our_units(box: Box, unit: Path) -> None:
    name = unit.name.replace("@.", "@verified.")
    # Its exit status is 0 even for unknown keys: only silence is approval.
    result = box.run("systemd-analyze", "verify", f"/etc/systemd/system/{name}")
    assert result.stdout + result.stderr == ""
    assert result.returncode == 0
