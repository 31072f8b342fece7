"""ASGI applications over a real worker process."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from unit.worker.fake_supervisor import PATIENCE_S, FakeSupervisor, ask, read_answer, request

SHOP = '''
import asyncio, json, os, sys

events = []

def say(*words):
    print(*words)

async def lifespan(scope, receive, send):
    assert scope["asgi"]["version"] == "3.0"
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["pool"] = ["shared"]
    scope["state"]["count"] = 1
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    say("shutdown")
    await send({"type": "lifespan.shutdown.complete"})

async def answer(send, body=b"", status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(scope, receive, send)
    await globals()[scope["path"].split("/")[1]](scope, receive, send)

async def scope(scope, receive, send):
    scope["state"]["count"] += 1
    shown = {k: repr(v) for k, v in scope.items()}
    await answer(send, json.dumps(shown).encode(), headers=[[b"content-type", b"application/json"]])

async def echo(scope, receive, send):
    body, more, parts = b"", True, 0
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        body, more, parts = body + message.get("body", b""), message.get("more_body", False), parts + 1
    await answer(send, body, headers=[(b"x-parts", b"%d" % parts)])

async def ignore(scope, receive, send):
    await answer(send, b"ignored")

async def stream(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for n in range(3):
        await send({"type": "http.response.body", "body": b"part %d," % n, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body"})

async def endless(scope, receive, send):
    """More than any buffer holds; says how far it got when it was held up."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    sent = 0
    while True:
        task = asyncio.ensure_future(send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True}))
        done, _ = await asyncio.wait([task], timeout=0.3)
        sent += 65536
        if not done:
            say("held up after", sent)
            await task
            say("went on")
            break
    await send({"type": "http.response.body", "body": b"the end"})

async def wait(scope, receive, send):
    assert (await receive())["type"] == "http.request"
    say("waiting")
    assert (await receive())["type"] == "http.disconnect"
    say("disconnected")
    await answer(send, b"to nobody")
    assert (await receive())["type"] == "http.disconnect"
    say("done")

async def after(scope, receive, send):
    await receive()
    await answer(send, b"complete")
    assert (await receive())["type"] == "http.disconnect"
    say("told after the response")

async def raises(scope, receive, send):
    raise LookupError("before anything")

