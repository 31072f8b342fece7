"""An ASGI request runs in a task of its own, with variables of its own, from its first step on; on both loops."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from quiesce.shared.scoreboard import SLOT_FIELDS, Field
from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.core.limits import Limits
from quiesce.worker.loops import asyncio_loop
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.loops.eager_tasks import starter
from wire.asgi_serving import CHUNKED, GET, POST, Message, Receive, Send, Serve, ask_all, say, whole_body
from wire.serving import PATIENCE_S, Served, read_reply

# -- the task ---------------------------------------------------------------------------------


def test_the_task_is_the_same_before_and_after_a_wait_and_another_for_each_request(serve: Serve) -> None:
    seen: list[asyncio.Task[Any] | None] = []  # holds them, so that no address is used twice

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        first = asyncio.current_task()
        assert first is not None and first in asyncio.all_tasks()
        seen.append(first)
        await asyncio.sleep(0)
        assert asyncio.current_task() is first
        await asyncio.sleep(0.001)
        assert asyncio.current_task() is first
        await say(send, "ok")

    assert [reply.body for reply in ask_all(serve(app), GET * 3, 3)] == [b"ok"] * 3
    assert len(set(seen)) == 3


def test_there_is_no_current_task_when_it_is_over(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await say(send, "ok")

    served = serve(app)
    assert served.ask(GET).body == b"ok"
    assert served.do(lambda: asyncio.current_task(served.loop.aio)) is None
    assert served.do(lambda: asyncio.all_tasks(served.loop.aio)) == set()


async def by_timeout(send: Send) -> None:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        await say(send, "late")


async def by_wait_for(send: Send) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    await say(send, "late")


async def by_task_group(send: Send) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            group.create_task(fail())
    except* LookupError:
        pass
    await say(send, "late")


async def by_task_group_that_fails_before_it_waits(send: Send) -> None:
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            raise LookupError
    await say(send, "late")


async def by_anyio_scope(send: Send) -> None:
    with anyio.move_on_after(0.01):
        await anyio.sleep_forever()
    await say(send, "late")


async def by_anyio_group(send: Send) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        group.cancel_scope.cancel()
    await say(send, "late")


async def by_anyio_thread(send: Send) -> None:
    await say(send, await anyio.to_thread.run_sync(lambda: "late"))


async def by_cancelling_itself(send: Send) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(PATIENCE_S)
    task.uncancel()
    await say(send, "late")


@pytest.mark.parametrize(
    "way",
    [
        by_timeout, by_wait_for, by_task_group, by_task_group_that_fails_before_it_waits, by_anyio_scope,
        by_anyio_group, by_anyio_thread, by_cancelling_itself,
    ],
)  # fmt: skip
def test_what_asks_for_the_task_at_once_works(serve: Serve, way: Callable[[Send], Awaitable[None]]) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await way(send)

    served = serve(app)
    for _ in range(2):
        assert served.ask(GET).body == b"late"


def test_a_handler_that_cancels_itself_and_returns_cuts_its_client_only(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        await say(send, "ok")

    served = serve(app)
    with served.connect() as sock:
        sock.sendall(GET.replace(b"/ ", b"/cancel "))
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert served.ask(GET).body == b"ok"


def test_a_task_factory_of_the_application_makes_the_tasks(serve: Serve) -> None:
    made = 0

    def factory(aio: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal made
        made += 1
        assert not options or "uvloop" in type(aio).__module__  # those of before Python 3.11 know none
        return asyncio.Task(coro, loop=aio, **options)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        seen.set(seen.get() + 1)
        await say(send, f"{made} {seen.get()}")

    served = serve(app)
    assert [served.ask(GET).body for _ in range(3)] == [b"0 1", b"1 1", b"2 1"]


# -- its variables ----------------------------------------------------------------------------

seen = contextvars.ContextVar[int]("seen", default=0)


@pytest.mark.parametrize("waits", [False, True])
def test_variables_do_not_reach_the_next_request(serve: Serve, waits: bool) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        before = seen.get()
        seen.set(before + 1)
        if waits:
            await asyncio.sleep(0)
        assert seen.get() == before + 1
        await say(send, before)

    served = serve(app)
    assert [reply.body for reply in ask_all(served, GET * 4, 4)] == [
        b"0"
    ] * 4  # one is begun where another ends
    assert [reply.body for reply in ask_all(served, (GET + POST) * 2, 4)] == [b"0"] * 4
    with served.connect() as sock:
        for _ in range(2):
            sock.sendall(GET)
            assert read_reply(sock).body == b"0"


def test_variables_that_were_set_on_import_are_there(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await say(send, seen.get())

    assert contextvars.copy_context().run(lambda: (seen.set(7), serve(app))[1]).ask(GET).body == b"7"


def test_what_the_engine_does_later_holds_no_variables_of_a_request(loop: AsyncioLoop) -> None:
    values: list[int] = []

    def in_a_request() -> None:
        seen.set(5)
        loop.call_at(loop.now() + 0.001, lambda: values.append(seen.get()))
        loop.call_soon_threadsafe(lambda: values.append(seen.get()))
        loop.call_at(loop.now() + 0.002, loop.stop)

    loop.aio.call_soon(in_a_request)
    loop.run()
    loop.close()
    assert values == [0, 0]


# -- where it waits ---------------------------------------------------------------------------

PLACES = ("before receive", "after receive", "before the head", "in the body", "behind the response")


@pytest.mark.parametrize("place", [*PLACES, "nowhere"])
@pytest.mark.parametrize("request_", [GET, POST, CHUNKED], ids=["get", "post", "chunked"])
def test_an_application_may_wait_anywhere(serve: Serve, place: str, request_: bytes) -> None:
    ends = threading.Semaphore(0)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async def here(name: str) -> None:
            if name == place:
                await asyncio.sleep(0)
                await asyncio.sleep(0.001)

        await here("before receive")
        body = await whole_body(receive)
        await here("after receive")
        await here("before the head")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await here("in the body")
        await send({"type": "http.response.body", "body": b"!"})
        assert (await receive())["type"] == "http.disconnect"
        await here("behind the response")
        ends.release()

    served = serve(app)
    wanted = (b"hello" if request_ is not GET else b"") + b"!"
    assert [reply.body for reply in ask_all(served, request_ * 3 + GET, 4)] == [wanted] * 3 + [b"!"]
    with served.connect() as sock:  # byte by byte, as far as packets are not joined on the way
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_:
            sock.sendall(bytes((byte,)))
        assert read_reply(sock).body == wanted
    for _ in range(5):
        assert ends.acquire(timeout=PATIENCE_S)
    served.until(lambda: served.daemon.app.running() == 0)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("where", "status"), [("before", 500), ("head", 500), ("body", 0), ("after", 200), ("nothing", 500)]
)
def test_what_an_application_raises(
    serve: Serve, waits: bool, where: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fine":
            await say(send, "fine")
            return
        if waits:
            await asyncio.sleep(0)
        if where == "nothing":
            return
        if where == "before":
            raise SystemExit(3)  # would end the worker, if it came as far as asyncio
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if where == "head":
            raise LookupError(where)
        await send({"type": "http.response.body", "body": b"half", "more_body": where == "body"})
        raise KeyboardInterrupt(where)

    served = serve(app)
    if status:
        assert served.ask(GET).status == status
    else:
        with pytest.raises((EOFError, ConnectionResetError)):
            served.ask(GET)
    assert served.ask(GET.replace(b"/ ", b"/fine ")).body == b"fine"
    served.do(lambda: None)
    served.until(lambda: served.daemon.app.running() == 0)
    assert capfd.readouterr().err.count("the asgi application raised") == 1


def test_a_client_that_leaves_is_told_wherever_the_application_waits(serve: Serve) -> None:
    """Also if it has not waited before, and if it waits in several tasks, one of which is cancelled."""
    told: list[str] = []
    done = threading.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begins", "more_body": True})
        waiting = [asyncio.ensure_future(receive()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        told.extend([(await task)["type"] for task in waiting[1:]])
        told.append((await receive())["type"])
        done.set()

    served = serve(app)
    with served.connect() as sock:
        sock.sendall(GET)
        assert b"begins" in sock.recv(65536)
    assert done.wait(PATIENCE_S)
    assert told == ["http.disconnect"] * 3


def test_who_ceases_to_send_and_then_does_not_read_is_told_of_twice(loop: AsyncioLoop) -> None:
    """The first time the answer can still be sent, and somebody may wait for that."""
    done = threading.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 30_000_000, "more_body": True})
        done.set()

    served = Served(AsgiApp(app, loop), loop=loop, limits=Limits(send_timeout=0.1))
    try:
        sock = served.connect(receive_buffer=4096)
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        assert done.wait(PATIENCE_S)  # it stays: we cut it
    finally:
        served.close()


@pytest.mark.parametrize("end", ["whole", "raises", "returns", "goes on"])
def test_a_task_that_is_left_behind_hears_of_the_end(serve: Serve, end: str) -> None:
    told: list[str] = []
    done = threading.Event()

    async def listen(receive: Receive) -> None:
        told.append((await receive())["type"])
        done.set()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        listener = asyncio.ensure_future(listen(receive))
        await asyncio.sleep(0)
        if end == "raises":
            raise LookupError
        if end != "returns":
            await say(send, "ok")
        if end == "goes on":
            await listener

    with serve(app).connect() as sock:  # which stays
        sock.sendall(GET)
        assert read_reply(sock).status == (200 if end in ("whole", "goes on") else 500)
        assert done.wait(PATIENCE_S)
    assert told == ["http.disconnect"]


@pytest.mark.parametrize("waits", [False, True])
def test_what_was_needed_for_a_request_is_freed_with_it(serve: Serve, waits: bool) -> None:
    """Without the collector."""
    requests: list[weakref.ref[Any]] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        requests.append(weakref.ref(receive.__self__))  # type: ignore[attr-defined]
        await whole_body(receive)
        if waits:
            await asyncio.sleep(0)
        await say(send, "ok")

    served = serve(app)
    gc.disable()
    try:
        assert served.ask(GET).body == served.ask(POST).body == b"ok"
        served.do(lambda: None)
        served.do(lambda: None)
        assert [request() for request in requests] == [None, None]
    finally:
        gc.enable()


def test_two_tasks_may_wait_for_a_client_that_does_not_read(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        block = {"type": "http.response.body", "body": b"x" * 4_000_000, "more_body": True}
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(send(block))  # type: ignore[arg-type]
        await send({"type": "http.response.body"})

    assert len(serve(app).ask(GET).body) == 12_000_000


def test_a_body_that_is_no_bytes_is_an_error_that_the_application_can_mend(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(TypeError):
            await send({"type": "http.response.body", "body": "text"})
        with pytest.raises(RuntimeError):
            await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": memoryview(b"bytes")})

    assert serve(app).ask(GET).body == b"bytes"


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_headers_of_any_kind(serve: Serve, kind: Callable[[Any], Any]) -> None:
    """The second time they may be remembered."""
    name, value = b"x-a", b"1"
    pairs: dict[str, list[Any]] = {
        "/tuples": [(name, value)],
        "/lists": [[name, value]],
        "/mutable": [(bytearray(name), bytearray(value))],
        "/text": [("x-a", "1")],
        "/injected": [(name, b"1\r\nx-b: 2")],
    }

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await say(send, "ok", headers=kind(pairs[scope["path"]]))

    served = serve(app)
    for path in list(pairs) * 2:
        reply = served.ask(GET.replace(b"/", path.encode(), 1))
        expected = (500, None) if path in ("/text", "/injected") else (200, "1")
        assert (reply.status, reply.get("x-a")) == expected and reply.get("x-b") is None


def test_the_scope_is_the_applications_own(serve: Serve) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        shown = repr(scope)
        for value in list(scope.values()):
            if isinstance(value, dict):
                value.clear()
            elif isinstance(value, list):
                value.append((b"x-added", b"1"))
        scope.clear()
        await say(send, shown)

    replies = ask_all(serve(app), GET * 2, 2)
    assert replies[0].body == replies[1].body and b"pathsend" in replies[0].body


class Board:
    """A slot of the scoreboard, as others see it: it is looked at without a turn of the loop."""

    def __init__(self) -> None:
        self.slot = memoryview(bytearray(8 * SLOT_FIELDS)).cast("Q")

    def wait(self, **figures: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while (seen := {name: self.slot[Field[name]] for name in figures}) != figures:
            assert time.monotonic() < end, seen
            time.sleep(0.001)


@pytest.mark.parametrize("paths", ["/ /", "/waits /waits", "/waits /", "/ /waits"])
def test_what_a_task_answers_is_counted_at_once(loop: AsyncioLoop, paths: str) -> None:
    board = Board()
    goes_on = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/waits":
            await asyncio.sleep(0.001)
        if scope["path"] == "/error":
            raise LookupError
        await say(send, "ok")
        if scope["path"] == "/waits":
            await goes_on.wait()

    # Without a heartbeat and a timer, after which the figures would be right anyway.
    limits = Limits(header_timeout=100.0, idle_timeout=100.0)
    served = Served(AsgiApp(app, loop), loop=loop, slot=board.slot, heartbeat=False, limits=limits)
    try:
        with served.connect() as sock:
            sock.sendall(b"".join(GET.replace(b"/", path.encode(), 1) for path in paths.split()))
            assert read_reply(sock, before=read_reply(sock).rest).status == 200
            board.wait(REQUESTS=2, RESP_2XX=2, CONN_BUSY=0, IN_REQUEST_SINCE_NS=0)
            sock.sendall(GET.replace(b"/ ", b"/error "))
            assert read_reply(sock).status == 500
            board.wait(REQUESTS=3, RESP_5XX=1, IN_REQUEST_SINCE_NS=0)
            sock.shutdown(socket.SHUT_WR)
            board.wait(CONN_OPEN=0, CONN_BUSY=0)
        served.do(goes_on.set)
    finally:
        served.close()


@pytest.mark.parametrize("long_ns", [0, 1 << 62])
def test_a_turn_that_takes_long_lets_others_have_theirs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, long_ns: int
) -> None:
    """However many requests a client sends at once."""
    monkeypatch.setattr(asyncio_loop, "_LONG_NS", long_ns)
    steps: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        steps.append("request")
        asyncio.get_running_loop().call_soon(steps.append, "other")
        await say(send, (await whole_body(receive)).decode())

    replies = ask_all(serve(app), (GET + POST) * 3, 6)
    assert [reply.body for reply in replies] == [b"", b"hello"] * 3
    wanted = ["request"] * 6 if long_ns else ["request", "other"] * 6
    assert steps[: len(wanted) - 1] == wanted[:-1]  # the last one may be about to come


# -- how tasks are begun ------------------------------------------------------------------------


def in_the_loop(loop: AsyncioLoop, what: Callable[[], None]) -> None:
    """Run it in a turn, then let what it began come to its end."""

    def call() -> None:
        try:
            what()
        finally:
            loop.aio.call_later(0.01, loop.stop)

    loop.aio.call_soon(call)
    loop.run()
    loop.close()


def test_a_task_that_does_not_wait_is_done_at_once(loop: AsyncioLoop) -> None:
    steps: list[str] = []

    async def work(name: str, waits: bool) -> None:
        steps.append(name)
        if waits:
            await asyncio.sleep(0)
            steps.append(f"{name} again")

    def begin() -> None:
        start = starter(loop.aio)
        assert start(work("a", False)).done()
        assert not start(work("b", True)).done()
        steps.append("c")

    in_the_loop(loop, begin)
    assert steps == ["a", "b", "c", "b again"]


def test_a_task_may_be_begun_within_another(loop: AsyncioLoop) -> None:
    """At once where Python can do that, else in the next turn."""
    steps: list[str] = []
    start = starter(loop.aio)

    async def inner() -> None:
        task = asyncio.current_task()
        assert seen.get() == 0
        steps.append("inner")
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        steps.append("inner again")

    async def outer() -> None:
        task = asyncio.current_task()
        seen.set(9)
        inside = start(inner())
        assert asyncio.current_task() is task
        await inside
        steps.append("outer")

    in_the_loop(loop, lambda: start(outer()) and None)
    assert steps == ["inner", "inner again", "outer"]


def while_a_task_is_made(loop: AsyncioLoop, what: Callable[[], object]) -> None:
    """As a finaliser does it: the collector comes when it likes."""
    debug = loop.aio.get_debug

    def get_debug() -> bool:  # which each new task asks
        del loop.aio.__dict__["get_debug"]
        what()
        return debug()

    loop.aio.__dict__["get_debug"] = get_debug


def test_who_calls_soon_while_a_task_is_made_is_called_in_a_turn(loop: AsyncioLoop) -> None:
    steps: list[str] = []
    call_soon = loop.aio.call_soon

    def others() -> None:
        loop.aio.call_soon(steps.append, "called").cancel()
        loop.aio.call_soon(steps.append, "called soon")
        loop.aio.call_soon(lambda: steps.append("and without an argument"))

    async def work() -> None:
        steps.append("work")

    def begin() -> None:
        start = starter(loop.aio)
        while_a_task_is_made(loop, others)
        assert start(work()).done()
        assert steps == ["work"]
        assert loop.aio.call_soon == call_soon

    in_the_loop(loop, begin)
    assert steps == ["work", "called soon", "and without an argument"]


def test_who_makes_a_task_while_one_is_made(loop: AsyncioLoop) -> None:
    steps: list[tuple[str, int]] = []
    tasks: list[asyncio.Task[None]] = []

    async def work(name: str) -> None:
        steps.append((name, seen.get()))
        seen.set(1)
        await asyncio.sleep(0)
        steps.append((name, seen.get()))

    def begin() -> None:
        start = starter(loop.aio)
        while_a_task_is_made(loop, lambda: tasks.append(loop.aio.create_task(work("other"))))
        tasks.append(start(work("ours")))

    in_the_loop(loop, begin)
    assert sorted(steps) == [("other", 0), ("other", 1), ("ours", 0), ("ours", 1)]
    assert all(task.done() for task in tasks)
