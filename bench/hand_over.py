"""What it costs to hand idle connections over: CPU of both sides, and the time until all are served again.

python bench/hand_over.py [CONNECTIONS ...]     default: 1000 10000; needs as many descriptors

Three processes: clients (this one), the old server, the new one.  Each client has had an answer before, sends
the next request after the move, on the same socket, and must be answered by the new server.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from quiesce import Response
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.epoll_loop import EpollLoop
from quiesce.worker.net.lane_reader import Arrival
from quiesce.worker.net.lane_writer import Target

GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
ROUNDS = 5
LIMITS = Limits(connections=0)
TARGET_US, TARGET_S = 25.0, 0.5  # of CPU for a connection, both sides; for ten thousand, in all


def old_server(listener: socket.socket, target: Target, go: int, out: int) -> None:
    loop = EpollLoop()
    daemon = Daemon(NativeApp(lambda request: Response(b"old")), loop, limits=LIMITS)
    daemon.add_listener("http", listener)
    daemon.accept()

    def begin(_events: int) -> None:
        os.read(go, 1)
        daemon.quiesce()
        cpu, began = time.process_time(), time.monotonic()

        def moved(count: int, left: int) -> None:
            report(out, began, time.monotonic(), time.process_time() - cpu, count)
            loop.stop()

        daemon.hand_over_to(target, moved)

    loop.watch(go, begin)
    loop.run()


def new_server(lane: socket.socket, expected: int, out: int) -> None:
    loop = EpollLoop()
    daemon = Daemon(
        NativeApp(lambda request: Response(b"new")), loop, limits=LIMITS, taken=lambda came: taken(came)
    )
    cpu = time.process_time()

    def taken(came: list[Arrival]) -> None:
        daemon._taken(came)
        if daemon.open == expected:
            report(out, 0.0, time.monotonic(), time.process_time() - cpu, daemon.open)

    daemon.add_lane("bench", lane)
    loop.run()


def report(out: int, *figures: float) -> None:
    os.write(out, struct.pack("dddd", *figures))


def reported(source: int) -> tuple[Any, ...]:
    data = os.read(source, 32)
    assert len(data) == 32, "a server died"
    return struct.unpack("dddd", data)


def fork(serve: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        gc.freeze()
        serve()
    finally:
        os._exit(0)


def ask_all(clients: list[socket.socket], wanted: bytes) -> None:
    for client in clients:
        client.sendall(GET)
        answer = client.recv(1000)
        assert answer.endswith(wanted), answer


def measure(count: int) -> tuple[float, float, float]:
    """CPU of the old and of the new server for each connection, in microseconds; and seconds in all."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    go, ready = os.pipe(), [os.pipe(), os.pipe()]
    target = Target("bench", writer, os.dup(reader.fileno()))
    old = fork(lambda: old_server(listener, target, go[0], ready[0][1]))
    new = fork(lambda: new_server(reader, count, ready[1][1]))
    address = listener.getsockname()
    for end in (listener, reader, target):
        end.close()
    clients = []
    for _ in range(count):
        client = socket.create_connection(address)
        client.settimeout(20)
        clients.append(client)
    ask_all(clients, b"old")
    os.write(go[1], b"x")
    began, _, old_cpu, moved = reported(ready[0][0])
    _, ended, new_cpu, _ = reported(ready[1][0])
    assert moved == count
    os.waitpid(old, 0)
    ask_all(clients, b"new")
    for client in clients:
        client.close()
    os.kill(new, 9)
    os.waitpid(new, 0)
    for pair in (go, *ready):
        for fd in pair:
            os.close(fd)
    return old_cpu / count * 1e6, new_cpu / count * 1e6, ended - began


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = [int(argument) for argument in sys.argv[1:]] or [1000, 10_000]
    print(
        f"{'connections':>11} {'old us':>8} {'new us':>8} {'both us':>8} {'wall ms':>8}   median of {ROUNDS}, best"
    )
    for count in counts:
        figures = [measure(count) for _ in range(ROUNDS)]
        rows = [(old, new, old + new, wall * 1000) for old, new, wall in figures]
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        best = [min(column) for column in zip(*rows, strict=True)]
        print(
            f"{count:>11} "
            + " ".join(f"{m:>8.1f}" for m in medians)
            + "   "
            + " ".join(f"{b:.1f}" for b in best)
        )
        wall_s = TARGET_S * count / 10_000 if count >= 10_000 else TARGET_S
        verdict = "met" if medians[2] < TARGET_US and medians[3] < 1000 * wall_s else "MISSED"
        print(f"            target: under {TARGET_US:g} us and {1000 * wall_s:g} ms: {verdict}")


if __name__ == "__main__":
    main()
