"""The kinds of traffic: each is one client, told to go on until it is told to stop."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable

from load.report import Failure, Fresh, Report, Trouble
from load.spec import Plan, Traffic
from load.wire import Answer, Let, Pace, Wire, pause

TICK_S = 0.005  # how often the client asks itself whether it gets to run
STALL_S = 0.015  # lateness that counts as "this client did not get to run"


class Run:
    """What all clients of one run share: the plan, the counters, and the wish to stop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stop = asyncio.Event()
        self.report = Report(began=time.monotonic())
        self.counts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()
        self.total = 0
        self.spoke: set[int] = set()  # numbers of the clients that had a first answer
        self.on_answer: Callable[[], None] = lambda: None
        self.stalls: list[tuple[float, float]] = []
        self.last_tick = time.monotonic()
        self._serial = 0

    def number(self) -> int:
        self._serial += 1
        return self._serial

    def good(self, client: Client, answer: Answer, began: float) -> None:
        """Count one good answer."""
        kind = client.traffic.kind
        waited = time.monotonic() - began
        self.answers[kind] += 1
        self.releases[answer.release] += 1
        self.total += 1
        if waited > self.report.longest_wait_s.get(kind, 0.0):
            self.report.longest_wait_s[kind] = waited
        self.spoke.add(client.index)
        if self.plan.max_answers and self.total >= self.plan.max_answers:
            self.stop.set()
        self.on_answer()

    def bad(self, client: Client, let: Let, began: float) -> None:
        """Count one failure."""
        self.counts[str(let.trouble)] += 1
        if self.counts.total() == self.plan.max_failures:
            self.stop.set()
        if len(self.report.failed) < Report.MOST_KEPT:
            self.report.failed.append(
                Failure(
                    str(let.trouble),
                    client.traffic.kind,
                    began,
                    time.monotonic(),
                    client.wire.release,
                    let.detail,
                )
            )

    async def watch_self(self) -> None:
        """Note when this process did not get to run: its own absence is not the server's fault."""
        while True:
            self.last_tick = time.monotonic()
            await asyncio.sleep(TICK_S)
            if stall := self._stall(now := time.monotonic()):
                self.stalls.append(stall)
                self.report.client_stall_s = max(self.report.client_stall_s, now - stall[0])
                del self.stalls[:-64]

    def _stall(self, now: float) -> tuple[float, float] | None:
        due = self.last_tick + TICK_S
        return (due, now) if now - due > STALL_S else None

    def gap(self, before: float, now: float) -> None:
        """Note the time between two answers of a busy client."""
        if (
            now - before > self.report.longest_gap_s
            and (length := self._net(before, now)) > self.report.longest_gap_s
        ):
            self.report.longest_gap_s, self.report.gap_at = length, now

    def fresh(self, before: float, now: float, release: str) -> None:
        """Note a connection of the "fresh" kind, from its connect() to its answer."""
        self.report.fresh.append(Fresh(before, now, release))
        if now - before > self.report.longest_fresh_s:
            self.report.longest_fresh_s = max(self.report.longest_fresh_s, self._net(before, now))

    def _net(self, before: float, now: float) -> float:
        """A length of time without what we slept through ourselves."""
        # The stall that ends with this answer is not in the list yet: sockets come before timers in a turn.
        current = self._stall(now)
        stalls = [*self.stalls, current] if current else self.stalls
        return now - before - sum(max(0.0, min(now, end) - max(before, start)) for start, end in stalls)

    def finish(self) -> Report:
        report = self.report
        report.ended = time.monotonic()
        report.counts, report.answers = dict(self.counts), dict(self.answers)
        report.releases = dict(self.releases)
        return report


class Client:
    """One client: a connection at a time, and what it does with it."""

    def __init__(self, run: Run, traffic: Traffic, index: int) -> None:
        self.run = run
        self.traffic = traffic
        self.index = index
        self.wire = Wire(run.plan.target, run.plan.timeout_s)
        self.turn = index  # so that neighbours begin with different framings

    async def live(self, act: Callable[[Client], Awaitable[None]]) -> None:
        """Do it again and again.  A failure is counted and a new connection made, after a short breath."""
        while not self.run.stop.is_set():
            began = time.monotonic()
            try:
                await act(self)
            except Let as let:
                self.wire.close()
                self.run.bad(self, let, self.wire.sent_at or began)
                # A client that spins on a server that refuses would count one outage as millions.
                await pause(self.run.stop, 0.05)
            else:
                await asyncio.sleep(0)
        self.wire.close()

    async def ready_wire(self, receive_buffer: int = 0) -> Wire:
        """A connection to use: the kept one if the server still holds it, else a new one."""
        wire = self.wire
        if wire.sock is not None and wire.fin_seen():
            self.run.report.idle_closed += 1
            wire.close()
        if wire.sock is None:
            # Until this connection sends, its failures begin with its connect().
            wire.sent_at = 0.0
            await wire.connect(receive_buffer)
            self.run.report.connects += 1
        return wire

    def request(self, method: str, path: str, nonce: str, extra: str = "") -> bytes:
        """A request's head."""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.run.plan.host}\r\nX-Nonce: {nonce}\r\n{extra}\r\n"
        ).encode("latin-1")

    async def take(self, nonce: str, began: float, pace: Pace | None = None) -> tuple[Answer, bytes]:
        """Read one answer, check it, count it; closes the connection if the answer said so."""
        answer = await self.wire.answer(pace)
        payload = answer.check(nonce)
        self.wire.release = answer.release
        self.run.good(self, answer, began)
        if answer.closes:
            self.wire.close()
        return answer, payload


