"""docs/containers.md and the Containerfile say what quiesce does: options, paths, and sums of times."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.fences import fences
from quiesce.supervisor.cli_parser import BY_NAME, parse
from quiesce.supervisor.cli_start import load
from quiesce.supervisor.config import Settings
from quiesce.supervisor.places import find_instances, resolve_places

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/containers.md").read_text()
CONTAINERFILE = (ROOT / "examples/Containerfile").read_text().replace("\\\n", " ")
(YAML,) = [fence.body for fence in fences(PAGE) if fence.language == "yaml"]


def instruction(name: str) -> list[str]:
    return re.findall(rf"^{name}\s+(.*)$", CONTAINERFILE, re.M)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of the image: its options, with the release that it copies."""
    (entry,), (command,) = instruction("ENTRYPOINT"), instruction("CMD")
    words = [*json.loads(entry), *json.loads(command)]
    assert words[:2] == ["quiesce", "run"]
    ((source, _target),) = [line.split() for line in instruction("COPY")]
    monkeypatch.chdir(ROOT / "examples" / source)
    return load(parse(words[1:])).settings


def test_the_image_starts_what_is_copied(settings: Settings) -> None:
    module = settings.service.app.partition(":")[0]
    assert (Path(settings.service.release) / f"{module}.py").exists()
    (port,) = instruction("EXPOSE")
    assert [str(listener.address) for listener in settings.listen] == [f"0.0.0.0:{port}"]


def test_it_is_neither_root_nor_behind_a_shell() -> None:
    (user,) = instruction("USER")
    assert user.split(":")[0] not in ("0", "root")
    assert all(line.startswith("[") for line in (*instruction("ENTRYPOINT"), *instruction("CMD")))


def test_commands_find_the_instance_by_the_images_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    ((variables),) = instruction("ENV")
    env = dict(word.split("=", 1) for word in variables.split())
    places = resolve_places("default", environ=env, uid=1000)
    assert (places.runtime_dir, places.state_dir) == (env["RUNTIME_DIRECTORY"], env["STATE_DIRECTORY"])
    assert Path(places.runtime_dir).name == places.name, "--name must find it too"
    assert find_instances(environ=env, uid=1000, run="/nonexistent") == []
    (mount,) = re.findall(r"mountPath: ([\w/]+)", YAML)
    for path in (places.runtime_dir, places.state_dir):
        assert Path(path).parent == Path(mount), "the volume itself may be everybody's"
    assert env["TMPDIR"] == mount


def test_the_pod_waits_long_enough(settings: Settings) -> None:
    rollout, worker = settings.rollout, settings.worker
    needed = rollout.drain_delay + 2 * rollout.drain_timeout + worker.exit_timeout
    assert number("terminationGracePeriodSeconds") > needed
    assert "above `drain_delay` + 2 × `drain_timeout` + `exit_timeout`" in PAGE
    startup = YAML[YAML.index("startupProbe") : YAML.index("readinessProbe")]
    assert number("periodSeconds", startup) * number("failureThreshold", startup) > rollout.start_timeout
    (stop,) = re.findall(r"--stop-timeout (\d+)", PAGE)
    assert int(stop) > rollout.drain_timeout + worker.exit_timeout


def test_the_probes_ask_for_what_is_there(settings: Settings) -> None:
    assert set(re.findall(r"path: (/\w+), port", YAML)) == {settings.rollout.ready_path}
    for words in re.findall(r"command: \[quiesce, (\w+)\]", YAML):
        assert words in BY_NAME


def number(key: str, text: str = YAML) -> Any:
    (found,) = re.findall(rf"{key}: (\d+)", text)
    return int(found)
