"""Measure how evenly workers share the connections of one listener, and what that costs, with the gate and without.

    python bench/accept_balance.py [--workers 2 4] [--connections 1000] [--rounds 5]

Starts real worker processes as the supervisor does, on one listener.  With the gate they share a scoreboard; without it
each has one of its own, so that none knows of the others.  Rounds are interleaved.  max/mean is 1.00 when all have the
same, and the number of workers when one has all.

    seq     connections one after another, each kept open after one request
    burst   all connect at once, then ask
    busy    400 connections while 64 others ask without a pause
    close   a connection for each request, 64 at a time: CPU of the workers for each, and requests a second
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httptools

import quiesce
from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel, make_pair
from quiesce.shared.scoreboard import Scoreboard

APP = """\
import os
from quiesce import Response

def app(request):
    return Response(str(os.getpid()))
"""
PACKAGE = Path(quiesce.__file__).absolute().parent
KEEP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PATIENCE_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """One worker process.  The scoreboard stays the caller's."""

    def __init__(self, directory: str, listener: socket.socket, board: Scoreboard, slot: int) -> None:
        ours, theirs = make_pair()
        roots = os.pathsep.join((str(PACKAGE.parent), str(Path(httptools.__file__).parent.parent)))
        version = "{}.{}".format(*sys.version_info)
        command = [sys.executable, "-P", str(PACKAGE / "worker/bootstrap.py"), str(theirs.fileno())]
        self.channel = Channel(ours)
        self.process = subprocess.Popen([*command, version, roots], pass_fds=[theirs.fileno()], cwd=directory)
        theirs.close()
        self.channel.send(msg.UseScoreboard(slot), [board.fd])
        self.channel.send(msg.Listen(["http"]), [listener.fileno()])
        names = {"name": "bench", "release": "r1", "label": "v1", "worker": f"r1/{slot}"}
        times = {"start_timeout_s": 30.0, "exit_timeout_s": 5.0}
        self.channel.send(
            msg.Configure(app="app:app", interface="native", app_dir=directory, threads=1, **names, **times)
        )
        self.channel.send(msg.Accept())
        while not isinstance(self._next(), msg.Accepting):
            pass

    def _next(self) -> msg.Message:
        while (incoming := self.channel.receive()) is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.channel.fileno(), selectors.EVENT_READ)
                assert selector.select(PATIENCE_S), "the worker says nothing"
        return incoming.message

    def cpu_s(self) -> float:
        """What it has used so far, of the kernel's scheduler: finer than ticks."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()


@contextlib.contextmanager
def team(directory: str, count: int, gate: bool) -> Iterator[tuple[list[Worker], tuple[str, int]]]:
    """So many workers that accept on one listener."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        boards = [Scoreboard.create() for _ in range(1 if gate else count)]
        workers: list[Worker] = []
        try:
            for number in range(count):
                workers.append(Worker(directory, listener, boards[number % len(boards)], number))
            yield workers, listener.getsockname()
        finally:
            for worker in workers:
                worker.close()
            for board in boards:
                board.close()


def ask(sock: socket.socket) -> str:
    """Who answers here?"""
    sock.sendall(KEEP)
    data = b""
    while b"\r\n\r\n" not in data or not data.partition(b"\r\n\r\n")[2]:
        piece = sock.recv(4096)
        assert piece, "closed"
        data += piece
    return data.partition(b"\r\n\r\n")[2].decode()


def spread(owners: list[str], count: int) -> float:
    """max/mean of the connections of each."""
    return max(Counter(owners).values()) * count / len(owners)


def seq(
    address: tuple[str, int],
    connections: int,
    sockets: contextlib.ExitStack,
    opened: list[socket.socket] | None = None,
) -> list[str]:
    owners = []
    for _ in range(connections):
        sock = sockets.enter_context(socket.create_connection(address, PATIENCE_S))
        owners.append(ask(sock))
        if opened is not None:
            opened.append(sock)
    return owners


def burst(address: tuple[str, int], connections: int, sockets: contextlib.ExitStack) -> list[str]:
    opened = []
    for _ in range(connections):
        sock = sockets.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(address)
        opened.append(sock)
    for sock in opened:
        sock.settimeout(PATIENCE_S)
    return [ask(sock) for sock in opened]


