"""A WSGI or native worker does not pay for what it does not use.

Start-up time is time for which an upgrade holds two sets of workers, and memory is paid per worker: asyncio
alone would double both.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each costs is in the comments where it is imported; importlib.metadata alone takes 26 ms.
DEAR = {
    "asyncio",
    "concurrent.futures",
    "email",
    "http",
    "importlib.metadata",
    "msgspec",
    "prometheus_client",
    "rich",
    "ssl",
    "urllib.parse",
    "uvloop",
}
# Loaded by ASGI workers only; everything else under worker/ may be loaded by any.
ASGI_ONLY = {
    "quiesce.worker.apps.asgi",
    "quiesce.worker.apps.asgi_cycle",
    "quiesce.worker.apps.lifespan",
    "quiesce.worker.loops.asyncio_loop",
    "quiesce.worker.loops.eager_tasks",
}


def modules_of(folder: str) -> list[str]:
    """Dotted names of the modules below ``folder``."""
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))
    names = ("quiesce." + ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return sorted(name for name in names if not name.endswith("__main__"))


def dear_modules_after(imports: list[str]) -> set[str]:
    """Import in a fresh interpreter; return which of DEAR that loaded."""
    # What the interpreter's own start-up loads (a .pth file of some tool) is not our doing.
    code = "import sys; before = set(sys.modules)\n"
    code += "".join(f"import {name}\n" for name in imports)
    code += "print('\\n'.join(set(sys.modules) - before))"
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return DEAR & set(run.stdout.split())


def culprits(names: list[str]) -> dict[str, set[str]]:
    """Which of the modules load which of DEAR; all in one interpreter unless that finds something."""
    if not dear_modules_after(names):
        return {}
    return {name: dear for name in names if (dear := dear_modules_after([name]))}


def test_no_module_that_a_wsgi_worker_may_load_imports_anything_dear() -> None:
    assert not culprits([name for name in modules_of("worker") if name not in ASGI_ONLY])


def test_shared_imports_nothing_dear() -> None:
    assert not culprits(modules_of("shared"))


TELLS_ITS_MODULES = """
import sys

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\\n".join(sorted(sys.modules)).encode()]
"""


@pytest.mark.slow
def test_a_real_wsgi_worker_has_loaded_nothing_dear(tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(TELLS_ITS_MODULES)
    place = tmp_path / "lean"
    place.mkdir(mode=0o700)
    listener = tmp_path / "http.sock"
    quiesce = str(Path(sys.executable).with_name("quiesce"))
    command = [
        "run",
        "tells:application",
        "--release",
        str(tmp_path),
        "--bind",
        f"unix:{listener}",
        "--workers",
        "1",
    ]
    server = subprocess.Popen(
        [quiesce, "--runtime-dir", str(place), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout
    try:
        assert server.stdout.readline().startswith("quiesce serves")  # it accepts
        loaded = ask(listener)
    finally:
        server.send_signal(signal.SIGINT)
        server.stdout.read()
        server.stdout.close()
        assert server.wait(30) == 0
    assert "quiesce.worker.daemon" in loaded
    assert DEAR & loaded == set()


def ask(path: Path) -> set[str]:
    """GET / over a unix socket; the words of the body."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: lean\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return set(body.decode().split())
