"""A real worker process from hello to its exit, by what a supervisor sees of it."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.scoreboard import Field
from unit.worker.fake_supervisor import PATIENCE_S, FakeSupervisor, ask, read_answer, request

NATIVE = "from quiesce import Response\ndef app(request):\n    return Response('native ' + request.path)\n"
WSGI = (
    "def app(environ, start_response):\n"
    "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
    "    return [b'wsgi ' + environ['PATH_INFO'].encode()]\n"
)
ASGI = (
    "async def app(scope, receive, send):\n"
    "    assert scope['type'] == 'http'\n"
    "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
    "    await send({'type': 'http.response.body', 'body': b'asgi ' + scope['path'].encode()})\n"
)
APPS = {"native": NATIVE, "wsgi": WSGI, "asgi": ASGI}

Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Write files of a release; the first argument is shop.py."""

    def write(text: str, **files: str) -> Path:
        (tmp_path / "shop.py").write_text(text)
        for name, content in files.items():
            (tmp_path / f"{name}.py").write_text(content)
        return tmp_path

    return write


def failed(supervisor: FakeSupervisor) -> msg.Failed:
    message = supervisor.expect(msg.Failed)
    assert supervisor.wait() == WorkerExit.APP_FAILED
    return message


# -- the whole life -----------------------------------------------------------------------


@pytest.mark.parametrize("interface", APPS)
def test_hello_configure_ready_probe_accept_quiesce_drain_shutdown(site: Site, interface: str) -> None:
    with FakeSupervisor(site(APPS[interface])) as supervisor:
        ready = supervisor.start("shop", threads=3)
        assert ready.interface == interface
        assert ready.threads == (1 if interface == "asgi" else 3)
        assert supervisor.probe("/health").body == f"{interface} /health".encode()
        supervisor.accept()
        assert supervisor.get("/a").body == f"{interface} /a".encode()
        idle = supervisor.connect()
        assert ask(idle, "/b").status == 200
        quiesced = supervisor.send(msg.Quiesce())
        assert supervisor.expect(msg.Quiesced, re=quiesced).connections == 1
        waiting = supervisor.connect()  # the kernel's queue still takes it
        drain = supervisor.send(msg.Drain(20))
        assert ask(idle, "/c").headers["connection"] == "close"
        assert idle.recv(1) == b""
        idle.close()
        assert supervisor.expect(msg.Drained, re=drain).cut == 0
        assert supervisor.shutdown() == WorkerExit.OK
        waiting.close()
        assert (supervisor.output() == "") or interface == "asgi"
        assert supervisor.board.slot(3)[Field.REQUESTS] == 3  # not the probe


def test_asgi_without_lifespan_says_so_once_and_serves(site: Site) -> None:
    with FakeSupervisor(site(ASGI)) as supervisor:
        supervisor.start("shop")
        supervisor.shutdown()
        assert supervisor.output() == (
            "quiesce: the application has no lifespan (AssertionError); it is served without\n"
        )


