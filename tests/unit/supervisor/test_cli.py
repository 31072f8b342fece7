"""The command: against a real control server that plays a supervisor, in threads, processes and a pty."""

import contextlib
import functools
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quiesce.supervisor import cli_parser, control_client
from quiesce.supervisor.cli import main
from quiesce.supervisor.config_keys import OPTION_KEYS
from quiesce.supervisor.control_protocol import Request
from quiesce.supervisor.control_server import ControlServer, Reply, open_control_socket
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.places import Places

Handler = Callable[[Request, Reply], None]
Capture = pytest.CaptureFixture[str]


class Stand:
    """A stand-in for a supervisor: the real control server on its own thread, with scripted answers."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.requests: list[Request] = []
        self.handlers: dict[str, Handler] = {}
        self._loop = Loop()
        self.asked = threading.Event()
        self._server = ControlServer(self._loop, open_control_socket(places), lambda _: True, self._handle)
        self._reading, self._writing = os.pipe()
        self._loop.watch(self._reading, lambda _: self._loop.stop())
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def _handle(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        self.asked.set()
        self.handlers.get(request.command, lambda _, reply: reply.result(0, "done"))(request, reply)

    def drop_clients(self) -> None:
        for client in list(self._server._clients):
            client.drop()

    def close(self) -> None:
        os.close(self._writing)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._server.close()
        self._loop.close()
        os.close(self._reading)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """An instance called "shop", the only one that can be found."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    only_here = functools.partial(control_client.find_instances, environ=environ, run=str(tmp_path / "run"))
    monkeypatch.setattr(control_client, "find_instances", only_here)
    stand = Stand(instance(tmp_path, "shop"))
    yield stand
    stand.close()


def instance(tmp_path: Path, name: str) -> Places:
    folder = tmp_path / "quiesce" / name
    folder.mkdir(parents=True)
    return Places(name, str(folder), str(folder))


