"""Any interpreter, and what it says when it cannot be a worker."""

import os
import sys
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from unit.worker.fake_supervisor import BOOTSTRAP, PACKAGE, PYTHON, FakeSupervisor, roots

STDLIB_ONLY = Path(sys.base_prefix) / "bin" / "python3"


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtualenv of this Python without anything in it."""
    import venv

    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


def refused(supervisor: FakeSupervisor) -> str:
    failed = supervisor.expect(msg.Failed)
    assert supervisor.wait() == WorkerExit.CONFIG
    assert f"quiesce: {failed.reason}\n" in supervisor.output()
    return failed.reason


def test_the_interpreter_s_own_quiesce_is_used(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path, lend="/nonexistent", version="9.9") as supervisor:
        hello = supervisor.expect(msg.Hello)
        assert (hello.protocol, hello.oldest_protocol) == (msg.PROTOCOL, msg.OLDEST_PROTOCOL)
        assert hello.python == "{}.{}.{}".format(*sys.version_info)
        assert hello.pid == supervisor.process.pid
        assert hello.state == "starting"


def test_a_release_of_the_same_python_borrows(tmp_path: Path, bare: str) -> None:
    with FakeSupervisor(tmp_path, python=bare) as supervisor:
        supervisor.expect(msg.Hello)


def test_another_python_is_told_what_to_install(tmp_path: Path, bare: str) -> None:
    with FakeSupervisor(tmp_path, python=bare, version="3.99") as supervisor:
        reason = refused(supervisor)
        assert reason.endswith(f"run {bare} -m pip install quiesce")
        assert "has no quiesce, and cannot borrow that of the supervisor's Python 3.99" in reason


def test_a_broken_quiesce_says_how_to_mend_it(tmp_path: Path, bare: str) -> None:
    lend = tmp_path / "lend"
    (lend / "quiesce").mkdir(parents=True)
    (lend / "quiesce" / "__init__.py").write_text("")
    with FakeSupervisor(tmp_path, python=bare, lend=str(lend)) as supervisor:
        reason = refused(supervisor)
        assert str(lend / "quiesce") + " is too old or incomplete" in reason
        assert reason.endswith(f"run {bare} -m pip install --upgrade --force-reinstall quiesce")


def test_a_quiesce_without_its_parser_says_so(tmp_path: Path, bare: str) -> None:
    with FakeSupervisor(tmp_path, python=bare, lend=str(PACKAGE.parent)) as supervisor:
        assert "cannot be imported (ModuleNotFoundError: No module named 'httptools')" in refused(supervisor)


def test_an_old_python_is_refused_in_words_it_can_read(tmp_path: Path) -> None:
    versions = Path(sys.base_prefix).parent
    old = sorted(p for p in versions.glob("3.[4-9].*/bin/python") if p.exists())
    if not old:
        pytest.skip("no Python older than 3.10 beside this one")
    for python in (old[0], old[-1]):
        # These know no -P, which is why the bootstrap does without.
        with FakeSupervisor(tmp_path, python=str(python), flags=()) as supervisor:
            assert refused(supervisor).endswith("quiesce needs Python 3.11 or newer in a release")


@pytest.mark.parametrize("flags", [("-P",), ()])
def test_nothing_of_the_release_is_imported_before_configure(tmp_path: Path, flags: tuple[str, ...]) -> None:
    for name in ("json", "socket", "select", "quiesce", "worker", "httptools", "enum"):
        (tmp_path / f"{name}.py").write_text("import os; os.write(2, b'IMPORTED'); os._exit(99)\n")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}."}
    # enum, json … are in the way of sitecustomize and .pth files too, with PYTHONPATH: as in a plain start.
    for name in ("enum", "select"):
        (tmp_path / f"{name}.py").unlink()
    with FakeSupervisor(tmp_path, flags=flags, env=env) as supervisor:
        supervisor.expect(msg.Hello)
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output() == ""


def test_pythonpath_may_be_how_quiesce_was_installed(tmp_path: Path, bare: str) -> None:
    with FakeSupervisor(
        tmp_path, python=bare, lend="", version="9.9", env={"PYTHONPATH": roots()}
    ) as supervisor:
        supervisor.expect(msg.Hello)


def test_a_package_quiesce_of_the_release_is_not_taken_for_ours(tmp_path: Path, bare: str) -> None:
    package = tmp_path / "src" / "quiesce"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("OWNER = 'release'\n")
    (package / "shop.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', []); return []\n"
    )
    for python in (bare, PYTHON):
        with FakeSupervisor(tmp_path, python=python, env={"PYTHONPATH": str(tmp_path / "src")}) as supervisor:
            supervisor.start("quiesce.shop:app")
            assert supervisor.probe().status == 200


def test_agents_of_the_interpreter_run(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "sitecustomize.py").write_text("import os; os.write(2, b'agent here')")
    with FakeSupervisor(tmp_path, env={"PYTHONPATH": str(agent)}) as supervisor:
        supervisor.expect(msg.Hello)
        assert supervisor.output() == "agent here"


def test_a_supervisor_that_is_gone_ends_the_worker(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.channel.close()
        assert supervisor.wait() == WorkerExit.OK


def test_the_file_does_nothing_when_it_is_imported() -> None:
    import runpy

    assert "BASELINE" not in runpy.run_path(BOOTSTRAP, run_name="__mp_main__")
