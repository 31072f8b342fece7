"""The fuzz target runs, for a moment; what it once found is in its corpus and is tried each time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import fuzz_request
from quiesce.worker.core import http1
from quiesce.worker.core.body_framing import LengthDecoder


def test_a_few_mutations() -> None:
    fuzz_request.run(seed=1, count=300)


@pytest.mark.slow
def test_more_of_them_as_a_program() -> None:
    run = _program("--seed", "2", "--count", "2000")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_coverage_leads_further(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for x86-64 and Python 3.11 to 3.13 only")
    corpus = tmp_path / "corpus"  # it writes what is new into it
    shutil.copytree(fuzz_request.CORPUS, corpus)
    run = _program(str(corpus), "-runs=1500", "-max_len=2000", f"-artifact_prefix={tmp_path}/")
    assert run.returncode == 0, run.stderr[-4000:]
    assert "Done 1500 runs" in run.stderr


def _program(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(fuzz_request.__file__)
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=115)


def test_a_target_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_TARGET", bytes(i if 0x21 <= i < 0x7F else i ^ 0x80 for i in range(256)))
    with pytest.raises(AssertionError):
        fuzz_request.run(seed=1, count=3000)


def test_a_request_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = LengthDecoder.feed

    def lossy(self: LengthDecoder, data: bytes) -> bytes:
        payload = feed(self, data)
        self.rest = b""
        return payload

    monkeypatch.setattr(LengthDecoder, "feed", lossy)
    with pytest.raises(AssertionError, match="the cut decides"):
        fuzz_request.run(seed=1, count=3000)