def test_orders_may_come_before_configure_and_after(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop:app")
        supervisor.expect(msg.Ready)
        supervisor.accept()
        address = supervisor.listen("late")  # accepted on at once
        supervisor.send(msg.UseScoreboard(7), [supervisor.board.fd])
        assert supervisor.get("/late", "late").body == b"wsgi /late"
        slot = supervisor.board.slot(7)
        wait_for(lambda: slot[Field.REQUESTS] == 1)  # when the turn is over
        assert slot[Field.TURN_NS] > 0
        supervisor.send(msg.Unlisten(["late"]))
        supervisor.send(msg.Quiesce())
        supervisor.expect(msg.Quiesced)
        assert (
            socket.create_connection(address).close() is None
        )  # our copy lives: the socket was not shut down


def test_identify_is_answered_with_who_and_how(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        hello = supervisor.expect(msg.Hello)
        assert (hello.worker, hello.release, hello.state) == ("", "", "starting")
        asked = supervisor.send(msg.Identify())
        assert supervisor.expect(msg.Hello, re=asked).state == "starting"
        supervisor.configure("shop")
        supervisor.expect(msg.Ready)
        for order, answer, state in (
            (msg.Accept(), msg.Accepting, "accepting"),
            (msg.Quiesce(), msg.Quiesced, "quiesced"),
            (msg.Quiesce(), msg.Quiesced, "quiesced"),
            (msg.Resume(), msg.Resumed, "accepting"),
            (msg.Drain(5), msg.Drained, "drained"),
            (msg.Resume(), msg.Resumed, "accepting"),
        ):
            supervisor.expect(answer, re=supervisor.send(order))
            asked = supervisor.send(msg.Identify())
            hello = supervisor.expect(msg.Hello, re=asked)
            assert (hello.worker, hello.release, hello.state) == ("r42/1", "r42", state)


def test_resume_during_a_drain_serves_on(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as client:
            assert ask(client).status == 200
            supervisor.send(msg.Drain(30))
            supervisor.expect(msg.Resumed, re=supervisor.send(msg.Resume()))
            assert "connection" not in ask(client, "/again").headers
            assert supervisor.get("/new").body == b"wsgi /new"
        drain = supervisor.send(msg.Drain(30))
        supervisor.expect(msg.Drained, re=drain)  # and not the first drain's


@pytest.mark.slow
def test_a_drain_says_how_many_it_had_to_cut(site: Site) -> None:
    slow = (
        "import threading\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    yield b'begun'\n"
        "    threading.Event().wait(60)\n"
        "    yield b'never'\n"
    )
    with FakeSupervisor(site(slow)) as supervisor:
        supervisor.start("shop", exit_timeout_s=0.2)
        supervisor.accept()
        with supervisor.connect() as busy:
            busy.sendall(request())
            assert busy.recv(1000)
            supervisor.send(msg.Drain(0.05))
            assert supervisor.expect(msg.Drained).cut == 1
        assert supervisor.shutdown() == WorkerExit.OK


@pytest.mark.parametrize("interface", APPS)
def test_an_order_to_quiesce_comes_before_a_client_that_connected_earlier(site: Site, interface: str) -> None:
    with FakeSupervisor(site(APPS[interface])) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        supervisor.signal(signal.SIGSTOP)
        with supervisor.connect() as client:  # so both are ready in the turn that comes
            client.sendall(request("/patience"))
            quiesce = supervisor.send(msg.Quiesce())
            supervisor.signal(signal.SIGCONT)
            assert supervisor.expect(msg.Quiesced, re=quiesce).connections == 0
            assert supervisor.probe().status == 200  # a turn later it still has not
            supervisor.expect(msg.Hello, re=supervisor.send(msg.Identify()))
            assert supervisor.board.slot(3)[Field.ACCEPTED] == 0
            supervisor.expect(msg.Resumed, re=supervisor.send(msg.Resume()))
            assert read_answer(client).body == f"{interface} /patience".encode()


def test_something_that_is_no_socket_is_no_listener(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        supervisor.send(
            msg.Listen(["http2", "file"]), [supervisor.listeners["http"].fileno(), supervisor.capture]
        )
        assert supervisor.get().status == 200
        assert "listener 'file' is not a socket" in supervisor.output()


# -- the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eof", "sigterm twice"])
def test_an_orphan_finishes_what_it_accepted_and_leaves(site: Site, how: str) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as client:
            assert ask(client).status == 200
            if how == "eof":
                supervisor.channel.close()
            else:
                supervisor.signal(signal.SIGTERM)
                supervisor.expect(msg.ReplaceMe)
                supervisor.signal(signal.SIGTERM)
                supervisor.expect_eof()  # it has begun to drain
            answer = ask(client, "/last")
            assert answer.body == b"wsgi /last"
            assert how == "eof" or answer.headers["connection"] == "close"
        assert supervisor.wait() == WorkerExit.OK


def test_a_drain_that_says_so_waits_for_requests_only(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as idle, supervisor.connect() as blank, supervisor.connect() as half:
            for client in (idle, blank, half):
                assert ask(client).status == 200
            blank.sendall(b"\r")  # of an empty line, or of a head: nobody knows yet
            half.sendall(request()[:9])
            wait_for(lambda: supervisor.board.slot(3)[Field.CONN_BUSY] == 2)
            seq = supervisor.send(msg.Drain(10 * PATIENCE_S, idle_s=0.05))
            assert idle.recv(1) == b""
            blank.sendall(b"\n")
            assert blank.recv(1) == b"", "it is looked at more than once"
            half.sendall(request()[9:])
            assert read_answer(half).headers["connection"] == "close"
        supervisor.expect(msg.Drained, re=seq)
        assert supervisor.shutdown() == WorkerExit.OK


def test_resumed_it_ends_nobody(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as client:
            assert ask(client).status == 200
            supervisor.send(msg.Drain(10 * PATIENCE_S, idle_s=0.05))
            supervisor.expect(msg.Resumed, re=supervisor.send(msg.Resume()))
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(PATIENCE_S)
            assert ask(client).status == 200


@pytest.mark.slow
def test_sigterm_past_the_drain_s_deadline_is_the_end(site: Site) -> None:
    text = (
        "import threading, atexit\natexit.register(print, 'atexit')\n"
        "def app(environ, start_response):\n"
        "    print('stuck'); threading.Event().wait(60)\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop", exit_timeout_s=5)
        supervisor.accept()
        with supervisor.connect() as client:
            client.sendall(request())
            wait_for(lambda: "stuck" in supervisor.output())
            supervisor.send(msg.Drain(0))
            assert read_answer(client).status == 503
            supervisor.signal(signal.SIGTERM)  # the client has not closed yet
            assert supervisor.wait() == WorkerExit.OK
            assert "atexit" in supervisor.output()


@pytest.mark.parametrize("interface", APPS)
def test_a_worker_that_is_sent_sigterm_asks_to_be_replaced_and_serves_on(site: Site, interface: str) -> None:
    with FakeSupervisor(site(APPS[interface])) as supervisor:
        supervisor.start("shop")
        supervisor.signal(signal.SIGINT)  # not for us
        supervisor.accept()
        supervisor.signal(signal.SIGTERM)
        assert supervisor.expect(msg.ReplaceMe) == msg.ReplaceMe("SIGTERM")
        supervisor.send(msg.Replacing())
        assert supervisor.get("/on").body == f"{interface} /on".encode(), "it accepts as before"
        supervisor.expect(msg.Drained, re=supervisor.send(msg.Drain(PATIENCE_S)))
        assert supervisor.shutdown() == WorkerExit.OK


@pytest.mark.parametrize("interface", APPS)
def test_a_second_sigterm_ends_an_idle_worker(site: Site, interface: str) -> None:
    with FakeSupervisor(site(APPS[interface])) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        supervisor.signal(signal.SIGTERM)
        supervisor.expect(msg.ReplaceMe)
        supervisor.send(msg.Replacing())
        supervisor.signal(signal.SIGTERM)
        supervisor.expect_eof()  # at once: the supervisor puts another in its place while it drains
        assert supervisor.wait() == WorkerExit.OK


@pytest.mark.slow
def test_where_nobody_answers_sigterm_ends_it_as_well(site: Site) -> None:
    """The supervisor hangs, or it is of a version that does not know the word."""
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        supervisor.signal(signal.SIGTERM)
        supervisor.expect(msg.ReplaceMe)
        supervisor.expect_eof()
        assert supervisor.wait() == WorkerExit.OK
        assert "the supervisor does not answer" in supervisor.output()


def test_a_supervisor_that_takes_over_is_asked_again_until_one_has_answered(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        supervisor.signal(signal.SIGTERM)
        supervisor.expect(msg.ReplaceMe)
        supervisor.take_over()
        assert supervisor.identify().state == "accepting"
        supervisor.expect(msg.ReplaceMe)
        supervisor.send(msg.Replacing())
        supervisor.identify()
        supervisor.expect(msg.Drained, re=supervisor.send(msg.Drain(PATIENCE_S)))  # and not the word again
        assert supervisor.shutdown() == WorkerExit.OK


def test_sigterm_to_a_worker_that_drains_changes_nothing(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as client:
            assert ask(client).status == 200
            seq = supervisor.send(msg.Drain(PATIENCE_S))
            supervisor.expect(msg.HandedOver, re=seq)
            supervisor.signal(signal.SIGTERM)
            assert supervisor.identify().state == "draining"
            assert ask(client, "/last").headers["connection"] == "close"
        supervisor.expect(msg.Drained, re=seq)
        assert supervisor.shutdown() == WorkerExit.OK


def test_exit_is_a_normal_one(site: Site) -> None:
    text = WSGI + (
        "import atexit, logging, threading\n"
        "atexit.register(print, 'atexit ran')\n"
        "class H(logging.Handler):\n"
        "    def close(self):\n"
        "        print('logging was shut down'); super().close()\n"
        "logging.getLogger().addHandler(H())\n"
        "stop = threading.Event()\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread ended'))).start()\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop")
        assert supervisor.shutdown() == WorkerExit.OK
        assert sorted(supervisor.output().split("\n")[:-1]) == [
            "atexit ran",
            "logging was shut down",
            "thread ended",
        ]


def test_threads_that_do_not_end_are_bounded_by_exit_timeout(site: Site) -> None:
    text = (
        WSGI + "import threading\nthreading.Thread(target=threading.Event().wait, name='forever').start()\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop", exit_timeout_s=0.1)
        assert supervisor.shutdown() == WorkerExit.OK
        assert "worker r42/1: threads forever did not end within exit_timeout (0.1 s)" in supervisor.output()


# -- applications that cannot be served -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "app", "reason", "detail"),
    [
        ("import nowhere_to_be_found\n", "shop", "module 'shop' needs 'nowhere_to_be_found'", "line 1, in <module>"),
        ("1/0\n", "shop", "module 'shop' cannot be imported: ZeroDivisionError", "shop.py\", line 1, in <module>"),
        ("def f(:\n", "shop", "module 'shop' cannot be imported: SyntaxError", "def f(:"),
        (WSGI, "shop:nothing", "module 'shop' has no attribute 'nothing'; it has: app", ""),
        (WSGI, "shop:__doc__", "the application is a NoneType", ""),
        ("def make():\n    raise OSError(2)\n", "shop:make()", "factory shop:make() raised OSError: 2", "in make"),
        ("import sys\nsys.exit(5)\n", "shop", "module 'shop' called sys.exit(5) while it was im", "SystemExit: 5"),
        ("app = lambda *a: None\n", "shop", "cannot tell which interface", ""),
        ("", "nowhere:app", "no module named 'nowhere' in ", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)  # fmt: skip
def test_a_bad_application_is_said_with_its_traceback(
    site: Site, text: str, app: str, reason: str, detail: str
) -> None:
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure(app)
        message = failed(supervisor)
        assert message.reason.startswith(reason)
        assert detail in message.detail
        assert (
            "quiesce" not in message.detail.replace("quiesce/tests", "") and "<frozen" not in message.detail
        )
        assert message.detail in supervisor.output() and message.reason in supervisor.output()


def test_a_traceback_of_any_size_and_content_fits_a_packet(site: Site) -> None:
    text = "class E(Exception): pass\nraise E('\\x00\\x1b[31m\\ud800 é中🐍' * 20000 + 'the end')\n"
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop")
        message = failed(supervisor)
        assert len(message.detail.encode()) <= msg.MAX_DETAIL_BYTES
        assert message.detail.endswith("the end\n")


def test_os_exit_on_import_is_an_exit_status(site: Site) -> None:
    with FakeSupervisor(site("import os\nprint('last words')\nos._exit(9)\n")) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop")
        supervisor.expect_eof()
        assert supervisor.wait() == 9
        assert supervisor.output() == "last words\n"


def test_a_hanging_import_shows_where_before_the_time_is_up(site: Site) -> None:
    text = "import threading\ndef connect():\n    threading.Event().wait()\nconnect()\n"
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop", start_timeout_s=0.2)
        wait_for(
            lambda: (
                "Timeout (0:00:00.18" in supervisor.output() and ", line 4 in <module>" in supervisor.output()
            )
        )


@pytest.mark.slow
def test_a_hanging_import_ends_although_its_supervisor_is_dead(site: Site) -> None:
    """Nobody is there to kill it, and it cannot see that: its thread is in the import."""
    with FakeSupervisor(site("import threading\nthreading.Event().wait()\n")) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop", start_timeout_s=0.1)
        supervisor.channel.close()
        assert supervisor.wait() == -signal.SIGALRM


def wait_for(fact: Callable[[], bool]) -> None:
    """Poll for something that only a file shows; bounded."""
    import time

    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


# -- messages that make no sense -------------------------------------------------------------


def raw(supervisor: FakeSupervisor, data: bytes, fds: tuple[int, ...] = ()) -> None:
    with socket.socket(fileno=os.dup(supervisor.channel.fileno())) as sock:
        socket.send_fds(sock, [data], list(fds))


def test_unknown_messages_are_skipped_and_their_descriptors_closed(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            supervisor.expect(msg.Hello)
            raw(supervisor, b'{"v":2,"type":"street","seq":1,"fds":1,"colour":"red"}', (theirs.fileno(),))
            supervisor.configure("shop")
            supervisor.expect(msg.Ready)
            raw(supervisor, b'{"v":1,"type":"dance","seq":2,"fds":1}', (theirs.fileno(),))
            supervisor.accept()
            theirs.close()
            ours.settimeout(PATIENCE_S)
            assert ours.recv(1) == b""
        assert "message 'street' is not known to this version" in supervisor.output()
        assert "message 'dance' is not known" in supervisor.output()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b'{"v":0,"type":"configure","seq":1}',
            "peer speaks protocol 0, and the oldest understood here is 1",
        ),
        (b'{"v":1,"type":"configure","seq":1,"name":"shop"}', "message 'configure' lacks release"),
        (b"garbage", "is not JSON"),
        (b'{"v":1,"type":"listen","seq":1,"names":["a"],"fds":1}', "announced 1 descriptors and brought 0"),
        (b'{"v":1,"type":"x","seq":1,"pad":"' + b"x" * 66000 + b'"}', "larger than 65536 bytes and was cut"),
    ],
)
def test_nonsense_before_configure_ends_the_start(site: Site, data: bytes, said: str) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.expect(msg.Hello)
        raw(supervisor, data)
        assert said in supervisor.expect(msg.Failed).reason
        assert supervisor.wait() == WorkerExit.PROTOCOL


@pytest.mark.parametrize(
    "data",
    [
        b'{"v":0,"type":"quiesce","seq":1}',
        b"garbage",
        b'{"v":1,"type":"listen","seq":1,"names":["a"],"fds":1}',
        b'{"v":1,"type":"probe","seq":1}',
        b'{"v":1,"type":"hello","seq":1,"protocol":1,"oldest_protocol":1,"version":"","python":"","pid":1}',
        b'{"v":1,"type":"x","seq":1,"pad":"' + b"x" * 66000 + b'"}',
    ],
)
def test_nonsense_to_a_worker_that_serves_is_a_line_and_nothing_else(site: Site, data: bytes) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        raw(supervisor, data)
        assert supervisor.get("/still").body == b"wsgi /still"
        supervisor.expect(msg.Quiesced, re=supervisor.send(msg.Quiesce()))
        assert supervisor.output().startswith("quiesce: ")


def test_newer_fields_and_versions_are_understood(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        raw(supervisor, b'{"v":9,"type":"accept","seq":77,"gently":true}')
        supervisor.expect(msg.Accepting, re=77)


def test_a_scoreboard_that_is_none_is_refused_in_words(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.start("shop")
        fd = os.memfd_create("no scoreboard")
        supervisor.send(msg.UseScoreboard(1), [fd])
        os.close(fd)
        supervisor.accept()
        assert "not a sealed scoreboard" in supervisor.output()
        fds = len(os.listdir(f"/proc/{supervisor.process.pid}/fd"))
        supervisor.send(msg.UseScoreboard(5000), [supervisor.board.fd])  # it is one, and has no such slot
        supervisor.accept()
        assert "slot 5000 is outside" in supervisor.output()
        assert len(os.listdir(f"/proc/{supervisor.process.pid}/fd")) == fds
        assert supervisor.get().status == 200
        wait_for(lambda: supervisor.board.slot(3)[Field.REQUESTS] == 1)  # where it counted before


def nofile(limit: int) -> Callable[[], None]:
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def test_descriptors_lost_at_the_limit_fail_the_start(site: Site) -> None:
    with FakeSupervisor(site(WSGI), preexec_fn=nofile(24)) as supervisor:
        supervisor.expect(msg.Hello)
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            supervisor.send(msg.Listen([f"l{n}" for n in range(40)]), [listener.fileno()] * 40)
        assert "RLIMIT_NOFILE" in supervisor.expect(msg.Failed).reason
        assert supervisor.wait() == WorkerExit.PROTOCOL


def test_descriptors_lost_after_ready_and_before_serving_fail_the_worker(site: Site) -> None:
    with FakeSupervisor(site(WSGI), preexec_fn=nofile(32)) as supervisor:
        supervisor.start("shop")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            supervisor.send(msg.Listen([f"l{n}" for n in range(40)]), [listener.fileno()] * 40)
        assert "RLIMIT_NOFILE" in supervisor.expect(msg.Failed).reason
        assert supervisor.wait() == WorkerExit.PROTOCOL


def test_a_worker_that_is_full_has_room_for_what_comes_with_an_order(site: Site) -> None:
    with FakeSupervisor(site(WSGI), preexec_fn=nofile(32)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        clients = []
        while "accepting pauses" not in supervisor.output():
            clients.append(supervisor.connect())
            supervisor.send(msg.Identify())
            supervisor.next()
        ours, theirs = socket.socketpair()
        with ours:
            supervisor.send(msg.Probe(), [theirs.fileno()])
            theirs.close()
            ours.settimeout(PATIENCE_S)
            ours.sendall(request("/probe", close=True))
            assert read_answer(ours).status == 200
        for client in clients:
            client.close()


def test_a_probe_lost_at_the_limit_does_not_hurt_a_worker_that_serves(site: Site) -> None:
    hoards = (
        "import os\n"
        "hoard = []\n"
        "def app(environ, start_response):\n"
        "    try:\n"
        "        while True:\n"
        "            hoard.append(os.dup(0))\n"
        "    except OSError:\n"
        "        pass\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n"
        "    return [b'ok']\n"
    )
    with FakeSupervisor(site(hoards), preexec_fn=nofile(64)) as supervisor:
        supervisor.start("shop")
        supervisor.accept()
        with supervisor.connect() as client:
            client.sendall(request("/"))
            assert read_answer(client).status == 200  # the application has all descriptors now
            ours, theirs = socket.socketpair()
            with ours:
                supervisor.send(msg.Probe(), [theirs.fileno()])
                theirs.close()
                ours.settimeout(PATIENCE_S)
                assert ours.recv(1) == b""  # closed on the way: the probe fails, as it should
            supervisor.expect(msg.Hello, re=supervisor.send(msg.Identify()))
            client.sendall(request("/served", close=True))
            assert read_answer(client).status == 200


def test_a_supervisor_that_dies_in_the_middle_of_a_start(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop")
        supervisor.channel.close()
        assert supervisor.wait() == WorkerExit.OK


def test_shutdown_before_configure(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        assert supervisor.shutdown() == WorkerExit.OK


# -- output, environment, place ---------------------------------------------------------------


def test_no_line_is_lost_and_the_log_is_changed_under_way(site: Site) -> None:
    text = (
        "import os, sys\nprint('import')\n"
        "def app(environ, start_response):\n"
        "    print('out', environ['PATH_INFO']); sys.stderr.write('err\\n'); os.system('echo child')\n"
        "    start_response('200 OK', []); return []\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop")
        assert supervisor.output() == "import\n"
        supervisor.probe("/1")
        assert supervisor.output() == "import\nout /1\nerr\nchild\n"
        log = os.memfd_create("log")
        append = os.open(f"/proc/self/fd/{log}", os.O_WRONLY | os.O_APPEND)
        supervisor.send(msg.UseLog(), [append])
        os.close(append)
        supervisor.probe("/2")
        supervisor.process.kill()
        supervisor.wait()
        assert os.pread(log, 1000, 0) == b"out /2\nerr\nchild\n"
        os.close(log)


def test_print_goes_on_when_nobody_reads(site: Site) -> None:
    text = (
        "def app(environ, start_response):\n"
        "    print('x' * 100_000)\n    print('y', end='', flush=True)\n"
        "    start_response('200 OK', []); return [b'served']\n"
    )
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop")
        supervisor.send(msg.UseLog(), [writer])
        os.close(writer)
        assert supervisor.probe().body == b"served"  # a full pipe
        os.close(reader)
        assert supervisor.probe().body == b"served"  # a broken one
        assert supervisor.shutdown() == WorkerExit.OK


def test_signals_are_as_after_an_exec_when_the_application_is_imported(site: Site) -> None:
    text = (
        "import signal\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
    ) + WSGI

    def mask() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})

    with FakeSupervisor(site(text), preexec_fn=mask) as supervisor:
        supervisor.start("shop")
        assert supervisor.output() == "set() True\n"


def test_the_process_title_says_what_it_does(site: Site) -> None:
    with FakeSupervisor(site(WSGI)) as supervisor:
        title = Path(f"/proc/{supervisor.process.pid}/cmdline")

        def shown() -> str:
            return title.read_bytes().rstrip(b"\0").decode()

        supervisor.start("shop")
        supervisor.accept()
        asked = supervisor.send(msg.Identify())
        supervisor.expect(msg.Hello, re=asked)
        assert shown() == "quiesce: worker shop r42/1"
        with supervisor.connect() as one, supervisor.connect() as two:
            ask(one)
            ask(two)
            supervisor.send(msg.Drain(30))
            supervisor.expect(msg.Hello, re=supervisor.send(msg.Identify()))
            assert shown() == "quiesce: worker shop r42/1 draining 2"
            one.close()
            wait_for(lambda: shown() == "quiesce: worker shop r42/1 draining 1")


def test_app_dir_comes_first_and_argv_is_none_of_ours(site: Site) -> None:
    text = (
        "import sys, os, __main__\n"
        "print(sys.path[0], os.getcwd(), sys.argv, os.path.basename(__main__.__file__), sep='|')\n"
    ) + WSGI
    folder = site(text)
    with FakeSupervisor(folder) as supervisor:
        supervisor.start("shop")
        path, cwd, argv, main = supervisor.output().strip().split("|")
        assert path == cwd == str(folder)
        assert main == "bootstrap.py"
        assert argv.count(",") == 0 and argv.endswith("bootstrap.py']")


# -- forks -------------------------------------------------------------------------------------

FORKS = """
import os, sys, multiprocessing
{at_import}
def sleeper():
    os.read({fd}, 1)   # until the test lets go

def app(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("200 OK", [])
    if path == "/fork":
        pid = os.fork()
        if pid == 0:
            sleeper()
            os._exit(0)
        return [str(pid).encode()]
    if path == "/multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=sleeper)
        process.start()
        return [str(process.pid).encode()]
    return [b"ok"]
"""


@pytest.mark.parametrize("path", ["/fork", "/multiprocessing", "import"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_holds_nothing_of_ours(site: Site, path: str, threads: int) -> None:
    reader, writer = os.pipe()  # the child lives until we close the writer
    at_import = "if os.fork() == 0:\n    os.read({fd}, 1); os._exit(0)\n" if path == "import" else ""
    text = FORKS.replace("{at_import}", at_import).replace("{fd}", str(reader))
    with FakeSupervisor(site(text), pass_fds=[reader]) as supervisor:
        supervisor.start("shop", threads=threads)
        supervisor.accept()
        with supervisor.connect() as client:
            assert ask(client, path if path.startswith("/") else "/").status == 200
            supervisor.process.kill()
            supervisor.wait()
            supervisor.expect_eof()  # though the child lives
            assert client.recv(1) == b""
        address = supervisor.address()
        supervisor.listeners.pop("http").close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    os.close(reader)
    os.close(writer)


def test_a_child_that_falls_back_into_the_worker_leaves(site: Site) -> None:
    text = (
        "import os\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    pid = os.fork()\n"
        "    return [b'%d' % pid]\n"
    )
    for threads in (1, 2):
        with FakeSupervisor(site(text)) as supervisor:
            supervisor.start("shop", threads=threads)
            supervisor.accept()
            answer = supervisor.get()
            child = int(answer.body)
            assert child > 0  # the parent's answer, and only that
            wait_for(lambda child=child: is_zombie_or_gone(child))  # type: ignore[misc]
            assert supervisor.get().status == 200
            requests = supervisor.board.slot(3)
            wait_for(lambda requests=requests: requests[Field.REQUESTS] == 2)  # type: ignore[misc]


def is_zombie_or_gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_in_an_application_does_not_run_us_again(site: Site, method: str) -> None:
    text = (
        "import multiprocessing\nfrom helper import double\n"
        "def app(environ, start_response):\n"
        f"    with multiprocessing.get_context({method!r}).Pool(1) as pool:\n"
        "        answer = pool.map(double, [21])\n"
        "    start_response('200 OK', []); return [str(answer).encode()]\n"
    )
    with FakeSupervisor(site(text, helper="def double(x):\n    return 2 * x\n")) as supervisor:
        supervisor.start("shop")
        assert supervisor.probe().body == b"[42]"
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output() == ""


def test_flask_is_served_as_it_is(site: Site) -> None:
    pytest.importorskip("flask")
    text = (
        "from flask import Flask, request, stream_with_context\n"
        "app = Flask(__name__)\n"
        "@app.route('/hello/<name>', methods=['GET', 'POST'])\n"
        "def hello(name):\n    return {'name': name, 'sent': len(request.get_data())}\n"
        "@app.route('/stream')\n"
        "def stream():\n    return stream_with_context(str(n) for n in range(5)), {'X-Own': 'yes'}\n"
        "@app.route('/error')\n"
        "def error():\n    raise RuntimeError('as planned')\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        assert supervisor.start("shop").interface == "wsgi"
        supervisor.accept()
        with supervisor.connect() as client:
            assert b'"name":"w\\u00e4"' in ask(client, "/hello/w%C3%A4").body
            assert b'"sent":400000' in ask(client, "/hello/x", method="POST", body=b"x" * 400_000).body
            answer = ask(client, "/stream")
            assert (answer.body, answer.headers["x-own"]) == (b"01234", "yes")
            assert ask(client, "/error").status == 500
            assert ask(client, "/nowhere").status == 404
        assert supervisor.shutdown() == WorkerExit.OK
        assert "RuntimeError: as planned" in supervisor.output()
