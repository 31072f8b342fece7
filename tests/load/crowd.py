"""A crowd of connections that live through everything on the same sockets, and the process that holds them.

Unlike the load client, which opens a new connection when one is closed, this one counts each close by the server as a
failure.  As a program it reads one JSON order a line and answers each with one line.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from load.wire import parse_target

TESTS = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
BATCH = 8  # requests that the pipelining client has under way


class Size(NamedTuple):
    """How many of each."""

    idle: int = 0  # one request, then quiet until :meth:`Crowd.ask`
    busy: int = 0  # a request under way all the time
    half_heads: int = 0  # a part of a request's head, until :meth:`Crowd.ask`
    fresh: int = 0  # connected, and not a byte yet, until :meth:`Crowd.ask`
    pipelining: int = 0  # several requests under way all the time


class Crowd:
    """The process; a context manager that leaves nothing behind.  Every connection has connected when it is entered."""

    def __init__(self, target: str, size: Size, path: str = "/") -> None:
        self._plan = {"target": target, "path": path, **size._asdict()}

    def __enter__(self) -> Crowd:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "load.crowd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        try:
            self._order(self._plan)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, kind: str) -> dict[str, int]:
        """One request on each connection of this kind (a half head is completed); answers by release.

        Afterwards half a head is sent again, and fresh ones are idle.
        """
        return dict(self._order({"ask": kind})["releases"])

    def look(self) -> dict[str, Any]:
        """What has happened so far.

        ``failures`` (sentences; each close by the server is one), ``answers``, ``open``, ``lost`` (local ports of TCP
        connections that failed), and ``runs``: [connection, first sent, last sent, release] for each stretch of answers
        of one release on one busy or pipelining connection, times of CLOCK_MONOTONIC.
        """
        return self._order({"look": True})

    def assert_well(self) -> dict[str, Any]:
        """Nobody was let down; returns what :meth:`look` does."""
        seen = self.look()
        assert seen["failures"] == [], f"{len(seen['failures'])} failures: {seen['failures'][:10]}"
        return seen

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the crowd's process has died"
        return dict(json.loads(line))

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)


# -- in the process -------------------------------------------------------------------------


class _Member:
    """One connection."""

    __slots__ = ("answers", "buffer", "kind", "number", "run", "sent", "sock", "waiting")

    def __init__(self, number: int, kind: str, sock: socket.socket) -> None:
        self.number, self.kind, self.sock = number, kind, sock
        self.buffer = b""
        self.waiting: list[str] = []  # nonces that are not answered yet, in order
        self.sent: list[float] = []  # when they were sent
        self.answers = 0
        self.run: list[Any] | None = None


class _Process:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._path = plan["path"]
        self._selector = selectors.DefaultSelector()
        self._members: list[_Member] = []
        self._awaited: set[_Member] = set()
        self._failures: list[str] = []
        self._lost_ports: list[int] = []
        self._runs: list[list[Any]] = []
        self._releases: Counter[str] = Counter()
        self._total = 0
        self._orders = b""
        self._asked = False
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        family, address = parse_target(plan["target"])
        for kind in Size._fields:
            for _ in range(plan[kind]):
                sock = socket.socket(family, socket.SOCK_STREAM)
                sock.settimeout(PATIENCE_S)
                sock.connect(address)
                member = _Member(len(self._members), kind, sock)
                self._members.append(member)
                self._selector.register(sock, selectors.EVENT_READ, member)
                if kind in ("idle", "half_heads"):
                    self._send(member, 1)
                if kind == "idle" and not len(self._members) % 256:
                    self._pump_until_answered()  # the queue of connections is no longer than that
        self._pump_until_answered()
        for member in self._of("half_heads"):
            self._half(member)
        for kind, count in (("busy", 1), ("pipelining", BATCH)):
            for member in self._of(kind):
                self._send(member, count)

    def _of(self, *kinds: str) -> Iterator[_Member]:
        return (member for member in self._members if member.kind in kinds)

    def _request(self, nonce: str) -> bytes:
        return f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nX-Nonce: {nonce}\r\n\r\n".encode()

    def _nonce(self, member: _Member) -> str:
        return f"{member.number}-{member.answers + len(member.waiting)}"

    def _send(self, member: _Member, count: int) -> None:
        data = b""
        for _ in range(count):
            nonce = self._nonce(member)
            data += self._request(nonce)
            member.waiting.append(nonce)
            member.sent.append(time.monotonic())
        self._await(member)
        self._push(member, data)

    def _await(self, member: _Member) -> None:
        if member.kind not in ("busy", "pipelining"):
            self._awaited.add(member)

    def _half(self, member: _Member) -> None:
        """As much as leaves the blank line out, and half of the last field."""
        self._push(member, self._request(self._nonce(member))[:-9])

    def _rest(self, member: _Member) -> None:
        nonce = self._nonce(member)
        member.waiting.append(nonce)
        member.sent.append(time.monotonic())
        self._await(member)
        self._push(member, self._request(nonce)[-9:])

    def _push(self, member: _Member, data: bytes) -> None:
        try:
            member.sock.sendall(data)
        except OSError as exc:
            self._lost(member, f"cannot send: {exc}")

    def _lost(self, member: _Member, why: str) -> None:
        if member.sock.fileno() >= 0:
            self._failures.append(f"{member.kind} {member.number} after {member.answers} answers: {why}")
            if member.sock.family != socket.AF_UNIX:
                self._lost_ports.append(member.sock.getsockname()[1])
            self._selector.unregister(member.sock)
            member.sock.close()
            member.waiting.clear()
            self._awaited.discard(member)

    def _readable(self, member: _Member) -> None:
        try:
            data = member.sock.recv(1 << 18)
        except OSError as exc:
            self._lost(member, f"reset: {exc}")
            return
        if not data:
            self._lost(member, "closed by the server")
            return
        member.buffer += data
        while member.sock.fileno() >= 0 and self._answer(member):
            pass

    def _answer(self, member: _Member) -> bool:
        head, end, rest = member.buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"-1"))
        if length < 0 or not head.startswith(b"HTTP/1.1 200 "):
            self._lost(member, f"no good answer: {head[:300]!r}")
            return False
        if len(rest) < length:
            return False
        body, member.buffer = rest[:length], rest[length:]
        if not member.waiting:
            self._lost(member, f"an answer that nobody asked for: {body[:60]!r}")
            return False
        nonce, sent = member.waiting.pop(0), member.sent.pop(0)
        words = body.partition(b"\n")[0].decode().split(" ")
        if len(words) != 3 or words[1] != nonce:
            self._lost(member, f"{body[:60]!r} answers {nonce}")
            return False
        if fields.get(b"connection", b"") == b"close":
            self._lost(member, f"{words[0]} says that it closes")
            return False
        self._note(member, words[0], sent)
        return True

    def _note(self, member: _Member, release: str, sent: float) -> None:
        member.answers += 1
        self._total += 1
        if member.kind in ("busy", "pipelining"):
            if member.run is None or member.run[3] != release:
                member.run = [member.number, sent, sent, release]
                self._runs.append(member.run)
            member.run[2] = sent
            if member.kind == "busy":
                self._send(member, 1)
            elif not member.waiting:
                self._send(member, BATCH)
        else:
            self._awaited.discard(member)
            if self._asked:
                self._releases[release] += 1

    def _pump(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._orders += os.read(0, 1 << 16) or b"end\n"
            elif key.data.sock.fileno() >= 0:
                self._readable(key.data)

    def _pump_until_answered(self) -> None:
        """Until each of those that were asked has its answer; busy and pipelining ones are never done."""
        until = time.monotonic() + PATIENCE_S
        while self._awaited:
            if time.monotonic() > until:
                for member in list(self._awaited):
                    self._lost(member, f"no answer within {PATIENCE_S:g} s")
                return
            self._pump(1.0)

    def serve(self) -> None:
        """Answer orders until there are no more."""
        self._selector.register(0, selectors.EVENT_READ, None)
        self._say({})
        while True:
            while b"\n" not in self._orders:
                self._pump(None)
            line, _, self._orders = self._orders.partition(b"\n")
            if line == b"end":
                return
            order = json.loads(line)
            self._say(self._ask(order["ask"]) if "ask" in order else self._look())

    def _ask(self, kind: str) -> dict[str, Any]:
        self._releases.clear()
        self._asked = True
        for member in list(self._of(kind)):
            if member.sock.fileno() >= 0:
                if kind == "half_heads":
                    self._rest(member)
                else:
                    self._send(member, 1)
        self._pump_until_answered()
        self._asked = False
        if kind == "half_heads":
            for member in self._of(kind):
                if member.sock.fileno() >= 0:
                    self._half(member)
        return {"releases": self._releases}

    def _look(self) -> dict[str, Any]:
        self._pump(0)  # what has come is not news any more
        return {
            "failures": self._failures,
            "lost": self._lost_ports,
            "answers": self._total,
            "open": sum(member.sock.fileno() >= 0 for member in self._members),
            "runs": self._runs,
        }

    @staticmethod
    def _say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)


def main() -> None:
    process = _Process(json.loads(sys.stdin.readline()))
    process.serve()


if __name__ == "__main__":
    main()
