"""No descriptors left: who comes is told so, in every mode, and nobody else notices.

In a process of its own, with a low limit: what it opens there is nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.serving import GET, Setup
from wire.serving import PATIENCE_S, Reply, read_reply, read_to_end

pytestmark = pytest.mark.slow

CHILD = """
import os, resource, sys, time
from embedded.serving import EXTERNAL, THREADED, running
from embedded.turns import counted
from quiesce import Response
from quiesce.worker.net.acceptor import Acceptor

setup = {setup.name(): setup for setup in [*EXTERNAL, *THREADED]}[sys.argv[1]]
rests = 0

def rest(acceptor, exc, rest=Acceptor._rest):
    global rests
    rests += 1
    rest(acceptor, exc)

Acceptor._rest = rest
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
taken = []
with counted() as turns, running(setup, lambda request: Response("hello\\n"), alone=sys.argv[2] == "alone") as served:
    print(served.daemon.info.port, flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "take":
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            before, since = turns.count, time.monotonic()
        elif word == "leave one":
            os.close(taken.pop())
        elif word == "give back":
            while taken:
                os.close(taken.pop())
        elif word == "rests":
            print(rests, end=" ")
        elif word == "turns":
            print(turns.count - before, time.monotonic() - since, end=" ")
        print("done", flush=True)
"""


class Child:
    """A daemon in another process, and its clients here."""

    def __init__(self, setup: Setup, how: str, stack: contextlib.ExitStack) -> None:
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        self._stack = stack
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", CHILD, setup.name(), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=dict(os.environ) | {"PYTHONPATH": paths},
                text=True,
            )
        )
        stack.callback(self._process.kill)
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def tell(self, word: str) -> list[str]:
        """Say it, and wait until it is done; what was printed."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        *answer, done = self._line().split()
        assert done == "done"
        return answer

    def connect(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection(("127.0.0.1", self.port), PATIENCE_S))

    def end(self) -> None:
        """It stops its daemon, and leaves."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_S) == 0


@contextlib.contextmanager
def child(setup: Setup, how: str) -> Iterator[Child]:
    with contextlib.ExitStack() as stack:
        yield Child(setup, how, stack)


def ask(sock: socket.socket) -> Reply:
    sock.sendall(GET)
    return read_reply(sock)


def test_who_comes_when_there_are_none_is_told_so(setup: Setup) -> None:
    with child(setup, "alone") as served:
        first = served.connect()
        assert ask(first).status == 200
        served.tell("take")
        for _ in range(4):  # the reserve is there again each time
            with served.connect() as late:
                reply = ask(late)
                assert reply.status == 503 and int(reply.get("Retry-After") or 0) > 0
                assert read_to_end(late) == b""  # a FIN, no reset
            assert ask(first).status == 200
        turns, seconds = map(float, served.tell("turns"))
        # Each acceptor rests ten times a second; nobody turns without a reason.
        assert turns < 200 + 100 * seconds, (turns, seconds)
        served.tell("give back")
        assert ask(served.connect()).status == 200
        served.end()


def test_who_does_not_leave_keeps_nobody_else_waiting_for_ever(setup: Setup) -> None:
    """It has the reserve's place for the time of a linger."""
    with child(setup, "alone") as served:
        assert ask(served.connect()).status == 200
        served.tell("take")
        silent = served.connect()  # is told so, and does not close
        assert read_reply(silent).status == 503
        assert ask(served.connect()).status == 503
        turns, seconds = map(float, served.tell("turns"))
        assert turns < 200 + 100 * seconds, (turns, seconds)
        served.end()


def test_where_others_accept_who_comes_is_left_to_them(setup: Setup) -> None:
    with child(setup, "with others") as served:
        first = served.connect()
        assert ask(first).status == 200
        served.tell("take")
        late = served.connect()
        late.sendall(GET)
        before, asked = int(served.tell("rests")[0]), 0
        while int(served.tell("rests")[0]) < before + 4:
            assert ask(first).status == 200
            asked += 1
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(1)
        late.settimeout(PATIENCE_S)
        turns, seconds = map(float, served.tell("turns"))
        assert turns < 200 + 2 * asked + 100 * seconds, (turns, asked, seconds)
        served.tell("give back")
        assert read_reply(late).status == 200
        served.end()


def test_a_descriptor_for_the_client_and_none_for_its_loop(threaded: Setup) -> None:
    """A thread for each client needs another one."""
    with child(threaded, "alone") as served:
        first = served.connect()
        assert ask(first).status == 200
        served.tell("take")
        served.tell("leave one")
        late = served.connect()
        assert ask(late).status == (503 if "per_connection" in threaded.name() else 200)
        served.tell("give back")
        assert ask(served.connect()).status == 200
        served.end()
