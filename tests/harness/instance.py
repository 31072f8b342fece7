"""One instance of quiesce as a real process, with the commands a user has."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

from apps import Release
from harness.output import Output
from harness.processes import (
    descendants,
    descriptors,
    footprint,
    kill,
    read_proc,
    subreaper,
    sweep,
    wait_gone,
)
from load.wire import parse_target

# The one beside this interpreter, unless somebody wants to test another installation.
QUIESCE = Path(os.environ.get("QUIESCE_COMMAND") or Path(sys.executable).parent / "quiesce")
START_S = 60.0
COMMAND_S = 90.0

# What no test expects in a log unless it says so.
SURPRISES = re.compile(
    r"Traceback \(most recent|\bERROR\b|\bCRITICAL\b|level=error|ResourceWarning|IllegalTransition"
)


@dataclass(frozen=True)
class Outcome:
    """A command that has ended.  Times are CLOCK_MONOTONIC seconds, just before it began and after it ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    began: float
    ended: float

    @property
    def text(self) -> str:
        """Everything it printed."""
        return self.out + self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __str__(self) -> str:
        took = self.ended - self.began
        return f"{shlex.join(self.argv)} -> {self.code} in {took:.2f} s\n{self.out}\n{self.err}"


@dataclass(frozen=True)
class Reply:
    """A plain answer: ``payload`` is the body without the shop's first line."""

    status: int
    release: str
    body: bytes

    @property
    def payload(self) -> str:
        return self.body.partition(b"\n")[2].decode("utf-8", "replace")


def get(target: str, path: str, timeout_s: float = 20.0) -> Reply:
    """One GET on a connection of its own."""
    family, address = parse_target(target)
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(address)
        connection.sock = sock
        connection.request("GET", path, headers={"Connection": "close", "X-Nonce": "get"})
        response = connection.getresponse()
        reply = Reply(response.status, response.headers.get("X-Release", ""), response.read())
        response.close()
    return reply