def quiesce(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


# Requests


@pytest.mark.parametrize(
    ("argv", "command", "args"),
    [
        ("upgrade", "upgrade", {}),
        (
            "upgrade --label v2 --bake 500ms --if-changed",
            "upgrade",
            {"label": "v2", "bake": 0.5, "if_changed": True},
        ),
        ("upgrade --bake 0", "upgrade", {"bake": 0.0}),
        ("upgrade --release r2 --python .venv/bin/python --app a:b", "upgrade", None),
        (
            "upgrade --force --no-wait --wait-drained",
            "upgrade",
            {"force": True, "no_wait": True, "wait_drained": True},
        ),
        ("promote", "promote", {}),
        ("abort", "abort", {}),
        ("rollback", "rollback", {}),
        ("rollback feature/x", "rollback", {"which": "feature/x"}),
        ("rollback --bake 500ms", "rollback", {"bake": 0.5}),
        ("scale 4 --no-wait", "scale", {"workers": 4, "no_wait": True}),
        ("quiesce r1/2", "quiesce", {"what": "r1/2"}),
        ("resume all", "resume", {"what": "all"}),
        ("stop --now", "stop", {"now": True}),
        ("drain", "drain", {}),
        ("drain --no-wait", "drain", {"no_wait": True}),
        ("reconfigure", "reconfigure", {}),
        ("reexec", "reexec", {}),
        ("reexec --python /opt/new/bin/python", "reexec", {"python": "/opt/new/bin/python"}),
        ("reexec --python new/bin/python", "reexec", {"python": f"{Path.cwd()}/new/bin/python"}),
        ("reexec --python sh", "reexec", {"python": shutil.which("sh")}),
        ("reopen", "reopen", {}),
        ("history --limit 3", "history", {"limit": 3}),
        ("status", "status", {}),
    ],
)
def test_what_is_sent(
    stand: Stand, capsys: Capture, argv: str, command: str, args: dict[str, Any] | None
) -> None:
    assert quiesce(capsys, *argv.split())[0] == 0
    request = stand.requests[0]
    if args is None:
        args = {"release": f"{Path.cwd()}/r2", "python": ".venv/bin/python", "app": "a:b"}
    assert (request.command, request.args) == (command, args)
    assert len(request.id) == 32


def test_a_directory_to_roll_back_to_is_made_absolute(
    stand: Stand, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r/1").mkdir(parents=True)
    quiesce(capsys, "rollback", "r/1")
    quiesce(capsys, "rollback", ".")
    quiesce(capsys, "rollback", "r")  # without a slash it is an id or a label
    assert [request.args["which"] for request in stand.requests] == [f"{tmp_path}/r/1", str(tmp_path), "r"]


@pytest.mark.parametrize("argv", ["--name shop status", "status --name shop", "--json status --name=shop"])
def test_name_stands_before_or_after_the_command(stand: Stand, capsys: Capture, argv: str) -> None:
    assert quiesce(capsys, *argv.split())[0] == 0


def test_runtime_dir_stands_before_or_after_the_command(stand: Stand, capsys: Capture) -> None:
    for argv in (
        ["--runtime-dir", stand.places.runtime_dir, "stop"],
        ["stop", "--runtime-dir", stand.places.runtime_dir],
    ):
        assert quiesce(capsys, *argv) == (0, "done\n", "")


# Results


def test_a_good_result_goes_to_stdout_and_progress_to_stderr(stand: Stand, capsys: Capture) -> None:
    def upgrade(_: Request, reply: Reply) -> None:
        for text in ("starting r2", "starting r2", "baking r2\x1b[2J"):
            reply.progress(text)
        reply.result(0, "r2 serves", data={"release": "r2"})

    stand.handlers["upgrade"] = upgrade
    assert quiesce(capsys, "upgrade") == (0, "r2 serves\n", "starting r2\nbaking r2\\x1b[2J\n")
    _, out, _ = quiesce(capsys, "upgrade", "--json")
    assert json.loads(out) == {"code": 0, "text": "r2 serves", "detail": "", "release": "r2"}


@pytest.mark.parametrize(("code", "word"), [(1, "failed"), (3, "failed"), (2, "refused"), (5, "refused")])
def test_a_bad_result_goes_to_stderr_with_its_detail(
    stand: Stand, capsys: Capture, code: int, word: str
) -> None:
    stand.handlers["upgrade"] = lambda _, reply: reply.result(code, "no", "Traceback:\n  x\n")
    assert quiesce(capsys, "upgrade") == (code, "", f"quiesce: upgrade {word}: no\nTraceback:\n  x\n")
    got, out, err = quiesce(capsys, "--json", "upgrade")
    assert got == code and err == ""
    assert json.loads(out) == {"code": code, "text": "no", "detail": "Traceback:\n  x\n"}


def test_history_of_an_instance_that_does_not_run(tmp_path: Path, capsys: Capture) -> None:
    where = ("--runtime-dir", str(tmp_path / "run"), "--name", "shop")
    code, out, err = quiesce(capsys, "history", *where)
    assert code == 4 and not out and err  # and nothing is on disk
    state = tmp_path / "run" / "state"
    state.mkdir(parents=True)
    (state / "history.jsonl").write_text(
        '{"schema":1,"release":"r7","path":"/srv/v7","outcome":"done","at":1}\n'
    )
    code, out, err = quiesce(capsys, "history", *where)
    assert code == 0 and "r7" in out and "shop does not run" in err and str(state) in err
    assert json.loads(quiesce(capsys, "history", "--json", *where)[1])["entries"][0]["release"] == "r7"
    assert quiesce(capsys, "status", *where)[0] == 4


def test_status_and_history_are_rendered_or_json(stand: Stand, capsys: Capture) -> None:
    stand.handlers["status"] = lambda _, reply: reply.result(0, "x", data={"name": "shop", "release": "r1"})
    stand.handlers["history"] = lambda _, reply: reply.result(0, "", data={"entries": []})
    assert quiesce(capsys, "status")[1].startswith("shop: r1 serves, ")
    assert json.loads(quiesce(capsys, "status", "--json")[1])["release"] == "r1"
    assert quiesce(capsys, "history")[1] == "no rollouts yet\n"
    assert json.loads(quiesce(capsys, "history", "--json")[1])["entries"] == []


def test_a_failed_status_is_no_table(stand: Stand, capsys: Capture) -> None:
    for command in ("status", "history"):
        stand.handlers[command] = lambda _, reply: reply.result(2, "not now")
        assert quiesce(capsys, command) == (2, "", f"quiesce: {command} refused: not now\n")


def test_stop_returns_when_the_last_of_them_has_let_go(stand: Stand, capsys: Capture) -> None:
    """The keeper holds the lock a moment longer than the supervisor: the next `start` must find it free."""
    Path(stand.places.lock).touch()
    program = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(flush=True); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, stand.places.lock], **pipes) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        timer = threading.Timer(0.3, lambda: print(file=holder.stdin, flush=True))
        timer.start()
        assert quiesce(capsys, "stop")[0] == 0
        assert not control_client.is_held(stand.places.lock), "it returned too early"
        assert holder.wait(10) == 0
        timer.join()


