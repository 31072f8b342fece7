"""A release whose modules have the names of ours: it gets its own, and we go on with ours."""

from pathlib import Path

import pytest

from quiesce.shared import messages as msg
from quiesce.shared.exitcodes import WorkerExit
from unit.worker.fake_supervisor import FakeSupervisor, ask

# Ours, the library's that we import early, late or only by interface, and those that a library of ours imports.
MODULES = (
    "json", "socket", "worker", "supervisor", "tempfile", "selectors", "select", "signal", "enum", "typing",
    "threading", "queue", "mmap", "array", "traceback", "asyncio", "random", "shutil", "logging", "httptools",
    "setproctitle", "contextlib", "struct", "heapq", "inspect", "email", "uvloop", "concurrent",
)  # fmt: skip
PACKAGES = ("quiesce", "shared", "http")

CHECK = """
import sys
from importlib import import_module

HERE = __file__.rpartition("/")[0]
BASELINE = set({baseline!r})

def check():
    wrong = []
    for name in {names!r}:
        if name in BASELINE:
            continue
        module = import_module(name)
        if getattr(module, "OWNER", "") != "release":
            wrong.append(name + " " + repr(module))
    import quiesce.settings, shared.things
    return ", ".join(wrong) or "all mine " + quiesce.settings.OWNER

assert check() == "all mine release"
"""

WSGI = """
def app(environ, start_response):
    import os
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [check().encode(), b" %d" % len(body)]
"""
NATIVE = """
class Answer: pass
def app(request):
    raise LookupError(check())
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": check().encode() + b" %d" % size})
"""


def baseline() -> list[str]:
    """What this interpreter has imported when a plain script begins: those names are not the release's there either."""
    import subprocess
    import sys

    out = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True
    )
    return out.stdout.decode().split()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text('OWNER = "release"\n')
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('OWNER = "release"\n')
        (tmp_path / name / "settings.py").write_text('OWNER = "release"\n')
        (tmp_path / name / "things.py").write_text('OWNER = "release"\n')
    check = CHECK.format(names=(*MODULES, *PACKAGES), baseline=baseline())
    for name, text in (("wsgi", WSGI), ("native", NATIVE), ("asgi", ASGI)):
        (tmp_path / f"my_{name}.py").write_text(check + text)
    return tmp_path


@pytest.mark.parametrize("wanted", ["auto", "wsgi"])
def test_wsgi_sees_its_own_and_an_upload_is_still_spooled(release: Path, wanted: str) -> None:
    with FakeSupervisor(release) as supervisor:
        supervisor.start("my_wsgi:app", interface=wanted, limits={"body_memory": 1000})
        supervisor.accept()
        with supervisor.connect() as client:
            answer = ask(client, "/", method="POST", body=b"x" * 300_000)
            assert answer.body == b"all mine release 300000"
        supervisor.expect(msg.Quiesced, re=supervisor.send(msg.Quiesce()))
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output() == ""


def test_a_file_system_without_tmpfile_needs_our_tempfile(release: Path) -> None:
    with FakeSupervisor(release, env={"TMPDIR": "/proc"}) as supervisor:
        supervisor.start("my_wsgi:app", limits={"body_memory": 1000})
        supervisor.accept()
        with supervisor.connect() as client:
            answer = ask(client, "/", method="POST", body=b"x" * 300_000)
            assert answer.body == b"all mine release 300000"


def test_native_sees_its_own_and_its_traceback_is_still_shown(release: Path) -> None:
    with FakeSupervisor(release) as supervisor:
        supervisor.start("my_native:app")
        assert supervisor.probe().status == 500
        assert "LookupError: all mine release" in supervisor.output()
        assert supervisor.shutdown() == WorkerExit.OK


@pytest.mark.parametrize("wanted", ["auto", "asgi"])
def test_asgi_sees_its_own_and_we_run_on_the_library_s_asyncio(release: Path, wanted: str) -> None:
    with FakeSupervisor(release) as supervisor:
        assert supervisor.start("my_asgi:app", interface=wanted).interface == "asgi"
        supervisor.accept()
        with supervisor.connect() as client:
            answer = ask(client, "/", method="POST", body=b"x" * 300_000)
            assert answer.body == b"all mine release 300000"
        assert supervisor.shutdown() == WorkerExit.OK
        assert supervisor.output() == ""


def test_a_bad_packet_is_survived_without_our_json_in_sys_modules(release: Path) -> None:
    import os
    import socket

    with FakeSupervisor(release) as supervisor:
        supervisor.start("my_wsgi:app")
        supervisor.accept()
        with socket.socket(fileno=os.dup(supervisor.channel.fileno())) as sock:
            sock.send(b"{garbage")
        supervisor.expect(msg.Hello, re=supervisor.send(msg.Identify()))
        assert supervisor.get().status == 200


def test_pythonpath_shadows_as_in_a_plain_start(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "json.py").write_text('OWNER = "release"\n')
    (tmp_path / "shop.py").write_text(
        "import json\nassert json.OWNER == 'release'\ndef app(e, s):\n    s('200 OK', []); return []\n"
    )
    with FakeSupervisor(tmp_path, env={"PYTHONPATH": str(tmp_path / "src")}) as supervisor:
        supervisor.start("shop")
        assert supervisor.probe().status == 200


def test_a_quiesce_folder_without_init_is_found_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "quiesce").mkdir()
    (tmp_path / "quiesce" / "shop.py").write_text(
        "from quiesce import Response\nfrom quiesce.other import OWNER\ndef app(request):\n    return Response(OWNER)\n"
    )
    (tmp_path / "quiesce" / "other.py").write_text("OWNER = 'release'\n")
    (tmp_path / "json").mkdir()  # a regular package wins over a namespace, wherever it is
    with FakeSupervisor(tmp_path) as supervisor:
        supervisor.start("quiesce.shop:app")
        assert supervisor.probe().body == b"release"


def test_a_release_without_such_names_loads_nothing_for_it(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import sys\n"
        "dear = {'asyncio', 'ssl', 'msgspec', 'email', 'http', 'concurrent', 'urllib.parse', 'tempfile',\n"
        "        'inspect', 'logging', 'importlib.metadata', 'dataclasses', 'setproctitle'}\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', []); return [LOADED.encode()]\n"
        "LOADED = ' '.join(sorted(dear & set(sys.modules)))\n"
    )
    with FakeSupervisor(tmp_path) as supervisor:
        supervisor.start("shop")
        assert supervisor.probe().body == b""
