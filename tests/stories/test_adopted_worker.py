"""The supervisor dies and another one takes over its end of the channel: what a real worker makes of that."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.scoreboard import Field
from unit.worker.fake_supervisor import PATIENCE_S, FakeSupervisor, ask, read_answer, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NATIVE = "from quiesce import Response\ndef app(request):\n    return Response('hello ' + request.path)\n"
WSGI = (
    "def app(environ, start_response):\n"
    "    start_response('200 OK', [])\n"
    "    return [b'hello ' + environ['PATH_INFO'].encode()]\n"
)
ASGI = (
    "async def app(scope, receive, send):\n"
    "    if scope['type'] == 'lifespan':\n"
    "        while (await receive())['type'] != 'lifespan.shutdown':\n"
    "            await send({'type': 'lifespan.startup.complete'})\n"
    "        await send({'type': 'lifespan.shutdown.complete'})\n"
    "        return\n"
    "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
    "    await send({'type': 'http.response.body', 'body': b'hello ' + scope['path'].encode()})\n"
)
APPS = {"native": NATIVE, "wsgi": WSGI, "asgi": ASGI}

Run = Callable[..., FakeSupervisor]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a worker for a shop.py with this text."""
    running: list[FakeSupervisor] = []

    def start(text: str, pass_fds: tuple[int, ...] = ()) -> FakeSupervisor:
        (tmp_path / "shop.py").write_text(text)
        running.append(FakeSupervisor(tmp_path, pass_fds=pass_fds))
        return running[-1].__enter__()

    yield start
    for supervisor in running:
        supervisor.__exit__(None, None, None)


