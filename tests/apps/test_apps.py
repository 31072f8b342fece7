"""The releases that the stories serve do what their `Behaviour` says, before any server is involved."""

from __future__ import annotations

import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from apps import Behaviour, Notes, build, link
from apps.releases import FLAVOURS


def imported(path: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    """Import the shop in a process of its own, as a worker would."""
    program = f"import sys; sys.path.insert(0, {str(path)!r}); import shop\n{then}"
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_can_be_imported(flavour: str, tmp_path: Path, notes: Notes) -> None:
    if flavour in ("flask", "fastapi"):
        pytest.importorskip(flavour)
    done = imported(build(tmp_path, "v1", notes, flavour).path, "assert callable(shop.app)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("on_import", "code", "said"),
    [
        ("exit", 7, "the shop has no configuration"),
        ("exit 0", 0, ""),
        ("raise", 1, "RuntimeError: the shelves are empty"),
        ("kill", -signal.SIGKILL, ""),
    ],
)
def test_each_bad_import(on_import: str, code: int, said: str, tmp_path: Path, notes: Notes) -> None:
    done = imported(
        build(tmp_path, "v1", notes, behaviour=Behaviour(on_import=on_import)).path, "raise SystemExit(99)"
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr


CALL = """
import io
said = []
def call(path, body=b"", nonce="7"):
    path, _, query = path.partition("?")
    environ = {"PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body), "HTTP_X_NONCE": nonce}
    parts = shop.app(environ, lambda status, headers: said.append((status[:3], dict(headers))))
    return b"".join(parts)
"""


def test_pages(tmp_path: Path, notes: Notes) -> None:
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(health=500))
    program = """
import zlib
body = call("/post", b"token-1")
assert body.startswith(b"v1 7 ") and body.endswith(b"stored token-1"), body
assert said[-1][1]["X-Checksum"] == f"{zlib.crc32(body):08x}"
assert call("/upload", b"abc").endswith(f"3 {zlib.crc32(b'abc'):08x}".encode())
assert len(call("/download?bytes=100000&framing=chunked").partition(b"\\n")[2]) == 100000
assert "Content-Length" not in said[-1][1]
call("/healthz", nonce="-")
assert said[-1][0] == "500"
"""
    done = imported(release.path, CALL + program)
    assert done.returncode == 0, done.stderr
    assert notes.tokens == ["token-1"]
    assert len(notes.lines("probes")) == 1
    assert zlib.crc32(b"") == 0


def test_a_death_is_noted_with_its_time(tmp_path: Path, notes: Notes) -> None:
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(dies_after_requests=2))
    done = imported(release.path, CALL + "for _ in range(5): call('/')")
    assert done.returncode == 9
    assert len(notes.deaths) == 1 and notes.deaths[0] > 0


def test_shadows(tmp_path: Path, notes: Notes) -> None:
    names = ("worker", "quiesce/")
    release = build(tmp_path, "v1", notes, behaviour=Behaviour(shadows=names))
    done = imported(release.path, CALL + "print(call('/modules').decode())")
    assert "worker True" in done.stdout and "quiesce True" in done.stdout


def test_a_link_is_swapped(tmp_path: Path) -> None:
    for name in ("v1", "v2", "v1"):
        (tmp_path / name).mkdir(exist_ok=True)
        link(tmp_path / "current", tmp_path / name)
        assert (tmp_path / "current").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1", "v2"]
