"""The fuzz target runs, for a moment; what it once found is in its corpus and is tried each time."""

from __future__ import annotations

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
    program = Path(fuzz_request.__file__)
    run = subprocess.run(
        [sys.executable, program, "--seed", "2", "--count", "2000"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr


def test_a_target_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_VISIBLE", bytes(range(0x21, 0x7F)))
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
