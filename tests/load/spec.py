"""What the load client is asked to do, as data that crosses to its process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Traffic:
    """One kind of traffic on so many connections at once.

    Attributes:
        kind: A name in ``load.traffic.KINDS``.
        connections: Clients of this kind, each with one connection at a time.
        depth: Requests written before the first answer is read (pipelined).
        think_s: Pause between two requests of one client.  It is traffic, not synchronisation.
        seconds: How long one upload or download lasts.
        size: Bytes of one upload or download.
        path: What is asked for, without the query.
        close: Ask for ``Connection: close`` (post: each token on a connection of its own).
    """

    kind: str
    connections: int = 1
    depth: int = 1
    think_s: float = 0.0
    seconds: float = 0.0
    size: int = 0
    path: str = "/"
    close: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything the load client's process needs to know.

    Attributes:
        target: ``HOST:PORT``, ``[V6]:PORT`` or ``unix:/path``.
        traffic: What to do; all kinds run at once.
        max_answers: Stop by itself after so many good answers (0: no limit).
        max_failures: Stop by itself after so many failures (0: no limit).
        max_seconds: Stop by itself after so long.  Only bounds a failing test.
        timeout_s: Longest wait for one step of a request (connect, next bytes of an answer).
        run: Prefix of the tokens that this run posts.
    """

    target: str
    traffic: tuple[Traffic, ...]
    max_answers: int = 0
    max_failures: int = 0
    max_seconds: float = 300.0
    timeout_s: float = 20.0
    run: str = "run"
    host: str = field(default="localhost")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        data["traffic"] = tuple(Traffic(**each) for each in data["traffic"])
        return cls(**data)


def fresh(connections: int = 2, think_s: float = 0.0, path: str = "/") -> Traffic:
    """A new connection for each request."""
    return Traffic("fresh", connections, think_s=think_s, path=path)


def busy(connections: int = 2, think_s: float = 0.0, path: str = "/") -> Traffic:
    """Keep-alive without a pause; its longest gap between two answers is recorded."""
    return Traffic("busy", connections, think_s=think_s, path=path)


def pipelined(connections: int = 1, depth: int = 8, think_s: float = 0.01) -> Traffic:
    """``depth`` requests at once, answers read in order."""
    return Traffic("pipelined", connections, depth=depth, think_s=think_s)


def post(connections: int = 1, think_s: float = 0.005, *, close: bool = False) -> Traffic:
    """POST with a token that no other request carries; the application writes each down."""
    return Traffic("post", connections, think_s=think_s, path="/post", close=close)


def upload(connections: int = 2, seconds: float = 3.0, size: int = 256 * 1024) -> Traffic:
    """Slow uploads, Content-Length and chunked by turns."""
    return Traffic("upload", connections, seconds=seconds, size=size, path="/upload")


def download(connections: int = 2, seconds: float = 3.0, size: int = 4 * 1024 * 1024) -> Traffic:
    """Downloads read slowly, Content-Length and chunked by turns."""
    return Traffic("download", connections, seconds=seconds, size=size, path="/download")


def late(connections: int = 2, delay_s: float = 0.3) -> Traffic:
    """Connections that connect and speak late."""
    return Traffic("late", connections, think_s=delay_s)


def idle(connections: int = 4, every_s: float = 1.0) -> Traffic:
    """Keep-alive connections that make a request now and then."""
    return Traffic("idle", connections, think_s=every_s)


def everything(seconds: float = 3.0) -> tuple[Traffic, ...]:
    """The whole mix; ``seconds`` is the length of one upload or download."""
    return (
        fresh(2, think_s=0.002),
        busy(2),
        pipelined(1, depth=8),
        pipelined(1, depth=16),
        post(1),
        post(1, close=True),
        upload(2, seconds),
        download(2, seconds),
        late(3, 0.3),
        idle(4, 0.7),
    )
