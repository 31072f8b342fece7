"""A whole service in this process, whose workers are played by processes that speak the real channel."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quiesce.shared.logs import Log
from quiesce.supervisor.cold_start import ColdStart
from quiesce.supervisor.config import load_settings
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.history import History
from quiesce.supervisor.lanes import Lane
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.operations import Operations
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import Ended, Watch

STAND_IN = Path(__file__).with_name("stand_in_worker.py")
News = dict[str, Any]


class Reply:
    """Who asked."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.code: int | None = None
        self.text = ""

    def progress(self, text: str, **data: Any) -> None:
        self.told.append(text)

    def result(self, code: int, text: str, detail: str = "", data: dict[str, Any] | None = None) -> None:
        self.code, self.text = int(code), text


class House:
    """A service in this process, and what its workers have told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.loop = Loop()
        self.out = os.memfd_create("log")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "news"))
        self.socket.setblocking(False)
        self.loop.watch(self.socket.fileno(), self._on_news)
        self.news: list[News] = []
        self.python = folder / "python"
        # As an interpreter it is called with: -P bootstrap channel version roots.
        self.python.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(STAND_IN))} "$3"\n'
        )
        self.python.chmod(0o755)
        monkeypatch.setenv("STAND_IN_NEWS", str(folder / "news"))
        self.gone = False

    def release(self, name: str, **behaviour: Any) -> Path:
        path = self.folder / name
        path.mkdir()
        (path / "behaviour.json").write_text(json.dumps(behaviour))
        return path

    def start(self, first: Path, workers: int = 2, **options: str) -> None:
        given = {
            "service.app": "shop",
            "service.release": str(first),
            "service.python": str(self.python),
            "service.workers": str(workers),
            "rollout.bake": "60s",
            **options,
        }
        config = self.folder / "none.toml"
        config.write_text("")
        loaded = load_settings(given, None, str(config), str(self.folder))
        log = Log(self.out, "debug", journal=False)
        store = FdStore(self.loop, Notifier(None, self.loop), log, None)
        history = History(str(self.folder), 10)
        self.service = Service(self.loop, log, loaded, Listeners(), history, self.out, store)
        self.operations = Operations(self.service)
        self.service.on_gone = self._on_gone
        begun: list[Ended] = []
        ColdStart(self.service, Watch(lambda text: None, begun.append, lambda: None)).begin()
        self.until(lambda: begun)
        assert begun[0].code == 0, begun

    def _on_gone(self) -> None:
        self.gone = True

    def _on_news(self, _events: int) -> None:
        try:
            while True:
                self.news.append(json.loads(self.socket.recv(1 << 16)))
        except BlockingIOError:
            pass

    def until(self, fact: Callable[[], Any]) -> None:
        """Turn the loop until something is so."""
        guard = self.loop.call_at(self.loop.now() + 20, lambda: None)
        while not fact():
            assert guard.pending, f"it never came; log:\n{self.log()}\n{self.news}"
            self.loop.turn()
        guard.cancel()

    def turn_for(self, seconds: float) -> None:
        """Let time pass: for what must not happen."""
        until = self.loop.now() + seconds
        timer = self.loop.call_at(until, lambda: None)
        self.until(lambda: not timer.pending)

    def log(self) -> str:
        return os.pread(self.out, 1 << 20, 0).decode()

    def ask(self, command: str, **args: Any) -> Reply:
        reply = Reply()
        self.operations.handle(command, args, reply)
        return reply

    def did(self, command: str, **args: Any) -> Reply:
        """Ask, and wait for the answer, which is a good one."""
        reply = self.ask(command, **args)
        self.until(lambda: reply.code is not None)
        assert reply.code == 0, (reply.text, self.log())
        return reply

    def lane(self, release: str) -> Lane:
        lanes = [g.lane for g in self.service.crew.generations if g.release.id == release]
        assert lanes and lanes[-1] is not None
        return lanes[-1]

    def heard(self, worker: str, *words: str) -> list[News]:
        """What this worker heard, in order; all of it, or these words only."""
        return [
            n
            for n in self.news
            if n["worker"] == worker and "heard" in n and (not words or n["heard"] in words)
        ]

    def last(self, worker: str, *words: str) -> News:
        """The last of them, once there is one."""
        self.until(lambda: self.heard(worker, *words))
        return self.heard(worker, *words)[-1]

    def eof(self, worker: str, lane: Lane) -> bool:
        return any(n["worker"] == worker and n.get("eof") == lane.name for n in self.news)

    def upgrade(self, release: Path, **args: Any) -> Reply:
        return self.ask("upgrade", release=str(release), **args)

    def in_bake(self) -> None:
        self.until(lambda: self.service.run is not None and self.service.run.is_baking)

    def took(self, *workers: str) -> int:
        return sum(n["took"] for n in self.news if "took" in n and n["worker"] in workers)

    def stop(self) -> None:
        self.service.stop(now=False)
        self.until(lambda: self.gone)

    def close(self) -> None:
        if hasattr(self, "service"):
            if not self.gone:
                self.service.stop(now=True)
                for worker in self.service.crew:
                    worker.fail("the test is over")
                self.until(lambda: self.gone)
            self.service.crew.close()
        self.loop.unwatch(self.socket.fileno())
        self.socket.close()
        self.loop.close()
        os.close(self.out)
