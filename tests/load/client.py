"""Starts the load client's process, talks to it, brings the report home."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from load.report import Report
from load.spec import Plan, Traffic

TESTS = Path(__file__).resolve().parent.parent


class LoadError(AssertionError):
    """The load client itself went wrong, or what was waited for never came."""


class LoadClient:
    """A running load client; a context manager that leaves no process behind.

    ``with LoadClient(target, traffic) as load:`` returns when every client had its first answer
    (``wait_started=False`` returns at once).  ``report = load.stop()`` ends it; so does leaving the block.
    """

    def __init__(
        self,
        target: str,
        *traffic: Traffic,
        max_answers: int = 0,
        max_failures: int = 0,
        max_seconds: float = 300.0,
        timeout_s: float = 20.0,
        wait_started: bool = True,
        start_timeout_s: float = 40.0,
    ) -> None:
        self.plan = Plan(
            target,
            traffic,
            max_answers=max_answers,
            max_failures=max_failures,
            max_seconds=max_seconds,
            timeout_s=timeout_s,
            run=f"{os.getpid()}-{time.monotonic_ns():x}",
        )
        self._wait_started = wait_started
        self._start_timeout_s = start_timeout_s
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._report: Report | None = None

    def __enter__(self) -> LoadClient:
        # A file, not a pipe: nobody reads it before the end, and a traceback must never block the client.
        self._errors = tempfile.TemporaryFile("w+")
        # CPython's own random hashing and the rest of our environment stay; only the import path is ours.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        self._reader = threading.Thread(target=self._read, name="load client's messages")
        self._reader.start()
        try:
            self._order(self.plan.to_json())
            if self._wait_started:
                self.wait_started(self._start_timeout_s)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._report is None and kind is None:
            self.stop()
        self._end()

    def wait_started(self, timeout_s: float = 40.0) -> None:
        """Return when every client had its first answer."""
        self._wait(lambda line: line == "started", 0, timeout_s, "every client to have an answer")

    def wait_answers(self, count: int, timeout_s: float = 40.0) -> None:
        """Return when ``count`` more good answers have come."""
        mark = len(self._lines)
        self._order(f"answers {count}")
        self._wait(lambda line: line.startswith("answers "), mark, timeout_s, f"{count} more answers")

    def stop(self, timeout_s: float = 90.0) -> Report:
        """Let the clients finish what they began, and return what they saw."""
        if self._report is None:
            with contextlib.suppress(BrokenPipeError):
                self._order("stop")
            line = self._wait(lambda line: line.startswith("report "), 0, timeout_s, "the report")
            self._report = Report.from_json(line.removeprefix("report "))
            self._process.wait(timeout=20)
        return self._report

    def wait_report(self, timeout_s: float = 90.0) -> Report:
        """Wait until the client ends by its own limits."""
        line = self._wait(lambda line: line.startswith("report "), 0, timeout_s, "the report")
        self._report = Report.from_json(line.removeprefix("report "))
        return self._report

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _wait(self, wanted: Callable[[str], bool], mark: int, timeout_s: float, what: str) -> str:
        def found() -> list[str]:
            return [line for line in self._lines[mark:] if wanted(line)]

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, timeout_s)
            if lines := found():
                return lines[0]
        raise LoadError(f"waited {timeout_s} s for {what}{self._why()}")

    def _why(self) -> str:
        """What the client knows: its own errors, or the report so far."""
        if not self._ended:
            with contextlib.suppress(OSError):
                self._order("stop")
            with self._news:
                self._news.wait_for(lambda: self._ended, 30)
        self._errors.seek(0)
        told = [line for line in self._lines if line.startswith("report ")]
        seen = Report.from_json(told[0].removeprefix("report ")).explain() if told else "no report"
        return f"; it saw: {seen}\n{self._errors.read()[-3000:]}"

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()