# Nobody there, or gone


def test_no_instance_at_all(stand: Stand, capsys: Capture) -> None:
    os.unlink(stand.places.control_sock)
    code, out, err = quiesce(capsys, "status")
    assert (code, out) == (4, "") and "start one with `quiesce run APP`" in err
    code, out, err = quiesce(capsys, "status", "--json")
    assert json.loads(out)["code"] == 4 and err == ""


def test_another_name_lists_those_that_run(stand: Stand, capsys: Capture) -> None:
    code, _, err = quiesce(capsys, "--name", "shpo", "status")
    assert code == 4
    assert err == f"quiesce: no instance 'shpo' runs. These run:\n  shop  ({stand.places.runtime_dir})\n"
    document = json.loads(quiesce(capsys, "--name", "shpo", "status", "--json")[1])
    assert document["instances"] == [{"name": "shop", "runtime_dir": stand.places.runtime_dir}]


def test_of_several_one_must_be_named(stand: Stand, capsys: Capture, tmp_path: Path) -> None:
    other = Stand(instance(tmp_path, "blog"))
    try:
        code, _, err = quiesce(capsys, "stop")
        assert code == 4 and "say which with --name" in err and "  blog  (" in err and "  shop  (" in err
        assert quiesce(capsys, "stop", "--name", "blog")[0] == 0
        assert [len(stand.requests), len(other.requests)] == [0, 1]
    finally:
        other.close()


def test_two_of_the_same_name_need_the_runtime_dir(stand: Stand, capsys: Capture, tmp_path: Path) -> None:
    other = Stand(instance(tmp_path / "run", "shop"))
    try:
        code, _, err = quiesce(capsys, "stop", "--name", "shop")
        assert code == 4 and "several instances 'shop' run, say which with --runtime-dir" in err
    finally:
        other.close()


