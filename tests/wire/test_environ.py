"""An environ says what its request said, whatever was said before."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.worker.apps import wsgi
from quiesce.worker.apps.wsgi import FileWrapper, WsgiApp
from quiesce.worker.core.request import Address, Request
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.base import READ
from wire.serving import bench, read_reply, serving

Environ = dict[str, Any]
LINES = ("GET / HTTP/1.1", "GET /a%20b/caf%C3%A9?q=%20&r HTTP/1.1", "POST / HTTP/1.1", "GET / HTTP/1.0")
FIELDS = (
    "Host: other.test:81", "Host: shop.test", "Accept: */*", "Accept: text/x", "accept: text/y", "Cookie: a=1",
    "Cookie: b=2", "Authorization: Basic eA==", "X-Forwarded-For: real", "X_Forwarded_For: spoofed", "X: \xe9",
    "Empty:", "Content-Type: text/x", "Content_Type: text/odd", "Wsgi.input: x", "Remote-Addr: 9.9.9.9",
)  # fmt: skip
Ends = tuple[Address, Address, str]
ENDS: tuple[Ends, ...] = (
    (("127.0.0.1", 5), ("127.0.0.2", 80), "http"), (("127.0.0.1", 6), ("127.0.0.2", 80), "https"),
    (("127.0.0.1", 6), ("127.0.0.3", 80), "http"), (("::1", 7), ("::1", 81), "http"), (None, None, "http"),
    (None, None, "https"),
)  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> str:
    fields = draw(st.lists(st.sampled_from(FIELDS[2:]), max_size=5))
    fields.insert(draw(st.sampled_from((0, len(fields)))), draw(st.sampled_from(FIELDS[:2])))
    return "\r\n".join((draw(st.sampled_from(LINES)), *fields, "", ""))


def wanted(head: str, peer: Address, local: Address, scheme: str) -> Environ:
    """PEP 3333, and what is in our manual beside it, from the text of a head."""
    line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = line.split(" ")
    path, _, query = target.partition("?")
    path = path.replace("%20", " ").replace("%C3%A9", "\xc3\xa9")
    environ: Environ = {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, "RAW_URI": target,
        "REQUEST_URI": target, "SERVER_PROTOCOL": version, "SERVER_SOFTWARE": "quiesce", "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme, "wsgi.errors": sys.stderr, "wsgi.multithread": False, "wsgi.multiprocess": True,
        "wsgi.run_once": False, "wsgi.input_terminated": True, "wsgi.file_wrapper": FileWrapper,
    }  # fmt: skip
    for field in fields:
        name, _, value = field.partition(":")
        if "_" in name:
            continue
        key = name.upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else "HTTP_" + key
        glue = "; " if key == "HTTP_COOKIE" else ", "
        environ[key] = environ[key] + glue + value.strip() if key in environ else value.strip()
    if local is not None and peer is not None:
        environ["SERVER_NAME"], environ["SERVER_PORT"] = local[0], str(local[1])
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
    else:
        environ["SERVER_NAME"], _, port = environ["HTTP_HOST"].partition(":")
        environ["SERVER_PORT"] = port or ("443" if scheme == "https" else "80")
        environ["REMOTE_ADDR"] = ""
    return environ


class Listening:
    """An application that remembers what it was told, and then spoils it."""

    def __init__(self) -> None:
        self.heard: list[Environ] = []
        self.inputs: list[Any] = []

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert type(environ) is dict
        self.inputs.append(environ.pop("wsgi.input"))
        assert self.inputs[-1].read() == b""
        self.inputs[-1].close()
        self.heard.append(dict(environ))
        environ.update(dict.fromkeys(environ, "spoilt"), HTTP_X="spoilt", more="spoilt")
        start_response("204 No Content", [])
        return []


def say(daemon: Daemon, head: str, peer: Address, local: Address, scheme: str) -> None:
    """By a connection of its own."""
    client, server = socket.socketpair()
    with client:
        connection = daemon.add_connection(server, peer=peer, local=local, scheme=scheme)
        client.sendall(head.encode("latin-1"))
        connection.ready(READ)
        assert client.recv(100).startswith(b"HTTP/1.1 204 ")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(heads(), st.sampled_from(ENDS)), min_size=1, max_size=5), st.sampled_from([1, 2, 250])
)
def test_what_was_said_before_changes_nothing(several: list[tuple[str, Ends]], most: int) -> None:
    application = Listening()
    with pytest.MonkeyPatch.context() as patch, bench(WsgiApp(application)) as one:
        patch.setattr(wsgi, "_MOST_ENVIRONS", most)
        for head, ends in several * 4:
            say(one.daemon, head, *ends)
    assert application.heard == [wanted(head, *ends) for head, ends in several * 4]
    assert len({id(file) for file in application.inputs}) == len(application.inputs)


def test_what_came_before_is_used() -> None:
    """Else the above would be a test of nothing."""
    made: list[str] = []

    class Counting(WsgiApp):
        def _made(self, request: Request, base: Environ) -> Environ:
            made.append(request.method)
            return WsgiApp._made(self, request, base)

    with bench(Counting(Listening())) as one:
        for _ in range(10):
            say(one.daemon, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", *ENDS[0])
        assert len(made) < 5


def test_environs_are_bounded_and_keep_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi, "_MOST_ENVIRONS", 20)
    monkeypatch.setattr(wsgi, "_MOST_KEYS", 50)
    app = WsgiApp(Listening())
    with bench(app) as one:
        for number in range(150):
            for secret in ("", f"Cookie: c{number}\r\nAuthorization: Basic {number}\r\n"):
                head = f"GET /{number} HTTP/1.1\r\nHost: a\r\nX: {number}\r\n{secret}\r\n"
                for _ in range(3):
                    say(one.daemon, head, *ENDS[0])
        heads = one.daemon.parser.memo._heads.values()
        kept = [known[2][3]["environ"][3] for known in heads if known[2][3]]
        assert 1 < len(kept) <= 20 and len(app._places) <= 20
        assert not any("COOKIE" in key or "AUTHORIZATION" in key for environ in kept for key in environ)
        assert 1 < len(app._variables) <= 50
        assert not any(name in (b"cookie", b"authorization") for name, _ in app._variables)
        say(one.daemon, f"GET / HTTP/1.1\r\nHost: a\r\nX: {'y' * 300}\r\n\r\n", *ENDS[0])
        assert max(len(value) for _, value in app._variables) < 300


def test_threads_have_environs_of_their_own() -> None:
    heard: list[Environ] = []
    both = threading.Barrier(3)

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["mine"] = threading.get_ident()
        heard.append(environ)
        both.wait(20)
        start_response("204 No Content", [])
        return []

    with serving(WsgiApp(application), threads=3) as served:
        for _ in range(4):
            socks = [served.connect() for _ in range(3)]
            for sock in socks:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            for sock in socks:
                assert read_reply(sock).status == 204
    assert len({id(environ) for environ in heard}) == len(heard) == 12
    for at in range(0, 12, 3):
        assert len({environ["mine"] for environ in heard[at : at + 3]}) == 3