def until(fact: Callable[[], bool]) -> None:
    """Poll for something that only a file shows; bounded."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def fds_of(supervisor: FakeSupervisor) -> int:
    return len(os.listdir(f"/proc/{supervisor.process.pid}/fd"))


def served(supervisor: FakeSupervisor, path: str = "/") -> bool:
    return supervisor.get(path).body == f"hello {path}".encode()


# -- who are you? ---------------------------------------------------------------------------


@pytest.mark.parametrize("interface", APPS)
def test_it_says_who_it_is_in_every_state(run: Run, interface: str) -> None:
    supervisor = run(APPS[interface])
    supervisor.expect(msg.Hello)
    supervisor.take_over(1000)
    hello = supervisor.identify()
    assert (hello.state, hello.worker, hello.interface, hello.threads) == ("starting", "", "", 0)
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    supervisor.listen("http")
    supervisor.configure("shop", threads=3)
    supervisor.expect(msg.Ready)
    threads = 1 if interface == "asgi" else 3
    epoch = 2000
    for order, state in (
        (None, "ready"), (msg.Accept(), "accepting"), (msg.Quiesce(), "quiesced"), (msg.Resume(), "accepting"),
        (msg.Drain(60), "drained"), (msg.Resume(), "accepting"),
    ):  # fmt: skip
        if order is not None:
            supervisor.send(order)
        supervisor.take_over(epoch := epoch + 1000)  # before the answer was read
        hello = supervisor.identify()
        assert (hello.state, hello.worker, hello.release) == (state, "r42/1", "r42")
        assert (hello.interface, hello.threads, hello.pid) == (interface, threads, supervisor.process.pid)
    assert served(supervisor)
    with supervisor.connect() as client:
        assert ask(client).status == 200
        supervisor.send(msg.Drain(60))
        supervisor.take_over(epoch := epoch + 1000)
        assert supervisor.identify().state == "draining"
        asked = supervisor.send(msg.Drain(60))
    supervisor.expect(msg.Drained, re=asked)
    assert supervisor.shutdown() == WorkerExit.OK


@pytest.mark.parametrize("interface", APPS)
def test_asked_while_it_imports_it_answers_after_ready_in_order(run: Run, interface: str) -> None:
    reader, writer = os.pipe()
    supervisor = run(f"import os\nprint('importing')\nos.read({reader}, 1)\n" + APPS[interface], (reader,))
    supervisor.expect(msg.Hello)
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    supervisor.listen("http")
    supervisor.configure("shop")
    until(lambda: "importing" in supervisor.output())
    supervisor.take_over()
    # A new supervisor cannot know what of this was said, and says it again.
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    supervisor.send(msg.Listen(["http"]), [supervisor.listeners["http"].fileno()])
    supervisor.configure("shop")
    first, second = supervisor.send(msg.Identify()), supervisor.send(msg.Identify())
    accept = supervisor.send(msg.Accept())
    os.write(writer, b"x")
    os.close(writer)
    os.close(reader)
    if interface == "asgi":  # its lifespan starts meanwhile, and these do not wait for that
        for asked in (first, second):
            assert supervisor.expect(msg.Hello, re=asked).state == "starting"
        supervisor.expect(msg.Ready)
    else:
        supervisor.expect(msg.Ready)
        for asked in (first, second):
            hello = supervisor.expect(msg.Hello, re=asked)
            assert (hello.state, hello.interface) == ("ready", interface)
    supervisor.expect(msg.Accepting, re=accept)
    assert served(supervisor)
    assert supervisor.output() == "importing\n", "no word about what was said twice"


SLOW_START = """
import asyncio, os, pathlib
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        assert (await receive())['type'] == 'lifespan.startup'
        print('starting')
        while not pathlib.Path('started').exists():
            await asyncio.sleep(0.01)
        await send({'type': 'lifespan.startup.complete'})
        assert (await receive())['type'] == 'lifespan.shutdown'
        print('ended')
        await send({'type': 'lifespan.shutdown.complete'})
        return
    assert pathlib.Path('started').exists()
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'hello ' + scope['path'].encode()})
"""


def slow_start(run: Run) -> FakeSupervisor:
    supervisor = run(SLOW_START)
    supervisor.expect(msg.Hello)
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    supervisor.listen("http")
    supervisor.configure("shop")
    until(lambda: "starting" in supervisor.output())
    return supervisor


def test_asked_while_a_lifespan_starts_it_answers_at_once(run: Run) -> None:
    supervisor = slow_start(run)
    supervisor.take_over()
    hello = supervisor.identify()
    assert (hello.state, hello.worker, hello.interface) == ("starting", "r42/1", "")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        probe = msg.Probe()
        supervisor.send(probe, [theirs.fileno()])  # not before the application has started
        theirs.close()
        accept = supervisor.send(msg.Accept())
        ours.sendall(request("/probed", close=True))
        assert supervisor.identify().state == "starting"
        assert not select.select([ours], [], [], 0)[0]
        (supervisor.app_dir / "started").touch()
        supervisor.expect(msg.Ready)
        supervisor.expect(msg.Accepting, re=accept)
        ours.settimeout(PATIENCE_S)
        assert read_answer(ours).body == b"hello /probed"
    assert supervisor.identify().interface == "asgi"
    assert served(supervisor)
    assert supervisor.shutdown() == WorkerExit.OK


@pytest.mark.parametrize("how", ["shutdown", "eof"])
def test_told_to_leave_while_a_lifespan_starts_it_does(run: Run, how: str) -> None:
    supervisor = slow_start(run)
    supervisor.take_over()
    assert supervisor.identify().state == "starting"
    if how == "shutdown":
        supervisor.send(msg.Shutdown())
    else:
        supervisor.channel.close()
    (supervisor.app_dir / "started").touch()
    assert supervisor.wait() == WorkerExit.OK
    assert supervisor.output() == "starting\nended\n"


# -- said again -----------------------------------------------------------------------------


@pytest.mark.parametrize("interface", APPS)
def test_everything_that_is_said_again_changes_nothing(run: Run, interface: str) -> None:
    supervisor = run(APPS[interface])
    supervisor.start("shop")
    supervisor.accept()
    log = os.open(f"/proc/self/fd/{supervisor.capture}", os.O_WRONLY | os.O_APPEND)
    slot = supervisor.board.slot(3)
    with supervisor.connect() as client:
        assert ask(client, "/before").status == 200
        until(lambda: slot[Field.RESP_2XX] == 1)
        fds = fds_of(supervisor)
        counted = slot[Field.REQUESTS], slot[Field.ACCEPTED], slot[Field.RESP_2XX]
        for epoch in range(1, 21):
            supervisor.take_over(epoch << 32)
            supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
            supervisor.send(msg.UseLog(), [log])
            supervisor.send(msg.Listen(["http"]), [supervisor.listeners["http"].fileno()])
            supervisor.configure("shop")
            hello = supervisor.identify()
            assert (hello.state, hello.interface) == ("accepting", interface)
            supervisor.accept()
        assert fds_of(supervisor) == fds
        assert (slot[Field.REQUESTS], slot[Field.ACCEPTED], slot[Field.RESP_2XX]) == counted
        assert slot[Field.CONN_OPEN] == 1
        assert ask(client, "/after").body == b"hello /after"
        assert served(supervisor, "/new")
        until(lambda: slot[Field.REQUESTS] == counted[0] + 2)
        assert slot[Field.ACCEPTED] == counted[1] + 1
    assert supervisor.output() == ""
    os.close(log)


def test_every_order_is_answered_each_time(run: Run) -> None:
    supervisor = run(WSGI)
    supervisor.start("shop")
    for order, answer, state in (
        (msg.Quiesce(), msg.Quiesced, "quiesced"), (msg.Accept(), msg.Accepting, "accepting"),
        (msg.Quiesce(), msg.Quiesced, "quiesced"), (msg.Resume(), msg.Resumed, "accepting"),
        (msg.Drain(60), msg.Drained, "drained"), (msg.Quiesce(), msg.Quiesced, "drained"),
        (msg.Resume(), msg.Resumed, "accepting"),
    ):  # fmt: skip
        for _ in range(3):
            supervisor.expect(answer, re=supervisor.send(order))
            assert supervisor.identify().state == state
    assert served(supervisor)


def test_a_second_configure_for_somebody_else_is_said(run: Run) -> None:
    supervisor = run(WSGI)
    supervisor.start("shop")
    supervisor.configure("shop", worker="r43/1")
    assert supervisor.identify().worker == "r42/1"
    assert "a `configure` for r43/1 came to r42/1" in supervisor.output()


def test_a_drain_said_again_has_the_new_deadline_and_keeps_who_was_cut(run: Run) -> None:
    text = (
        "import threading\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    yield b'begun'\n"
        "    threading.Event().wait(60)\n"
    )
    supervisor = run(text)
    supervisor.start("shop", threads=3, exit_timeout_s=0.2)
    supervisor.accept()
    with supervisor.connect() as busy, supervisor.connect() as half:
        busy.sendall(request())
        assert busy.recv(1000)
        half.sendall(b"GET / HTTP/1.1\r\n")
        until(lambda: supervisor.board.slot(3)[Field.CONN_BUSY] == 2)
        supervisor.send(msg.Drain(3600))
        supervisor.take_over(1 << 33)
        supervisor.send(msg.Drain(0.05))  # what remains of it
        assert read_answer(half).status == 503  # the deadline was the new one
        supervisor.take_over(1 << 34)
        assert supervisor.identify().state == "draining"  # `half` has not closed
        asked = supervisor.send(msg.Drain(0.0))  # nothing remains
    drained = supervisor.expect(msg.Drained, re=asked)
    assert drained.cut == 2  # by the deadline before; it is not forgotten


# -- nobody reads ---------------------------------------------------------------------------


def send_all(supervisor: FakeSupervisor, orders: list[msg.Message]) -> None:
    poll = select.poll()
    poll.register(supervisor.channel.fileno(), select.POLLOUT)
    for order in orders:
        supervisor.send(order)
        while supervisor.channel.wants_write:
            assert poll.poll(1000 * PATIENCE_S), "the worker does not read"
            supervisor.channel.flush()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_waits(supervisor: FakeSupervisor) -> None:
    """It blocks.  (On a busy machine one that spins may go unseen; one that waits never fails here.)"""
    before, began = cpu_s(supervisor.process.pid), time.monotonic()
    threading.Event().wait(0.5)
    assert cpu_s(supervisor.process.pid) - before < 0.4 * (time.monotonic() - began)


@pytest.mark.parametrize("interface", APPS)
def test_a_thousand_answers_that_nobody_reads(run: Run, interface: str) -> None:
    supervisor = run(APPS[interface])
    supervisor.start("shop")
    supervisor.accept()
    with supervisor.connect() as client:
        assert ask(client).status == 200
        send_all(supervisor, [msg.Identify(), msg.Quiesce(), msg.Resume()] * 333 + [msg.Identify()])
        supervisor.listen("last")
        # Accepted on: it has obeyed all of that, though it could not say so.
        assert supervisor.get("/last", "last").body == b"hello /last"
        assert ask(client, "/kept").body == b"hello /kept"
        assert_waits(supervisor)
        assert supervisor.output().count("has not read for long") == 1
        assert supervisor.output().count("\n") == 1
        supervisor.take_over()
        asked = supervisor.send(msg.Identify())
        supervisor.listen("later")
        assert supervisor.get("/", "later").status == 200  # so that was read, and nothing by us so far
        while (incoming := supervisor.next()).re != asked:
            pass
        hello = incoming.message  # it had room
        assert isinstance(hello, msg.Hello)
        assert (hello.state, hello.interface) == ("accepting", interface)
        supervisor.expect(msg.Quiesced, re=supervisor.send(msg.Quiesce()))
        supervisor.expect(msg.Resumed, re=supervisor.send(msg.Resume()))
        assert ask(client, "/still").body == b"hello /still"
        assert_waits(supervisor)  # for writing no more
    assert supervisor.shutdown() == WorkerExit.OK


def test_a_thousand_answers_that_nobody_reads_before_it_is_configured(run: Run) -> None:
    supervisor = run(WSGI)
    send_all(supervisor, [msg.Identify()] * 1000)
    supervisor.take_over()
    assert supervisor.identify().state == "starting"
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    supervisor.listen("http")
    supervisor.configure("shop")
    supervisor.expect(msg.Ready)
    supervisor.accept()
    assert served(supervisor)


# -- a supervisor of another version ----------------------------------------------------------


def test_a_supervisor_of_another_version_never_ends_a_worker_that_serves(run: Run) -> None:
    supervisor = run(WSGI)
    supervisor.start("shop")
    supervisor.accept()
    ours, theirs = socket.socketpair()
    nonsense = [
        (b'{"v":0,"type":"shutdown","seq":1}', ()),  # older than we understand: not obeyed either
        (b'{"v":0,"type":"listen","seq":1,"fds":1,"names":["http"]}', (theirs.fileno(),)),
        (b'{"v":2,"type":"lane","seq":1,"fds":1,"colour":"red"}', (theirs.fileno(),)),
        (b'{"v":2,"type":"shutdown_all","seq":1}', ()),
        (
            b'{"v":2,"type":"drain","seq":1,"timeout_s":{"soft":1}}',
            (),
        ),  # a field that has become another type
        (b'{"v":2,"type":"scoreboard","seq":1,"fds":1,"slot":1}', (theirs.fileno(),)),
    ]
    with ours, theirs, supervisor.connect() as client:
        assert ask(client).status == 200
        for order, state in ((None, "accepting"), (msg.Quiesce(), "quiesced"), (msg.Drain(60), "draining")):
            if order is not None:
                supervisor.send(order)
            for data, fds in nonsense:
                supervisor.raw(data, fds)
            assert supervisor.identify().state == state
        supervisor.raw(b'{"v":2,"type":"resume","seq":7001,"why":"rollback"}')  # what it understands it obeys
        supervisor.expect(msg.Resumed, re=7001)
        supervisor.raw(b'{"v":2,"type":"identify","seq":7002}')
        assert supervisor.expect(msg.Hello, re=7002).state == "accepting"
        assert ask(client).status == 200
        assert served(supervisor)
        theirs.close()
        ours.settimeout(PATIENCE_S)
        assert ours.recv(1) == b"", "a descriptor of a message that was skipped is still open"
    assert supervisor.shutdown() == WorkerExit.OK


# -- ready_path and listeners that go ---------------------------------------------------------------


@pytest.mark.parametrize("interface", APPS)
def test_ready_path_follows_the_scoreboard(run: Run, interface: str) -> None:
    supervisor = run(APPS[interface])
    supervisor.start("shop", ready_path="/ready")
    assert supervisor.probe("/ready").body == b"hello /ready"  # a probe is for the application
    supervisor.accept()
    with supervisor.connect() as check, supervisor.connect() as client:
        for _ in range(2):
            assert ask(check, "/ready")[0::2] == (200, b"ready\n")
        assert "connection" not in ask(client).headers
        supervisor.board.unready = True
        answer = ask(check, "/ready?from=lb")
        assert answer[0::2] == (503, b"not ready\n")
        assert answer.headers["connection"] == "close" and answer.headers["cache-control"] == "no-store"
        assert check.recv(1) == b""
        answer = ask(client, "/served")  # but its connection goes, and so does the load balancer's traffic
        assert (answer.body, answer.headers["connection"]) == (b"hello /served", "close")
        assert client.recv(1) == b""
    assert supervisor.get("/ready").status == 503
    slot = supervisor.board.slot(3)
    assert slot[Field.RESP_5XX] == 0
    # The flag is the instance's: a new supervisor finds it as it was, and a worker that starts later as well.
    supervisor.take_over()
    supervisor.send(msg.UseScoreboard(3), [supervisor.board.fd])
    assert supervisor.identify().state == "accepting"
    assert supervisor.get("/ready").status == 503
    supervisor.board.unready = False
    assert supervisor.get("/ready").body == b"ready\n"


@pytest.mark.parametrize("interface", APPS)
def test_a_listener_that_goes_takes_nobody_along(run: Run, interface: str) -> None:
    supervisor = run(APPS[interface])
    supervisor.start("shop", threads=4)
    supervisor.accept()
    supervisor.listen("more")
    supervisor.identify()
    supervisor.signal(signal.SIGSTOP)  # so that all of them wait when it is told
    clients = [supervisor.connect("more") for _ in range(100)]
    for n, client in enumerate(clients):
        client.sendall(request(f"/{n}", close=True))
    address = supervisor.address("more")
    supervisor.send(msg.Unlisten(["more"]))
    supervisor.listeners.pop("more").close()  # ours first: the last one who holds it empties it
    supervisor.signal(signal.SIGCONT)
    for n, client in enumerate(clients):
        with client:
            assert read_answer(client).body == f"hello /{n}".encode()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)
    assert served(supervisor)


@pytest.mark.parametrize("order", [msg.Quiesce(), msg.Drain(60)])
def test_a_worker_that_does_not_accept_leaves_the_queue_to_others(run: Run, order: msg.Message) -> None:
    supervisor = run(WSGI)
    supervisor.start("shop")
    supervisor.accept()
    supervisor.send(order)
    supervisor.identify()
    with supervisor.connect() as client:
        supervisor.send(msg.Unlisten(["http"]))
        supervisor.identify()
        listener = supervisor.listeners["http"]
        listener.settimeout(PATIENCE_S)
        accepted, peer = listener.accept()  # it is still there
        assert peer == client.getsockname()
        accepted.close()


# -- children of the application ----------------------------------------------------------------------


OPEN_HERE = """
import os
for name in os.listdir("/proc/self/fd"):
    try:
        print(name, os.readlink("/proc/self/fd/" + name))
    except FileNotFoundError:
        pass  # the listing's own
"""


@pytest.mark.parametrize("interface", APPS)
def test_a_child_with_close_fds_false_has_nothing_of_ours(run: Run, interface: str) -> None:
    text = APPS[interface].replace("hello ' + ", "hello ' + child() + ", 1) + (
        "import subprocess, sys\n"
        "def child():\n"
        f"    command = [sys.executable, '-c', {OPEN_HERE!r}]\n"
        "    out = subprocess.run(command, close_fds=False, stdout=subprocess.PIPE).stdout\n"
        f"    return {'out.decode()' if interface == 'native' else 'out'}\n"
    )
    supervisor = run(text)
    supervisor.start("shop")
    supervisor.accept()
    log = os.open(f"/proc/self/fd/{supervisor.capture}", os.O_WRONLY | os.O_APPEND)
    supervisor.send(msg.UseLog(), [log])
    os.close(log)
    with supervisor.connect() as idle:
        ask(idle)
        lines = supervisor.get("/").body.decode().removeprefix("hello ").splitlines()[:-1]
    assert sorted(line.split()[0] for line in lines) == ["0", "1", "2"], lines