def test_a_runtime_dir_without_an_instance(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = quiesce(capsys, "--runtime-dir", str(tmp_path), "status")
    assert code == 4 and f"no instance runs in {tmp_path}" in err


def test_a_supervisor_that_goes_away_before_the_result(stand: Stand, capsys: Capture) -> None:
    for command in ("upgrade", "stop"):
        stand.handlers[command] = lambda _, reply: stand.drop_clients()
        code, out, err = quiesce(capsys, command)
        assert (code, out) == (3, "") and "the supervisor went away before" in err and "quiesce status" in err


def test_a_supervisor_that_does_not_answer(
    stand: Stand, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "QUICK_TIMEOUT_S", 0.05)
    stand.handlers["status"] = lambda _, reply: None
    Path(stand.places.pid).write_text("811\n")
    code, _, err = quiesce(capsys, "status")
    assert code == 3 and "the supervisor (pid 811) does not answer" in err and "is not affected" in err


def test_something_else_on_the_socket(stand: Stand, capsys: Capture) -> None:
    stand.handlers["status"] = lambda _, reply: next(iter(stand._server._clients)).send(b"HTTP/1.1 400\r\n")
    code, _, err = quiesce(capsys, "status")
    assert code == 3 and "must be one JSON object" in err


def test_an_endless_answer_is_given_up(
    stand: Stand, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "MAX_REPLY_BYTES", 1000)
    stand.handlers["status"] = lambda _, reply: next(iter(stand._server._clients)).send(b"x" * 5000)
    code, _, err = quiesce(capsys, "status")
    assert code == 3 and "has no end" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not")
def test_who_may_not_is_told_who_may(stand: Stand, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    code = (  # everything is imported first: that user may not read our installation
        "import os, sys, quiesce.supervisor.control_client, locale; from quiesce.supervisor.cli import main; "
        f"os.setuid(12345); sys.exit(main(['--runtime-dir', {stand.places.runtime_dir!r}, 'stop']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd="/")
    assert done.returncode == 2 and "permission denied" in done.stderr and "control_group" in done.stderr


# Usage


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("statsu", 'there is no command "statsu"; did you mean `quiesce status`?'),
        ("xyzzy", 'there is no command "xyzzy"; `quiesce` alone lists the commands'),
        ("upgrade --lable x", "unknown option --lable; did you mean --label?"),
        ("upgrade --labe=x", "unknown option --labe; did you mean --label?"),
        ("run a:b --helth-path /", "unknown option --helth-path; did you mean --health-path?"),
        ("stop --zzzzzz", "unknown option --zzzzzz; see `quiesce stop --help`"),
        ("stop now", '"now" is one word too many; see `quiesce stop --help`'),
        ("upgrade --label", "argument --label: expected one argument"),
        ("scale many", "invalid int value: 'many'"),
        ("scale 0", "scale wants a number of workers from 1 to 1000, not 0"),
        ("scale 1001", "scale wants a number of workers from 1 to 1000, not 1001"),
        ("scale", "the following arguments are required: N"),
        ("upgrade --bake soon", '--bake wants a duration such as "30s"'),
        ("upgrade --canary 1", "`upgrade --canary` comes with a later version"),
        ("history --limit 0", "--limit wants a number from 1, not 0"),
        ("reexec --python no-such-python", "--python no-such-python: there is no such command in $PATH"),
        ("systemd", "the following arguments are required: NAME"),
        ("systemd shop --print units", "invalid choice: 'units'"),
        ("rotate", "did you mean `quiesce reopen`?"),
        ("check --name a/b x:y", "--name wants 1 to 64 letters"),
        ("check --config none.toml", "cannot read the configuration none.toml"),
        ("check x:y --workers none", '--workers wants a whole number, not "none"'),
        ("run x:y --log-format json", "--log-format comes with a later version"),
    ],
)
def test_usage_errors_are_2_and_send_nothing(stand: Stand, capsys: Capture, argv: str, says: str) -> None:
    code, out, err = quiesce(capsys, *argv.split())
    assert code == 2 and says in err and out == ""
    code, out, _ = quiesce(capsys, "--json", *argv.split())
    assert code == 2 and says in json.loads(out)["text"]
    assert stand.requests == []


def test_watching_is_for_people(stand: Stand, capsys: Capture) -> None:
    code, out, _ = quiesce(capsys, "status", "--watch", "--json")
    assert code == 2 and "--watch is for people" in json.loads(out)["text"] and stand.requests == []


def test_alone_it_lists_the_commands(capsys: Capture) -> None:
    code, out, _ = quiesce(capsys)
    assert code == 0
    for command in cli_parser.COMMANDS:
        assert f"\n    {command.name} " in out


@pytest.mark.parametrize("command", cli_parser.COMMANDS)
def test_every_help_teaches_by_an_example(capsys: Capture, command: cli_parser.Command) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command.name, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and f"Example:\n  {command.example}" in out
    assert cli_parser.parse(command.example.split()[1:]).command == command.name


def test_every_key_has_an_option(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    for key in OPTION_KEYS:
        assert (key.flag in out) == (not key.later), key.flag


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("quiesce 0.")


def test_show_config(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quiesce.toml").write_text('[service]\napp = "a:b"\n')
    code, out, _ = quiesce(
        capsys, "check", "--show-config", "--bake", "3s", "--name", "n", "--env", "A=1", "--env", "B=2"
    )
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and rows["service.app"].endswith("quiesce.toml") and '"3s"' in rows["rollout.bake"]
    assert rows["service.name"].endswith("option --name") and '{ A = "1", B = "2" }' in rows["service.env"]
    document = json.loads(quiesce(capsys, "check", "--show-config", "--json")[1])
    assert document["code"] == 0 and document["config_file"] == str(tmp_path / "quiesce.toml")


def test_status_imports_nothing_of_the_supervisor_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys; from quiesce.supervisor.cli import main; main(['--runtime-dir', sys.argv[1], 'status']); "
        "print(*[m for m in ('msgspec', 'dataclasses', 'asyncio', 'ssl', 'tomllib', 'subprocess', 'daemon', 'logging',"
        " 'quiesce.supervisor.config', 'quiesce.supervisor.main') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "", done.stdout


# Terminals, signals, pipes


@contextlib.contextmanager
def in_terminal(columns: int, *argv: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command with a pty as its three streams."""
    ours, theirs = pty.openpty()
    import termios

    termios.tcsetwinsize(theirs, (24, columns))
    command = [sys.executable, "-m", "quiesce", *argv]
    env = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        assert select.select([fd], [], [], 20)[0], data
        try:
            chunk = os.read(fd, 65536)
        except OSError:  # EIO: the other side of the pty is closed
            break
        if not chunk:
            break
        data += chunk
    return data


def test_on_a_terminal_progress_is_one_line_that_updates(stand: Stand) -> None:
    def upgrade(_: Request, reply: Reply) -> None:
        reply.progress("starting r2")
        reply.progress("b" * 100)
        reply.result(0, "r2 serves")

    stand.handlers["upgrade"] = upgrade
    with in_terminal(40, "--runtime-dir", stand.places.runtime_dir, "upgrade") as (process, fd):
        seen = read_until(fd, b"serves\r\n")
        assert process.wait(20) == 0
    assert seen == b"\rstarting r2\x1b[K\r" + b"b" * 38 + "…".encode() + b"\x1b[K\r\x1b[Kr2 serves\r\n"


def test_watch_redraws_until_ctrl_c(stand: Stand) -> None:
    stand.handlers["status"] = lambda _, reply: reply.result(0, "", data={"name": "shop", "release": "r1"})
    with in_terminal(80, "--runtime-dir", stand.places.runtime_dir, "status", "--watch") as (process, fd):
        seen = read_until(fd, b"\x1b[J")
        assert seen.startswith(b"\x1b[Hshop: r1 serves") and b"\x1b[K\r\n" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_ctrl_c_in_an_upgrade_is_130_and_the_rollout_goes_on(stand: Stand) -> None:
    stand.handlers["upgrade"] = lambda _, reply: reply.progress("starting r2")
    command = [sys.executable, "-m", "quiesce", "--runtime-dir", stand.places.runtime_dir, "upgrade"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert read_until(process.stderr.fileno(), b"\n") == b"starting r2\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b"quiesce: interrupted; the rollout goes on; see `quiesce status`\n"


def test_a_reader_that_left_is_no_error(stand: Stand) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "quiesce", "--runtime-dir", stand.places.runtime_dir, "upgrade"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_removed_working_directory_is_a_sentence(tmp_path: Path) -> None:
    # Gone before Python starts: where it goes later, and `-c` looks for modules in it, Python 3.13.0 itself fails.
    script = 'rmdir "$PWD" && exec "$@"'
    for number, argv in enumerate((["check", "a:b"], ["upgrade", "--release", "x"])):
        gone = tmp_path / f"gone{number}"
        gone.mkdir()
        command = ["sh", "-c", script, "sh", sys.executable, "-m", "quiesce", *argv]
        done = subprocess.run(command, cwd=gone, capture_output=True, text=True, timeout=30)
        assert done.returncode == 2 and "the working directory has been removed" in done.stderr