async def raises_after_start(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise LookupError("the head was not out yet")

async def raises_in_body(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise LookupError("in the body")

async def exits(scope, receive, send):
    sys.exit(3)

async def nothing(scope, receive, send):
    pass

async def half(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})

async def wrong_order(scope, receive, send):
    await send({"type": "http.response.body", "body": b"x"})

async def twice(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.start", "status": 200, "headers": []})

async def more_after_end(scope, receive, send):
    await answer(send, b"complete")
    await send({"type": "http.response.body", "body": b"more"})

async def unknown(scope, receive, send):
    await send({"type": "http.response.dance"})

async def slow_reader(scope, receive, send):
    """Takes the body only when it is told that the client could send no more."""
    message = await receive()
    say("first part")
    await asyncio.sleep(0.3)
    size = len(message["body"])
    while message["more_body"]:
        message = await receive()
        size += len(message["body"])
    await answer(send, b"%d" % size)

async def together(scope, receive, send):
    gate = app.__dict__.setdefault("gate", asyncio.Event())
    app.__dict__["n"] = n = app.__dict__.get("n", 0) + 1
    if n == 3:
        gate.set()
    await gate.wait()
    await answer(send, b"%d" % n)

async def background(scope, receive, send):
    await answer(send, b"ok")
    say("in the background")
    try:
        while not os.path.exists("may_end"):
            await asyncio.sleep(0.01)
        say("background done")
    except asyncio.CancelledError:
        say("background cancelled")
        raise

async def fork(scope, receive, send):
    pid = os.fork()
    if pid == 0:
        os.read(int(scope["query_string"]), 1)
        os._exit(0)
    await answer(send, b"%d" % pid)
'''


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "shop.py").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def shop(site: Callable[[str], Path]) -> Path:
    return site(SHOP)


def served(supervisor: FakeSupervisor) -> FakeSupervisor:
    assert supervisor.start("shop").interface == "asgi"
    supervisor.accept()
    return supervisor


def output_has(supervisor: FakeSupervisor, *wanted: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not all(text in supervisor.output() for text in wanted):
        assert time.monotonic() < deadline, supervisor.output()
        time.sleep(0.01)


def test_the_scope_is_what_the_specification_says(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.sendall(request("/scope/caf%C3%A9%20a%2Fb?x=%201&y", headers="X-Two: A\r\nX-Two: b\r\n"))
            scope = json.loads(read_answer(client).body)
            client.sendall(request("/scope"))  # on the same connection
            again = json.loads(read_answer(client).body)
            assert scope["client"] == repr(client.getsockname()[:2])
            assert scope["server"] == repr(client.getpeername()[:2])
        assert scope["type"] == "'http'"
        assert scope["asgi"] == "{'version': '3.0', 'spec_version': '2.3'}"
        assert (scope["http_version"], scope["method"], scope["scheme"]) == ("'1.1'", "'GET'", "'http'")
        assert scope["path"] == "'/scope/café a/b'"
        assert scope["raw_path"] == "b'/scope/caf%C3%A9%20a%2Fb'"
        assert scope["query_string"] == "b'x=%201&y'"
        assert scope["root_path"] == "''"
        assert scope["headers"] == "[(b'host', b'test'), (b'x-two', b'A'), (b'x-two', b'b')]"
        # Each request has its own copy of the state, of one depth.
        assert scope["state"] == again["state"] == "{'pool': ['shared'], 'count': 2}"


def test_a_probe_shows_the_addresses_that_it_was_given(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        supervisor.start("shop")
        scope = json.loads(
            supervisor.probe("/scope", peer=["10.0.0.1", 5], local=["10.0.0.2", 443], scheme="https").body
        )
        assert (scope["client"], scope["server"]) == ("('10.0.0.1', 5)", "('10.0.0.2', 443)")
        assert scope["scheme"] == "'https'"


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_bodies_arrive_whole(shop: Path, size: int) -> None:
    body = os.urandom(size // 2) * 2
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            for _ in range(2):
                client.sendall(request("/echo", method="POST", body=body))
                assert read_answer(client).body == body


def test_chunked_and_expect_continue(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            client.sendall(head)
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            for byte in b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n":
                client.sendall(bytes((byte,)))
            assert read_answer(client).body == b"hello world"


def test_a_body_that_nobody_reads_does_not_hurt_the_next_request(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.sendall(request("/ignore", method="POST", body=b"x" * 1000) + request("/ignore"))
            assert read_answer(client).body == b"ignored"
            assert read_answer(client).body == b"ignored"


def test_a_client_that_sends_more_than_is_taken_is_held_up(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            client.sendall(request("/slow_reader", method="POST", headers="Content-Length: 50000000\r\n"))
            client.setblocking(False)
            sent, block = 0, b"x" * 1_000_000
            output_is_there = False
            while sent < 50_000_000:
                try:
                    sent += client.send(block[: 50_000_000 - sent])
                except BlockingIOError:
                    if not output_is_there:
                        output_has(supervisor, "first part")
                        output_is_there = True
                        assert sent < 20_000_000
                    client.setblocking(True)
            client.setblocking(True)
            assert read_answer(client).body == b"50000000"


def test_streaming_is_chunked_and_one_part_has_a_length(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            answer = ask(client, "/stream")
            assert (
                answer.body == b"part 0,part 1,part 2," and answer.headers["transfer-encoding"] == "chunked"
            )
            answer = ask(client, "/ignore")
            assert answer.headers["content-length"] == "7"


def test_send_waits_for_a_client_that_does_not_read(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE_S)
            client.connect(supervisor.address())
            client.sendall(request("/endless"))
            output_has(supervisor, "held up after")
            sent = int(supervisor.output().split("held up after ")[1].split()[0])
            assert sent < 30_000_000
            answer = read_answer(client)
            assert len(answer.body) == sent + 7 and answer.body.endswith(b"the end")
            output_has(supervisor, "went on")


def test_a_client_that_leaves_is_told(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.sendall(request("/wait"))
            output_has(supervisor, "waiting")
        output_has(supervisor, "disconnected", "done")
        assert supervisor.get("/after").body == b"complete"
        output_has(supervisor, "told after the response")
        assert "Traceback" not in supervisor.output()


def test_requests_run_side_by_side(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        clients = [supervisor.connect() for _ in range(3)]
        for client in clients:
            client.sendall(request("/together"))
        assert sorted(read_answer(client).body for client in clients) == [b"1", b"2", b"3"]
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/raises", "LookupError: before anything"),
        ("/raises_after_start", "LookupError: the head was not out yet"),
        ("/exits", "SystemExit: 3"),
        ("/nothing", "the ASGI application returned without a response"),
        ("/wrong_order", "'http.response.body' before 'http.response.start'"),
        ("/twice", "a second 'http.response.start'"),
        ("/unknown", "'http.response.dance' is not a message of an HTTP response"),
    ],
)
def test_an_error_before_the_head_is_a_500_with_a_traceback(shop: Path, path: str, said: str) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        assert supervisor.get(path).status == 500
        assert said in supervisor.output()
        assert supervisor.get("/ignore").status == 200


@pytest.mark.parametrize("path", ["/raises_in_body", "/half"])
def test_an_error_in_the_body_is_a_visible_cut(shop: Path, path: str) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with pytest.raises((AssertionError, ConnectionResetError)):
            supervisor.get(path)
        output_has(supervisor, "Error: ")


def test_more_after_the_end_is_an_error_that_the_client_does_not_see(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        assert supervisor.get("/more_after_end").body == b"complete"
        output_has(supervisor, "after the response was complete")


def test_websockets_are_refused_in_words(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.sendall(
                request(
                    "/ws",
                    headers="Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
                )
            )
            answer = read_answer(client)
        assert answer.status == 400 and b"later version" in answer.body


def test_a_drain_waits_for_a_running_request(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            client.sendall(request("/slow_reader", method="POST", headers="Content-Length: 4\r\n") + b"ab")
            output_has(supervisor, "first part")
            drain = supervisor.send(msg.Drain(20))
            client.sendall(b"cd")
            answer = read_answer(client)
            assert answer.body == b"4" and answer.headers["connection"] == "close"
            client.close()
            assert supervisor.expect(msg.Drained, re=drain).cut == 0
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output().endswith("shutdown\n")


def test_a_drain_waits_for_a_background_task(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        assert supervisor.get("/background").body == b"ok"
        output_has(supervisor, "in the background")
        drain = supervisor.send(msg.Drain(PATIENCE_S))
        supervisor.expect(msg.HandedOver, re=drain)
        with pytest.raises(AssertionError, match="no message"):
            supervisor.next(0.3)  # nobody is connected, and still it is not drained
        (shop / "may_end").touch()
        assert supervisor.expect(msg.Drained, re=drain).cut == 0
        assert "background done" in supervisor.output()
        assert supervisor.shutdown() == WorkerExit.OK


def test_a_background_task_does_not_hold_a_worker_past_the_deadline(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        assert supervisor.get("/background").body == b"ok"
        output_has(supervisor, "in the background")
        began = time.monotonic()
        drain = supervisor.send(msg.Drain(0.3))
        supervisor.expect(msg.Drained, re=drain)
        assert 0.2 < time.monotonic() - began < 4.0  # not the seconds for the last words: nobody is connected
        assert supervisor.shutdown() == WorkerExit.OK
        assert "background cancelled" in supervisor.output()


def test_a_forked_child_holds_neither_client_nor_channel(shop: Path) -> None:
    reader, writer = os.pipe()
    with FakeSupervisor(shop, pass_fds=[reader]) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            assert ask(client, f"/fork?{reader}").status == 200
            assert ask(client, "/ignore").status == 200
            supervisor.process.kill()
            supervisor.wait()
            supervisor.expect_eof()
            assert client.recv(1) == b""
    os.close(reader)
    os.close(writer)


# -- lifespan --------------------------------------------------------------------------------


def test_lifespan_shutdown_runs_when_it_leaves(shop: Path) -> None:
    with FakeSupervisor(shop) as supervisor:
        served(supervisor)
        supervisor.get("/ignore")
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output() == "shutdown\n"


@pytest.mark.parametrize(
    ("startup", "reason", "detail"),
    [
        (
            "await send({'type': 'lifespan.startup.failed', 'message': 'no db'})",
            "lifespan startup failed: no db",
            "no db",
        ),
        ("await send({'type': 'lifespan.startup.failed'})", "lifespan startup failed: no reason given", ""),
        (
            "await send({'type': 'lifespan.startup.failed', 'message': 'Trace:\\nOSError: y\\n'})\n    raise OSError",
            "lifespan startup failed: OSError: y",
            "Trace:\n",
        ),
    ],
)
def test_a_failed_startup_fails_the_worker(
    site: Callable[[str], Path], startup: str, reason: str, detail: str
) -> None:
    text = f"async def app(scope, receive, send):\n    await receive()\n    {startup}\n"
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop")
        failed = supervisor.expect(msg.Failed)
        assert failed.reason == reason and detail in failed.detail
        assert supervisor.wait() == WorkerExit.APP_FAILED
        assert reason in supervisor.output()


@pytest.mark.parametrize(
    "body", ["return", "raise KeyError('path')", "await send({'type': 'http.response.start'})"]
)
def test_an_application_without_lifespan_is_served(site: Callable[[str], Path], body: str) -> None:
    text = (
        "async def app(scope, receive, send):\n"
        f"    if scope['type'] == 'lifespan':\n        {body}\n"
        "    assert 'state' not in scope\n"
        "    await send({'type': 'http.response.start', 'status': 204, 'headers': []})\n"
        "    await send({'type': 'http.response.body'})\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        served(supervisor)
        assert supervisor.get("/").status == 204
        assert supervisor.shutdown() == WorkerExit.OK


def test_a_shutdown_that_hangs_is_bounded(site: Callable[[str], Path]) -> None:
    text = (
        "import asyncio\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n    await send({'type': 'lifespan.startup.complete'})\n"
        "    await receive()\n    await asyncio.Event().wait()\n"
    )
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.start("shop", exit_timeout_s=0.2)
        assert supervisor.shutdown() == WorkerExit.OK


def test_an_exception_on_import_and_on_no_event_loop(site: Callable[[str], Path]) -> None:
    # Some libraries make futures or locks at import; there is an event loop to find for them later, as in uvicorn.
    text = SHOP + "\nlock = asyncio.Lock()\n"
    with FakeSupervisor(site(text)) as supervisor:
        served(supervisor)
        assert supervisor.get("/ignore").status == 200


def test_fastapi_with_lifespan_and_background(site: Callable[[str], Path]) -> None:
    pytest.importorskip("fastapi")
    text = """
from contextlib import asynccontextmanager
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse

@asynccontextmanager
async def lifespan(app):
    print("up")
    yield {"db": "open"}
    print("down")

app = FastAPI(lifespan=lifespan)

@app.get("/items/{item}")
async def item(item: int, request: Request, q: str = ""):
    return {"item": item, "q": q, "db": request.state.db, "client": request.client.host}

@app.post("/upload")
async def upload(request: Request, background: BackgroundTasks):
    background.add_task(print, "in the background")
    return {"size": len(await request.body())}

@app.get("/sync")
def in_a_thread():
    import threading
    return threading.current_thread() is not threading.main_thread()

@app.get("/stream")
async def stream():
    async def parts():
        for n in range(100):
            yield f"{n}\\n"
    return StreamingResponse(parts())

@app.get("/error")
async def error():
    raise RuntimeError("as planned")
"""
    with FakeSupervisor(site(text)) as supervisor:
        served(supervisor)
        with supervisor.connect() as client:
            assert json.loads(ask(client, "/items/7?q=a%20b").body) == {
                "item": 7,
                "q": "a b",
                "db": "open",
                "client": "127.0.0.1",
            }
            assert ask(client, "/items/x").status == 422
            assert ask(client, "/nowhere").status == 404
            assert json.loads(ask(client, "/upload", method="POST", body=b"z" * 500_000).body) == {
                "size": 500_000
            }
            assert ask(client, "/sync").body == b"true"
            assert ask(client, "/stream").body.split() == [b"%d" % n for n in range(100)]
        assert supervisor.get("/error").status == 500
        assert supervisor.get("/openapi.json").status == 200
        assert supervisor.shutdown() == WorkerExit.OK
        lines = supervisor.output().splitlines()
        assert lines[0] == "up" and lines[1] == "in the background" and lines[-1] == "down"
        assert "RuntimeError: as planned" in supervisor.output()


def test_a_fastapi_startup_that_raises_fails_with_its_traceback(site: Callable[[str], Path]) -> None:
    pytest.importorskip("fastapi")
    text = """
from contextlib import asynccontextmanager
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(app):
    raise ConnectionError("no database")
    yield

app = FastAPI(lifespan=lifespan)
"""
    with FakeSupervisor(site(text)) as supervisor:
        supervisor.expect(msg.Hello)
        supervisor.configure("shop")
        failed = supervisor.expect(msg.Failed)
        assert failed.reason == "lifespan startup failed: ConnectionError: no database"
        assert "shop.py" in failed.detail
        assert supervisor.wait() == WorkerExit.APP_FAILED
        assert supervisor.output().count("Traceback (most recent call last)") == 1