class Pending:
    """A command that runs.  ``command``: what stands before its arguments."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, command: Sequence[str] = (str(QUIESCE),)
    ) -> None:
        self.argv = tuple(argv)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*command, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(env),
            cwd=cwd,
        )

    def finish(self, timeout_s: float = COMMAND_S) -> Outcome:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(
                f"quiesce {shlex.join(self.argv)} did not end in {timeout_s} s\n{out}\n{err}"
            ) from None
        return Outcome(self.argv, self.process.returncode, out, err, self.began, time.monotonic())


@dataclass
class Instance:
    """A running (or starting, or stopped) instance.

    Attributes:
        process: The foreground process of ``run``: the keeper, or the supervisor with ``--no-keeper``.
        target: The first listener as the load client wants it.
        out, log: Standard output and standard error of ``run``, line by line.
        command: `quiesce`; another installation's, or one that becomes somebody else first.
        surprises_allowed: Regular expressions of log lines that this test expects.
    """

    directory: Path
    binds: tuple[str, ...]
    env: dict[str, str]
    mode: str = "run"
    surprises_allowed: list[str] = field(default_factory=list)
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = (str(QUIESCE),)
    process: subprocess.Popen[bytes] | None = None
    out: Output = field(init=False, repr=False)
    log: Output = field(init=False, repr=False)

    @property
    def runtime_dir(self) -> Path:
        return self.directory / "rt"

    @property
    def target(self) -> str:
        return self.binds[0]

    # Starting

    def start(self) -> Outcome | None:
        """``quiesce run`` or ``quiesce start`` with ``arguments``.

        Returns:
            None once it runs; what it said if it did not come up.
        """
        argv = [self.mode, "--runtime-dir", str(self.runtime_dir)]
        argv += [word for bind in self.binds for word in ("--bind", bind)]
        argv += self.arguments
        return self._start_background(argv) if self.mode == "start" else self._start_foreground(argv)

    def must_start(self) -> None:
        """`start`, where nothing else is expected."""
        refused = self.start()
        assert refused is None, f"it did not start: {refused}"

    def _start_background(self, argv: list[str]) -> Outcome | None:
        outcome = Pending(argv, self.env, self.directory, self.command).finish(START_S)
        return None if outcome.code == 0 else outcome

    def _start_foreground(self, argv: list[str]) -> Outcome | None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*self.command, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            cwd=self.directory,
            start_new_session=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.out = Output(os.dup(self.process.stdout.fileno()), "stdout")
        self.log = Output(os.dup(self.process.stderr.fileno()), "stderr")
        self.process.stdout.close()
        self.process.stderr.close()
        # The banner is printed when it accepts, and names the next commands: that is the fact.
        if self.out.wait_for(lambda line: "quiesce" in line and "upgrade" in line, START_S) is not None:
            return None
        if not wait_gone(self.process.pid, 10):
            raise AssertionError(f"no banner and no end:\n{self.out.text}\n{self.log.text}")
        code = self.process.wait()
        return Outcome(tuple(argv), code, self.out.text, self.log.text, began, time.monotonic())

    # Requests

    def get(self, path: str, bind: int = 0, timeout_s: float = 20.0) -> Reply:
        """One GET on a connection of its own."""
        return get(self.binds[bind], path, timeout_s)

    # Commands

    def begin(self, *argv: str) -> Pending:
        """Start a command without waiting for it."""
        argv = (*argv, "--runtime-dir", str(self.runtime_dir))
        return Pending(argv, self.env, self.directory, self.command)

    def __call__(self, *argv: str, timeout_s: float = COMMAND_S) -> Outcome:
        """Run a command to its end: ``instance("upgrade", "--bake", "0.1")``."""
        return self.begin(*argv).finish(timeout_s)

    def ok(self, *argv: str, timeout_s: float = COMMAND_S) -> Outcome:
        """Run a command that must exit 0."""
        outcome = self(*argv, timeout_s=timeout_s)
        assert outcome.code == 0, f"{outcome}\nlog:\n{self.log_text()[-6000:]}"
        return outcome

    def status(self) -> dict[str, Any]:
        return dict(self.ok("status", "--json").json)

    def wait_status(
        self, wanted: Callable[[dict[str, Any]], object], timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """The first status document that is wanted: only for facts that send no message to anybody.

        Each turn blocks on a real command; the time only bounds a failing test.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if wanted(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not so in {timeout_s} s: {json.dumps(status, indent=1)}\n{self.log_text()[-6000:]}"
                )

    def settled(self, workers: int, timeout_s: float = 40.0) -> dict[str, Any]:
        """Status once exactly so many workers run and all accept (older generations have left)."""
        return self.wait_status(
            lambda status: (
                [w["state"] for w in status["workers"]] == ["accepting"] * workers
                and status["rollout"]["state"] == "idle"
            ),
            timeout_s,
        )

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    @property
    def supervisor_pid(self) -> int:
        return int(self.status()["supervisor"]["pid"])

    @property
    def keeper_pid(self) -> int:
        """The keeper above the supervisor."""
        status = self.status()
        if isinstance(status.get("keeper"), int):
            return int(status["keeper"])
        supervisor = read_proc(status["supervisor"]["pid"])
        assert supervisor is not None
        return supervisor.parent

    def log_text(self) -> str:
        if self.mode == "run":
            return self.log.text
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("**/*.log")))

    def expect(self, *patterns: str) -> None:
        """Log lines that match one of these are no surprise to this test."""
        self.surprises_allowed += patterns

    # The end

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        kill(self.supervisor_pid, number)

    def kill_supervisor(self, number: int = SIGKILL, timeout_s: float = 40.0) -> dict[str, Any]:
        """Kill it; returns the status of the next one, once that is crash safe again."""
        pid = self.supervisor_pid
        kill(pid, number)
        assert wait_gone(pid), f"{pid} has survived signal {number}"
        return self.wait_restarted(pid, timeout_s)

    def wait_restarted(self, pid: int, timeout_s: float = 40.0) -> dict[str, Any]:
        """The status of the supervisor after ``pid``, once that is crash safe.

        While there is none, `status` says so with an exit code, which is no failure of this test.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            outcome = self("status", "--json")
            if outcome.code == 0 and outcome.json["supervisor"]["pid"] != pid and outcome.json["crash_safe"]:
                return dict(outcome.json)
            if time.monotonic() > deadline:
                raise AssertionError(f"no next supervisor: {outcome}\n{self.log_text()[-6000:]}")

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM to the foreground process (or ``quiesce stop``), and its exit code."""
        if self.process is None:
            return self("stop", timeout_s=timeout_s).code
        if self.process.poll() is None:
            kill(self.process.pid, signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end of the foreground process."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            alive = "\n".join(map(str, descendants(self.process.pid).values()))
            raise AssertionError(
                f"still there after {timeout_s} s\n{alive}\n{self.log.text[-6000:]}"
            ) from None

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:  # sweep() has killed it
                self.process.wait()
            self.out.close()
            self.log.close()

    def check_log(self) -> None:
        """No line that nobody expected."""
        lines = self.log_text().splitlines()
        allowed = [re.compile(pattern) for pattern in self.surprises_allowed]
        bad = [
            index
            for index, line in enumerate(lines)
            if SURPRISES.search(line) and not any(pattern.search(line) for pattern in allowed)
        ]
        if bad:
            around = "\n".join(lines[max(0, bad[0] - 5) : bad[0] + 25])
            raise AssertionError(
                f"{len(bad)} surprising lines in the log, the first with its neighbours:\n{around}"
            )


@contextlib.contextmanager
def prepared(
    directory: Path,
    release: Release,
    *options: str,
    binds: Sequence[str],
    workers: int = 2,
    mode: str = "run",
    bake: str | None = "0.1",
    rollout: Mapping[str, str] | None = None,
    config: str = "",
    env: Mapping[str, str] | None = None,
    path: Path | None = None,
    command: Sequence[str] = (str(QUIESCE),),
) -> Iterator[Instance]:
    """An instance that is not started yet; at the end nothing of it may be left, and its log held no surprise.

    Args:
        directory: For its runtime directory and configuration.
        options: More options of ``run`` or ``start``.
        bake: Bake window of the configuration, in seconds, as text; None leaves the default.
        rollout: More keys of the ``[rollout]`` table, as TOML values.
        config: More text of ``quiesce.toml``: whole tables.
        path: What is given as ``--release`` (a ``current`` symlink, say); else the release's own directory.
        command: See `Instance`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keys = {"health_path": '"/healthz"', **(rollout or {})}
    if bake is not None:
        keys["bake"] = f'"{bake}s"'
    file = directory / "quiesce.toml"
    file.write_text(f"{config}\n[rollout]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))
    instance = Instance(directory, tuple(binds), environment(env or {}), mode, command=tuple(command))
    instance.arguments = (
        *(release.app, "--release", str(path or release.path), "--workers", str(workers)),
        *("--interface", release.interface, "--config", str(file), *options),
    )
    keep = set(descendants())
    with subreaper():
        try:
            yield instance
            left = _wait_all_gone(keep)
            log = instance.log_text()[-6000:]
            assert not left, f"processes left behind: {[str(proc) for proc in left]}\n{log}"
        finally:
            sweep(keep)
            instance.close()
    instance.check_log()


@contextlib.contextmanager
def running(
    directory: Path, release: Release, *options: str, binds: Sequence[str], **rest: Any
) -> Iterator[Instance]:
    """`prepared`, started, and stopped with exit code 0 at the end of the block."""
    with prepared(directory, release, *options, binds=binds, **rest) as instance:
        instance.must_start()
        yield instance
        code = instance.stop()
        assert code == 0, f"stop: exit code {code}\n{instance.log_text()[-6000:]}"


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would tell quiesce that somebody is above it, or where to look for modules."""
    unwanted = ("NOTIFY_SOCKET", "FDSTORE", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "PYTHONPATH")
    prefixes = ("LISTEN_", "WATCHDOG_", "QUIESCE_")
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in unwanted and not name.startswith(prefixes)
    }
    return {**env, **more}


def _wait_all_gone(keep: set[int]) -> list[Any]:
    """Descendants that do not leave by themselves within some seconds; zombies of ours are reaped."""
    left = [proc for pid, proc in descendants().items() if pid not in keep]
    for proc in left:
        wait_gone(proc.pid, 10)
        current = read_proc(proc.pid)
        if current is not None and current.parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(proc.pid, os.WNOHANG)
    return [proc for pid, proc in descendants().items() if pid not in keep]


def held(pid: int) -> str:
    """What a process holds, for a message."""
    return f"{footprint(pid)} {descriptors(pid)}"
