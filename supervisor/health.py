"""Ask a worker a real request over a socket pair that it serves like a client's.

All workers share the listeners, so a probe over TCP may be answered by the wrong one.
"""

import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quiesce.shared.messages import Probe
from quiesce.supervisor.core.probe_reply import MAX_REPLY_BYTES, Rule, Verdict, judge, request
from quiesce.supervisor.loop import Loop

Send = Callable[[Probe, Sequence[int]], bool]  # to the worker; False: it is gone


class Question(NamedTuple):
    """One request of a probe."""

    path: str
    rule: Rule


class HealthRule(NamedTuple):
    """What a worker has to answer before it may accept."""

    questions: tuple[Question, ...]
    host: str
    headers: dict[str, str]
    text: str  # for the banner: "GET /healthz must answer 2xx or 3xx, 2 times"


def health_rule(
    health_path: str, host: str, headers: dict[str, str], passes: int, warmup: Sequence[str]
) -> HealthRule:
    """The rule that the configuration asks for (design: 5. A rollout, probing)."""
    warm = tuple(Question(path, Rule.ANY_ANSWER) for path in warmup)
    if health_path:
        text = f"GET {health_path} must answer 2xx or 3xx, {passes} time{'s' * (passes != 1)}"
        return HealthRule((Question(health_path, Rule.HEALTH_PATH),) * passes + warm, host, headers, text)
    text = "GET / must answer below 500 (set health_path for a better rule)"
    return HealthRule((Question("/", Rule.ANY_ANSWER), *warm), host, headers, text)


class Prober:
    """One run of a rule against one worker.  Calls back once; bounded in size, by its owner in time."""

    def __init__(self, loop: Loop, send: Send, rule: HealthRule, done: Callable[[Verdict], None]) -> None:
        self._loop = loop
        self._send = send
        self._rule = rule
        self._done: Callable[[Verdict], None] | None = done
        self._left = list(rule.questions)
        self._sock: socket.socket | None = None
        self._reply = bytearray()
        self._ask()

    def _ask(self) -> None:
        question = self._left[0]
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:  # EMFILE
            self._finish(Verdict(False, f"GET {question.path} could not be asked: {exc.strerror}"))
            return
        self._sock = ours
        self._reply.clear()
        self._loop.watch(ours.fileno(), self._on_readable)
        try:
            told = self._send(Probe(["127.0.0.1", 0], [self._rule.host, 0], "http"), (theirs.fileno(),))
            ours.setblocking(False)
            ours.send(request(question.path, self._rule.host, self._rule.headers))
            if not told:
                self._finish(Verdict(False, f"GET {question.path} could not be asked: the worker is gone"))
        except OSError as exc:
            self._finish(Verdict(False, f"GET {question.path} could not be asked: {exc}"))
        finally:
            theirs.close()

    def _on_readable(self, _events: int) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._reply += data
        if data and len(self._reply) <= MAX_REPLY_BYTES:
            return
        # A body of over a megabyte is proof enough: the head is judged, the rest is not read.
        question = self._left.pop(0)
        verdict = judge(question.path, bytes(self._reply), question.rule)
        if not verdict.passed or not self._left:
            self._finish(verdict)
            return
        self._release()
        self._ask()

    def _release(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _finish(self, verdict: Verdict) -> None:
        done, self._done = self._done, None
        self._release()
        if done is not None:
            # Not from inside the caller's own call: a refused send would come back too early.
            self._loop.call_soon(lambda: done(verdict))

    def pending_path(self) -> str:
        return self._left[0].path if self._left else ""

    def cancel(self) -> None:
        self._done = None
        self._release()