def busy(address: tuple[str, int], connections: int, sockets: contextlib.ExitStack) -> list[str]:
    """The 64 that ask without a pause are counted too: a worker does not know one from another."""
    over = threading.Event()
    loaders: list[socket.socket] = []
    owners = seq(address, 64, sockets, loaders)

    def load() -> None:
        with selectors.DefaultSelector() as selector:
            for sock in loaders:
                sock.sendall(KEEP)
                selector.register(sock, selectors.EVENT_READ)
            while not over.is_set():
                for key, _ in selector.select(0.1):
                    key.fileobj.recv(4096)  # type: ignore[union-attr]
                    key.fileobj.sendall(KEEP)  # type: ignore[union-attr]

    thread = threading.Thread(target=load)
    thread.start()
    try:
        return owners + seq(address, 400, sockets)
    finally:
        over.set()
        thread.join()


def close(address: tuple[str, int], requests: int) -> float:
    """Requests a second, each on a connection of its own, 16 under way."""
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        started = done = 0
        while done < requests:
            while started - done < 64 and started < requests:
                sock = socket.create_connection(address, PATIENCE_S)
                sock.sendall(CLOSE)
                selector.register(sock, selectors.EVENT_READ)
                started += 1
            for key, _ in selector.select(PATIENCE_S):
                sock = key.fileobj  # type: ignore[assignment]
                if not sock.recv(4096):
                    selector.unregister(sock)
                    sock.close()
                    done += 1
    return requests / (time.monotonic() - began)


def measure_balance(directory: str, count: int, gate: bool, connections: int) -> dict[str, float]:
    found = {}
    for kind in (seq, burst, busy):
        with team(directory, count, gate) as (_, address), contextlib.ExitStack() as sockets:
            began = time.monotonic()
            owners = kind(address, connections, sockets)
            found[kind.__name__] = spread(owners, count)
            found[f"{kind.__name__} s"] = time.monotonic() - began
    return found


def measure_close(address: tuple[str, int], workers: list[Worker], requests: int) -> tuple[float, float]:
    """CPU µs of all workers for each request; requests a second."""
    before = sum(worker.cpu_s() for worker in workers)
    rate = close(address, requests)
    return 1e6 * (sum(worker.cpu_s() for worker in workers) - before) / requests, rate


def print_balance(directory: str, count: int, connections: int, rounds: int) -> None:
    rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(rounds):
        for gate, found in rows.items():
            found.append(measure_balance(directory, count, gate, connections))
    for gate, found in rows.items():
        cells = []
        for kind in ("seq", "burst", "busy"):
            values = [one[kind] for one in found]
            took = statistics.median(one[f"{kind} s"] for one in found)
            cells.append(f"{statistics.median(values):.2f} ({max(values):.2f}) in {took:.2f} s")
        print(f"| {count} | {'gate' if gate else 'none'} | " + " | ".join(cells) + " |", flush=True)


def print_close(directory: str, count: int, requests: int, rounds: int) -> None:
    with team(directory, count, False) as plain, team(directory, count, True) as gated:
        results: list[tuple[float, float, float, float]] = []
        for _ in range(rounds):
            results.append(
                measure_close(plain[1], plain[0], requests) + measure_close(gated[1], gated[0], requests)
            )
    cpu = statistics.median(row[2] / row[0] for row in results)
    rate = statistics.median(row[3] / row[1] for row in results)
    medians = [statistics.median(row[i] for row in results) for i in range(4)]
    print(
        f"| {count} | none: {medians[0]:.1f} µs, {medians[1]:.0f}/s | gate: {medians[2]:.1f} µs, {medians[3]:.0f}/s "
        f"| CPU × {cpu:.3f} | requests a second × {rate:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.py").write_text(APP)
        print("max/mean: median (worst), time\n\n| workers | | seq | burst | busy |\n|---|---|---|---|---|")
        for count in options.workers:
            print_balance(directory, count, options.connections, options.rounds)
        print("\na connection for each request\n\n| workers | | | | |\n|---|---|---|---|---|")
        for count in options.workers:
            print_close(directory, count, options.requests, 2 * options.rounds)


if __name__ == "__main__":
    main()
