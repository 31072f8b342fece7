"""A stand-in for a worker: speaks the real channel, holds numbers for connections, tells the test all that it hears.

What it does is in `behaviour.json` of its release's directory:

holds: so many connections from the first accept on; each is a socket when it moves.
lane_version: of its hello.
mute: words that it never says.
deaf: it reads no lane.
requests: what its slot shows.
turned_before_s: its slot says that its loop turned so long ago, for the last time.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel, Incoming
from quiesce.shared.errors import PeerClosed
from quiesce.shared.fdpass import close_all, recv_fds, send_fds
from quiesce.shared.scoreboard import Field, Scoreboard

PACKET = 16
TOLD = ("lane", "readers", "lane_version", "names", "most", "idle_s")


class StandIn:
    def __init__(self, channel: int, news: str) -> None:
        self.channel = Channel(socket.socket(fileno=channel))
        self.news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.news.connect(news)
        path = Path("behaviour.json")
        self.how: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.id = self.release = ""
        self.state = "starting"
        self.held = 0
        self.lanes: dict[str, socket.socket] = {}
        self.target: tuple[str, socket.socket] | None = None
        self.draining = False
        self.slot: memoryview | None = None
        self.born_ns = time.monotonic_ns()

    def tell(self, **news: Any) -> None:
        self.news.send(json.dumps({"worker": self.id, "pid": os.getpid(), **news}).encode())

    def say(self, message: msg.Message, re: int | None = None) -> None:
        if msg.WORD_OF[type(message)] not in self.how.get("mute", ()):
            self.channel.send(message, re=re)

    def hello(self, re: int | None = None) -> None:
        version = self.how.get("lane_version", msg.LANE_VERSION)
        hello = msg.Hello(1, 1, "0", "3", os.getpid(), self.id, self.release, self.state, "wsgi", 1, version)
        self.say(hello, re)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.say(msg.ReplaceMe()))
        self.hello()
        while True:
            target = self.target[0] if self.target else ""
            reads = {name: lane for name, lane in self.lanes.items() if name != target}
            if self.how.get("deaf"):
                reads = {}
            ready, _, _ = select.select([self.channel, *reads.values()], (), ())
            if self.channel in ready:
                while (incoming := self.channel.receive()) is not None:
                    self.obey(incoming)
            for name, lane in reads.items():
                if lane in ready and name in self.lanes:
                    self.read(name, lane)
            self.show()
            self.drained()

    def read(self, name: str, lane: socket.socket) -> None:
        try:
            data, fds = recv_fds(lane, 1 << 16, 253)
        except BlockingIOError:
            return  # a sibling was quicker
        if not data:
            self.tell(eof=name)
            del self.lanes[name]
            lane.close()
            return
        close_all(fds)
        self.held += len(fds)
        self.show(Field.HANDED_IN, len(fds))
        self.tell(took=len(fds), lane=name)
        self.move()

    def move(self, most: int = 1 << 30) -> int:
        """All that it has, into the lane."""
        moved = 0
        while self.target is not None and self.held and moved < most:
            count = min(PACKET, self.held, most - moved)
            pairs = [socket.socketpair() for _ in range(count)]
            try:
                send_fds(self.target[1], b"x", [pair[0].fileno() for pair in pairs])
            except OSError:
                self.tell(lane_gone=self.target[0])
                self.target = None
                break
            finally:
                for pair in pairs:
                    pair[0].close()
                    pair[1].close()
            moved += count
            self.held -= count
        self.show(Field.HANDED_OUT, moved)
        return moved

    def drained(self) -> None:
        waits = [name for name in self.lanes if not self.target or self.target[0] != name]
        if self.draining and not waits and not self.held and self.state != "drained":
            self.state = "drained"
            self.say(msg.Drained())

    def show(self, counter: Field | None = None, more: int = 0) -> None:
        if self.slot is not None:
            self.slot[Field.CONN_OPEN] = self.slot[Field.CONN_IDLE] = self.held
            self.slot[Field.REQUESTS] = self.how.get("requests", 0)
            if "turned_before_s" in self.how:
                self.slot[Field.TURN_NS] = self.born_ns - int(self.how["turned_before_s"] * 1e9)
            if counter is not None:
                self.slot[counter] += more

    def obey(self, incoming: Incoming) -> None:
        order, fds = incoming.message, incoming.fds
        news = {key: getattr(order, key) for key in TOLD if key in order._fields}
        if isinstance(order, msg.Configure):
            self.id, self.release = order.worker, order.release
        self.tell(heard=msg.WORD_OF[type(order)], fds=len(fds), **news)
        if isinstance(order, (msg.Quiesce, msg.Drain, msg.Shed)):
            self.aim(order, fds, incoming.seq)
        elif isinstance(order, msg.UseScoreboard):
            self.slot = Scoreboard.attach(fds[0]).slot(order.slot)
        elif isinstance(order, msg.UseLane):
            for name, fd in zip(order.names, fds, strict=True):
                self.lanes[name] = socket.socket(fileno=fd)
        elif isinstance(order, msg.Probe):
            with socket.socket(fileno=fds[0]) as client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            close_all(fds)
            self.plain(order, incoming.seq)

    def aim(self, order: msg.Quiesce | msg.Drain | msg.Shed, fds: list[int], seq: int) -> None:
        before, self.target = self.target, None
        if fds:
            os.close(fds[1])
            self.target = (order.lane, socket.socket(fileno=fds[0]))
        if isinstance(order, msg.Shed):
            self.move(order.most)
            self.target = before
            return
        self.state = "quiesced"
        if isinstance(order, msg.Quiesce):
            self.say(msg.Quiesced(self.held), seq)
        else:
            self.state, self.draining = "draining", True
        moved = self.move()
        if isinstance(order, msg.Drain) and self.target is None:
            self.held = 0  # each has had its last answer
        self.say(msg.HandedOver(moved, self.held), seq)

    def plain(self, order: msg.Message, seq: int) -> None:
        if isinstance(order, msg.Identify):
            self.hello(seq)
        elif isinstance(order, msg.Configure):
            self.state = "ready"
            self.say(msg.Ready("wsgi"))
        elif isinstance(order, msg.Accept):
            self.state = "accepting"
            self.held = self.how.get("holds", 0)
            self.show()
            self.say(msg.Accepting())
        elif isinstance(order, msg.Resume):
            self.state, self.target, self.draining = "accepting", None, False
            self.say(msg.Resumed())
        elif isinstance(order, msg.Shutdown):
            sys.exit()


if __name__ == "__main__":
    try:
        StandIn(int(sys.argv[1]), os.environ["STAND_IN_NEWS"]).run()
    except PeerClosed:
        pass