async def fresh(client: Client) -> None:
    run, wire = client.run, client.wire
    await client.ready_wire()
    began, nonce = wire.began, str(run.number())
    await wire.send(client.request("GET", client.traffic.path, nonce, "Connection: close\r\n"))
    answer, _ = await client.take(nonce, began)
    wire.close()
    run.fresh(began, time.monotonic(), answer.release)
    await pause(run.stop, client.traffic.think_s)


async def late(client: Client) -> None:
    wire = await client.ready_wire()
    await pause(client.run.stop, client.traffic.think_s)
    nonce = str(client.run.number())
    await wire.send(client.request("GET", client.traffic.path, nonce, "Connection: close\r\n"))
    await client.take(nonce, wire.sent_at)
    wire.close()


async def busy(client: Client) -> None:
    """One connection's worth of requests, so that the gap is measured across reconnects too."""
    run = client.run
    before = 0.0
    while not run.stop.is_set():
        wire = await client.ready_wire()
        nonce = str(run.number())
        await wire.send(client.request("GET", client.traffic.path, nonce))
        await client.take(nonce, wire.sent_at)
        now = time.monotonic()
        if before:
            run.gap(before, now)
        before = now
        if client.traffic.think_s:
            await pause(run.stop, client.traffic.think_s)
            before = time.monotonic()


async def idle(client: Client) -> None:
    wire = await client.ready_wire()
    nonce = str(client.run.number())
    await wire.send(client.request("GET", client.traffic.path, nonce))
    await client.take(nonce, wire.sent_at)
    await pause(client.run.stop, client.traffic.think_s)


async def pipelined(client: Client) -> None:
    """``depth`` requests at once.

    A server may close after any answer that says so (RFC 9112 §9.6): what was sent behind it was not
    processed, a client sends it again, and that is no failure.
    """
    run = client.run
    wire = await client.ready_wire()
    left = [str(run.number()) for _ in range(client.traffic.depth)]
    while left:
        wire = await client.ready_wire()
        await wire.send(b"".join(client.request("GET", client.traffic.path, nonce) for nonce in left))
        while left:
            answer, _ = await client.take(left[0], wire.sent_at)
            del left[0]
            if answer.closes:
                break
    await pause(run.stop, client.traffic.think_s)


async def post(client: Client) -> None:
    run = client.run
    wire = await client.ready_wire()
    nonce = str(run.number())
    token = f"{run.plan.run}-{nonce}"
    close = "Connection: close\r\n" if client.traffic.close else ""
    head = client.request("POST", client.traffic.path, nonce, f"Content-Length: {len(token)}\r\n{close}")
    # In doubt from the first byte on: whatever happens now, the application may have written it down.
    run.report.tokens_in_doubt.append(token)
    await wire.send(head + token.encode())
    _, payload = await client.take(nonce, wire.sent_at)
    if payload != b"stored " + token.encode():
        raise Let(Trouble.WRONG_BODY, f"{payload[:80]!r} instead of stored {token}")
    run.report.tokens_in_doubt.remove(token)
    run.report.tokens.append(token)
    if client.traffic.close:
        wire.close()
    await pause(run.stop, client.traffic.think_s)


async def upload(client: Client) -> None:
    traffic, run = client.traffic, client.run
    wire = await client.ready_wire()
    client.turn += 1
    chunked = client.turn % 2 == 1
    nonce = str(run.number())
    framing = "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {traffic.size}\r\n"
    body = pattern(traffic.size)
    pace = Pace(traffic.seconds, traffic.size, run.stop)
    await wire.send(client.request("POST", traffic.path, nonce, framing))
    began = wire.sent_at
    for start in range(0, traffic.size, pace.step):
        part = body[start : start + pace.step]
        await wire.send_more(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        await pace.wait()
    if chunked:
        await wire.send_more(b"0\r\n\r\n")
    _, payload = await client.take(nonce, began)
    expected = f"{traffic.size} {zlib.crc32(body):08x}".encode()
    if payload != expected:
        raise Let(Trouble.WRONG_BODY, f"the server got {payload[:80]!r}, we sent {expected!r}")


async def download(client: Client) -> None:
    traffic, run = client.traffic, client.run
    wire = await client.ready_wire(receive_buffer=65536)
    client.turn += 1
    framing = "chunked" if client.turn % 2 else "length"
    nonce = str(run.number())
    pace = Pace(traffic.seconds, traffic.size, run.stop)
    await wire.send(client.request("GET", f"{traffic.path}?bytes={traffic.size}&framing={framing}", nonce))
    _, payload = await client.take(nonce, wire.sent_at, pace)
    if payload != pattern(traffic.size):
        raise Let(Trouble.WRONG_BODY, f"{len(payload)} bytes came, not the {traffic.size} of the pattern")


_PATTERN = bytes(range(256)) * 256


def pattern(size: int) -> bytes:
    """The bytes that uploads and downloads carry."""
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


KINDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "fresh": fresh,
    "late": late,
    "busy": busy,
    "idle": idle,
    "pipelined": pipelined,
    "post": post,
    "upload": upload,
    "download": download,
}
