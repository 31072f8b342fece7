"""What Starlette, FastAPI and Django do with an ASGI server, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from wire.asgi_serving import GET, POST, Message, Receive, Send, Serve, ask_all
from wire.serving import PATIENCE_S

starlette = pytest.importorskip("starlette")

from starlette.applications import Starlette  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

user = contextvars.ContextVar[str]("user", default="nobody")


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode()


def app_with(*routes: Route, **options: Any) -> Any:
    return Starlette(routes=list(routes), **options)


def test_middleware_with_task_groups_and_variables(serve: Serve) -> None:
    async def who(request: Request) -> Response:
        before = user.get()
        user.set(request.query_params["name"])
        await asyncio.sleep(0)
        return PlainTextResponse(f"{before} {user.get()} {len(await request.body())}")

    async def sync(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-seen"] = "yes"
        return response

    app = app_with(
        Route("/who", who, methods=["GET", "POST"]),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=sync)] * 2,
    )
    served = serve(app)
    replies = ask_all(
        served, get("/who?name=a") + POST.replace(b" / ", b" /who?name=b ") + get("/who?name=c"), 3
    )
    assert [reply.body for reply in replies] == [b"nobody a 0", b"nobody b 5", b"nobody c 0"]
    assert all(reply.get("x-seen") == "yes" for reply in replies)


def test_a_stream_ends_when_its_client_leaves(serve: Serve) -> None:
    ended = threading.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part\n"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    served = serve(app_with(Route("/", stream)))
    with served.connect() as sock:
        sock.sendall(GET)
        assert sock.recv(65536)
    assert ended.wait(PATIENCE_S)
    served.until(lambda: served.daemon.app.running() == 0)


def test_sync_parts_and_threads(serve: Serve) -> None:
    def blocks() -> Iterator[bytes]:
        for number in range(20):
            yield b"%d," % number

    def in_a_thread(request: Request) -> Response:
        assert threading.current_thread().name != "serving"
        return StreamingResponse(blocks())

    served = serve(app_with(Route("/", in_a_thread)))
    assert [reply.body for reply in ask_all(served, GET * 2, 2)] == [b"".join(blocks())] * 2


def test_background_work_runs_after_the_response_and_is_counted(serve: Serve) -> None:
    may_end, ended = asyncio.Event(), threading.Event()

    async def work() -> None:
        await may_end.wait()
        ended.set()

    async def begin(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(work))

    served = serve(app_with(Route("/", begin)))
    assert served.ask(GET).body == b"ok"
    assert served.do(served.daemon.app.running) == 1
    served.do(may_end.set)
    assert ended.wait(PATIENCE_S)
    served.until(lambda: served.daemon.app.running() == 0)


def test_files_are_sent_by_the_kernel(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "empty").write_bytes(b"")
    kinds: list[str] = []

    async def file(request: Request) -> Response:
        return FileResponse(tmp_path / request.path_params["name"])

    inner = app_with(Route("/{name}", file))

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            kinds.append(message["type"])
            await send(message)

        await inner(scope, receive, watched)

    served = serve(app)
    replies = ask_all(served, get("/file") + get("/empty") + get("/file"), 3)
    assert [reply.body for reply in replies] == [
        (tmp_path / "file").read_bytes(),
        b"",
        (tmp_path / "file").read_bytes(),
    ]
    assert replies[0].get("content-length") == str(1 << 21) and replies[0].get("transfer-encoding") is None
    assert kinds == ["http.response.start", "http.response.pathsend"] * 3
    part = served.ask(get("/file", "Range: bytes=100-355\r\n"))  # that it has to read itself
    assert part.status == 206 and part.body == bytes(range(100, 256)) + bytes(range(100))
    head = served.ask(get("/file").replace(b"GET", b"HEAD"), head_only=True)
    assert head.get("content-length") == str(1 << 21)


async def _pathsend(send: Send, path: Path, **start: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [], **start})
    await send({"type": "http.response.pathsend", "path": str(path)})


def test_a_file_without_a_framework(serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert scope["extensions"] == {"http.response.pathsend": {}}
        if scope["path"] == "/early":
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})
        length = scope["query_string"]
        await _pathsend(
            send, tmp_path / scope["path"][1:], headers=[(b"content-length", length)] if length else []
        )
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        if length != b"40":
            with pytest.raises(RuntimeError, match="complete"):
                await send({"type": "http.response.body"})

    served = serve(app)
    assert served.ask(get("/file")).body == b"0123456789"
    reply = served.ask(get("/file").replace(b"GET", b"HEAD"), head_only=True)
    assert reply.get("content-length") == "10" and not reply.rest
    for path in ("/missing", "/", "/early"):
        assert served.ask(get(path)).status == 500
    assert served.ask(get("/file?4")).body == b"0123"  # no more than was said
    with pytest.raises((EOFError, ConnectionResetError)):
        served.ask(get("/file?40"))
    served.until(lambda: served.daemon.app.running() == 0)
    said = capfd.readouterr().err
    assert (
        "FileNotFoundError" in said
        and "is not a regular file" in said
        and "before 'http.response.start'" in said
    )


def test_an_error_in_a_framework_is_its_500_and_said_once(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    async def error(request: Request) -> Response:
        raise LookupError("as planned")

    served = serve(app_with(Route("/", error)))
    assert served.ask(GET).status == 500
    served.do(lambda: None)  # the traceback comes after the answer
    assert capfd.readouterr().err.count("LookupError: as planned") == 1


def test_fastapi_with_dependencies(serve: Serve) -> None:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    closed = threading.Semaphore(0)

    async def database() -> AsyncIterator[str]:
        async with asyncio.timeout(PATIENCE_S):
            yield "open"
        closed.release()

    @app.post("/")
    async def post(body: dict[str, int], db: str = fastapi.Depends(database)) -> Any:
        return {"sum": sum(body.values()), "db": db}

    @app.get("/")
    def in_a_thread(q: int = 1) -> Any:
        return {"q": q}

    served = serve(app)
    body = b'{"a": 1, "b": 41}'
    post_ = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    replies = ask_all(served, post_ % (len(body), body) + get("/?q=5") + post_ % (len(body), body), 3)
    assert [json.loads(reply.body) for reply in replies] == [
        {"sum": 42, "db": "open"},
        {"q": 5},
        {"sum": 42, "db": "open"},
    ]
    for _ in range(2):
        assert closed.acquire(timeout=PATIENCE_S)


def test_django_with_sync_and_async_views(serve: Serve) -> None:
    django = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["a"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[], DEBUG=False
        )
        django.setup()
    from django.core.handlers.asgi import ASGIHandler

    served = serve(ASGIHandler())
    replies = ask_all(
        served, get("/sync") + get("/async") + POST.replace(b" / ", b" /sync ") + get("/none"), 4
    )
    assert [(reply.status, reply.body) for reply in replies[:3]] == [(200, b"0"), (200, b"0"), (200, b"5")]
    assert replies[3].status == 404


def _urls() -> list[Any]:
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def sync(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(len(request.body)))

    async def later(request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(str(len(request.body)))

    return [path("sync", sync), path("async", later)]


class _Lazy(list[Any]):
    """Django looks for them when it is set up, and is not imported before."""

    def __iter__(self) -> Iterator[Any]:
        return iter(_urls())


urlpatterns = _Lazy()


def test_json_is_the_usual_answer(serve: Serve) -> None:
    async def show(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "query": dict(request.query_params)})

    served = serve(app_with(Route("/a/b", show)))
    replies = ask_all(served, get("/a/b?x=1") + get("/a/b?x=2") + get("/a/%62?x=3"), 3)
    assert [json.loads(reply.body)["query"] for reply in replies] == [{"x": "1"}, {"x": "2"}, {"x": "3"}]
