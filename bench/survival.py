"""Measure what the death of each process costs: kill it in a real instance, under load, and time what follows.

    python bench/survival.py [--rounds N] [--workers N] [--hang]

Prints the table of docs/when-a-process-dies.md.  It needs an interpreter that has quiesce, and no rights.
Each death has an instance of its own (`quiesce start`, in a temporary directory, on the loopback), because a
second death soon after the first one is answered with a delay.  ``--hang`` adds a supervisor that is stopped,
which the keeper's watchdog finds out: 35 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quiesce.supervisor.control_client import ask
from quiesce.supervisor.places import Places

QUIESCE = Path(sys.executable).with_name("quiesce")
APP = """\
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\\n"]
"""
LOOK_S = 0.002
PATIENCE_S = 60.0


class Instance:
    """One `quiesce start`, and the questions that are asked of it."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        (directory / "bench_app.py").write_text(APP)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self.places = Places("bench", str(directory / "run"), str(directory / "run/state"))
        self._command = [str(QUIESCE), "start", "bench_app:application", "--release", str(directory)]
        self._command += ["--name", "bench", "--bind", f"127.0.0.1:{self.port}", "--workers", str(workers)]
        self._command += ["--runtime-dir", str(directory / "run")]

    def start(self) -> None:
        done = subprocess.run(self._command, cwd=self.directory, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"quiesce start failed, code {done.returncode}:\n{done.stdout}{done.stderr}")

    def ask(self, command: str) -> Any:
        result = ask(self.places, command, {}, lambda _progress: None, PATIENCE_S)
        assert result.code == 0, result
        return result.data

    def status(self) -> Any:
        return self.ask("status")

    def accepting(self) -> set[int]:
        return {worker["pid"] for worker in self.status()["workers"] if worker["state"] == "accepting"}


class Clients:
    """Two clients without a pause: one on a connection that it keeps, one with a new connection for each request."""

    def __init__(self, port: int) -> None:
        self.answers = self.failures = 0
        self.longest_s = 0.0
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(kept,)) for kept in (True, False)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        while self.answers < 100:  # both have begun
            time.sleep(LOOK_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, kept: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection.request("GET", "/", headers={} if kept else {"Connection": "close"})
                good = connection.getresponse().read() == b"ok\n"
            except (OSError, http.client.HTTPException):
                good = False
            took = time.monotonic() - began
            if not (kept and good):
                connection.close()  # the next request opens it anew
            with self._lock:
                self.answers += good
                self.failures += not good
                self.longest_s = max(self.longest_s, took)
            if not good:
                time.sleep(0.01)
        connection.close()


def until(fact: Callable[[], bool]) -> None:
    """Wait for something that sends no message to anybody."""
    end = time.monotonic() + PATIENCE_S
    while not fact():
        if time.monotonic() > end:
            sys.exit("it did not come back; look for what is left with `ps`")
        time.sleep(LOOK_S)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# -- deaths: each returns the seconds until all is well again ------------------------------


def supervisor(instance: Instance, number: int = signal.SIGKILL) -> float:
    """Until its successor answers `status`."""
    pid = instance.status()["supervisor"]["pid"]
    began = time.monotonic()
    os.kill(pid, number)
    # An answer of the dying one is none: it is the pid that counts.
    until(lambda: bool(instance.status()["supervisor"]["pid"] != pid))
    return time.monotonic() - began


def supervisor_again(instance: Instance) -> float:
    """The same, a second time within half a minute."""
    supervisor(instance)
    return supervisor(instance)


def hung(instance: Instance) -> float:
    """Until the successor of a stopped one answers."""
    return supervisor(instance, signal.SIGSTOP)


def replaced(instance: Instance) -> float:
    """No death: `reexec`, from the question to the answer of the new code."""
    began = time.monotonic()
    result = ask(instance.places, "reexec", {}, lambda _progress: None)
    assert result.code == 0, result
    return time.monotonic() - began


def one_worker(instance: Instance) -> float:
    """Until as many accept as before."""
    before = instance.accepting()
    began = time.monotonic()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(instance.accepting() - {victim}) == len(before))
    return time.monotonic() - began


def all_workers(instance: Instance) -> float:
    """Until a client that connects meanwhile is answered."""
    workers = instance.accepting()
    began = time.monotonic()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(map(gone, workers)))
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=PATIENCE_S)
    connection.request("GET", "/", headers={"Connection": "close"})
    assert connection.getresponse().read() == b"ok\n"
    return time.monotonic() - began


def keeper(instance: Instance) -> float:
    """Until there is another one that has everything."""
    pid = instance.status()["keeper"]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    def there() -> bool:
        status = instance.status()
        return bool(status["crash_safe"] and status["keeper"] not in (pid, None))

    until(there)
    return time.monotonic() - began


def both(instance: Instance) -> float:
    """Until the last worker has left and `start` serves again."""
    status = instance.status()
    workers = [worker["pid"] for worker in status["workers"]]
    began = time.monotonic()
    os.kill(status["keeper"], signal.SIGSTOP)  # it must not see the other's death first
    os.kill(status["supervisor"]["pid"], signal.SIGKILL)
    os.kill(status["keeper"], signal.SIGKILL)
    until(lambda: all(map(gone, workers)))
    instance.start()
    return time.monotonic() - began


CASES: tuple[tuple[str, str, Callable[[Instance], float]], ...] = (
    ("supervisor, SIGKILL", "the next one answers `status`", supervisor),
    ("the same again within 30 s", "the next one answers `status`", supervisor_again),
    ("none: `reexec`", "the new code has answered", replaced),
    ("one worker", "as many accept as before", one_worker),
    ("all workers", "a client that connected meanwhile is answered", all_workers),
    ("keeper", "another one has everything", keeper),
    ("keeper and supervisor at once", "the workers have left, `start` serves again", both),
)
HANG = ("supervisor, stopped", "the watchdog's successor answers", hung)


@contextlib.contextmanager
def running(workers: int) -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="quiesce-bench-") as directory:
        instance = Instance(Path(directory), workers)
        instance.start()
        try:
            yield instance
        finally:
            ask(instance.places, "stop", {"now": True}, lambda _progress: None)
            until(lambda: not Path(instance.places.pid).exists())


def measure(
    case: Callable[[Instance], float], rounds: int, workers: int
) -> tuple[list[float], list[Clients]]:
    times, loads = [], []
    for _ in range(rounds):
        with running(workers) as instance, Clients(instance.port) as clients:
            times.append(case(instance))
        loads.append(clients)
    return times, loads


def row(name: str, what: str, times: list[float], loads: list[Clients]) -> str:
    shown = " | ".join(f"{value:.2f}" for value in (min(times), statistics.median(times), max(times)))
    answers = sum(load.answers for load in loads)
    failures = sum(load.failures for load in loads)
    longest = max(load.longest_s for load in loads)
    return f"| {name} | {what} | {shown} | {failures} of {answers + failures:,} | {longest:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="deaths of each kind (default: 10)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the instance (default: 2)")
    parser.add_argument("--hang", action="store_true", help="also a supervisor that hangs; takes 35 s")
    args = parser.parse_args()
    print("| what dies | time until | min s | median s | max s | failed requests | longest answer s |")
    print("|---|---|---|---|---|---|---|")
    for name, what, case in CASES:
        print(row(name, what, *measure(case, args.rounds, args.workers)), flush=True)
    if args.hang:
        print(row(*HANG[:2], *measure(HANG[2], 1, args.workers)), flush=True)


if __name__ == "__main__":
    main()
