"""A terminal that types commands into bash and reads what they print."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Finished:
    """A command that has ended: its whole ``output`` (standard error too) and its exit ``status``."""

    def __init__(self, output: str, status: int) -> None:
        self.output = output
        self.status = status


def run(command: str, cwd: Path, env: Mapping[str, str], timeout_s: float) -> Finished:
    """Run a command to its end."""
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Finished(result.stdout, result.returncode)


class Running:
    """A command that goes on running, as in a terminal of its own; `end` it."""

    def __init__(self, command: str, cwd: Path, env: Mapping[str, str]) -> None:
        # exec: the process that we signal at the end is the command's own, not a shell's.
        self._process = subprocess.Popen(
            ["bash", "-c", "exec " + command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self.output = ""

    def wait_for(self, pattern: re.Pattern[str], timeout_s: float) -> bool:
        """Read until the output begins with ``pattern``; False at the end of output or of the time."""
        deadline = time.monotonic() + timeout_s
        while not pattern.match(self.output):
            if not self._read(max(0.0, deadline - time.monotonic())):
                return False
        return True

    def end(self, timeout_s: float = 30.0) -> int:
        """Ctrl-C; return the exit status once it has ended (SIGKILL after ``timeout_s``)."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + timeout_s
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        try:
            status = self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._stdout.close()
        return status

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            return False
        data = os.read(self._stdout.fileno(), 65536)
        self.output += data.decode(errors="replace")
        return bool(data)
