"""The history on real disks: full, read-only, torn, damaged, shared."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quiesce.supervisor.core.releases import Outcome, Release, next_id
from quiesce.supervisor.history import MAX_READ_BYTES, SCHEMA, History


def release(number: int, folder: str = "") -> Release:
    path = f"/srv/{folder or f'v{number}'}"
    return Release(f"r{number}", folder or f"v{number}", path, "/usr/bin/python3", "shop:app", path)


def change(number: int, outcome: str = "done", folder: str = "", at: float = 0.0) -> dict[str, Any]:
    """What the supervisor writes down of one rollout."""
    about = {key: value for key, value in release(number, folder).to_json().items() if key != "id"}
    return {
        "at": at or 1000.0 + number,
        "command": "upgrade",
        "release": f"r{number}",
        **about,
        "from": None,
        "outcome": outcome,
        "duration_s": 1.5,
        "reason": "",
    }


def ids(history: History) -> list[str]:
    return [entry["release"] for entry in history.entries()]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path), 5)


# -- changes ------------------------------------------------------------------------------------


def test_nothing_is_known_at_first(history: History) -> None:
    assert history.entries() == [] and history.outcomes() == [] and history.used_ids() == []
    assert history.load_last_good() == (None, "")


def test_what_is_appended_survives(history: History, tmp_path: Path) -> None:
    assert history.append(change(1)) == ""
    assert history.append(change(2, "rolled_back")) == ""
    again = History(str(tmp_path), 5)
    assert again.entries() == [{"v": SCHEMA, **change(1)}, {"v": SCHEMA, **change(2, "rolled_back")}]
    assert again.entries(limit=1)[0]["release"] == "r2"
    assert again.outcomes() == [Outcome(release(1), "done"), Outcome(release(2), "rolled_back")]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["v"] for line in lines] == [1, 1]


def test_the_file_is_not_for_everybody(history: History, tmp_path: Path) -> None:
    history.append(change(1))
    history.save_last_good(release(1))
    for name in ("history.jsonl", "last_good.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o137 == 0


def test_whatever_a_reason_says_it_is_one_line(history: History, tmp_path: Path) -> None:
    reason = 'two\nlines\u2028and \x00 "quotes" \ud800'
    assert history.append({**change(1), "reason": reason}) == ""
    assert history.entries()[0]["reason"] == reason
    assert (tmp_path / "history.jsonl").read_bytes().count(b"\n") == 1


def test_a_line_torn_by_a_crash_is_skipped_and_does_not_spoil_the_next(
    history: History, tmp_path: Path
) -> None:
    history.append(change(1))
    history.append(change(2))
    file = tmp_path / "history.jsonl"
    for cut in range(1, len(json.dumps(change(2)))):
        data = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(data[0] + data[1][:-cut])
        after = History(str(tmp_path), 5)
        known = ["r1", "r2"] if cut == 1 else ["r1"]  # only the line's end was lost
        assert ids(after) == known
        assert after.append(change(3)) == ""
        assert ids(after) == [*known, "r3"]
        file.write_bytes(b"".join(data))


@pytest.mark.parametrize(
    "garbage", [b"", b"{}x", b"[1]", b"\xff\xfe\0", b"[" * 100_000, b'{"release": 7}', b"null", b"9" * 10_000]
)
def test_garbage_between_is_skipped(garbage: bytes, history: History, tmp_path: Path) -> None:
    history.append(change(1))
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(garbage + b"\n")
    history.append(change(2))
    assert [outcome.release.id for outcome in history.outcomes()] == ["r1", "r2"]
    assert next_id(history.used_ids()) == "r3"


def test_a_later_version_may_say_more(history: History, tmp_path: Path) -> None:
    line = json.dumps({**change(1), "v": SCHEMA + 1, "canary": {"percent": 5}})
    (tmp_path / "history.jsonl").write_text(line + "\n")
    assert history.outcomes() == [Outcome(release(1), "done")]


def test_a_file_that_grew_without_bound_is_read_from_its_end(history: History, tmp_path: Path) -> None:
    with (tmp_path / "history.jsonl").open("wb") as file:
        file.write(b"x" * (MAX_READ_BYTES + 1000) + b"\n" + json.dumps(change(7)).encode() + b"\n")
    assert ids(history) == ["r7"]


# -- keeping it short ---------------------------------------------------------------------------


def test_only_the_last_ones_are_kept(history: History, tmp_path: Path) -> None:
    for number in range(1, 40):
        assert history.append(change(number)) == ""
        assert ids(history) == [f"r{n}" for n in range(max(1, number - 4), number + 1)]
        assert len((tmp_path / "history.jsonl").read_text().splitlines()) <= 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl"]


def test_the_highest_id_is_remembered_although_older_releases_served_since(history: History) -> None:
    history.append(change(41))
    history.append(change(42, "failed"))
    for _ in range(40):  # each boot falls back to r41
        history.append({**change(41), "command": "start"})
    assert set(ids(history)) == {"r41"} and len(ids(history)) == 5
    assert next_id(history.used_ids()) == "r43"


def test_a_crash_in_the_middle_of_shortening_loses_nothing(history: History, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl.new").write_text("half a li" * 9999)
    for number in range(1, 12):
        assert history.append(change(number)) == ""
    assert ids(history) == ["r7", "r8", "r9", "r10", "r11"]
    assert not (tmp_path / "history.jsonl.new").exists()
    assert "half" not in (tmp_path / "history.jsonl").read_text()


# -- the last good one --------------------------------------------------------------------------


def test_the_last_good_release_survives(history: History, tmp_path: Path) -> None:
    assert history.save_last_good(release(1)) == ""
    assert history.save_last_good(release(2)) == ""
    assert History(str(tmp_path), 5).load_last_good() == (release(2), "")
    assert [path.name for path in tmp_path.iterdir()] == ["last_good.json"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "damaged"),
        (b'{"v":1,"id":"r1"', "damaged"),
        (b"\0" * 300, "damaged"),
        (b"[]", "damaged"),
        (b'{"v":1,"id":"r1"}', "missing"),
        (b'{"v":2,"id":"r1"}', "v=2"),
        (b'{"v":true}', "another version"),
        (b"{}", "another version"),
    ],
)
def test_a_damaged_record_is_ignored_and_said(
    content: bytes, word: str, history: History, tmp_path: Path
) -> None:
    (tmp_path / "last_good.json").write_bytes(content)
    good, warning = history.load_last_good()
    assert good is None
    assert "last_good.json" in warning and word in warning and "ignored" in warning
    assert history.outcomes() == []


def test_a_record_that_is_a_directory_is_ignored_and_said(history: History, tmp_path: Path) -> None:
    (tmp_path / "last_good.json").mkdir()
    assert "cannot be read" in history.load_last_good()[1]
    assert "cannot be written" in history.save_last_good(release(1))
    assert not (tmp_path / "last_good.json.new").exists()


def test_a_link_in_the_place_of_our_temporary_file_is_not_followed(history: History, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "last_good.json.new").symlink_to(victim)
    history.save_last_good(release(1))
    assert victim.read_text() == "precious"


def test_the_last_good_one_stands_in_for_a_history_that_is_lost(history: History, tmp_path: Path) -> None:
    history.append(change(1, at=10.0))
    history.save_last_good(release(2))
    assert history.outcomes() == [Outcome(release(1), "done"), Outcome(release(2), "done")]
    (tmp_path / "history.jsonl").unlink()
    assert history.outcomes() == [Outcome(release(2), "done")]
    assert next_id(history.used_ids()) == "r3"


def test_the_last_good_one_does_not_overrule_what_the_history_knows(history: History) -> None:
    history.append(change(1))
    history.save_last_good(release(1))
    history.append(change(2, "rolled_back", folder="v1"))
    assert [outcome.outcome for outcome in history.outcomes()] == ["done", "rolled_back"]


# -- disks that do not let us ---------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root (and a container that lets it)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one page."""
    with mounted(tmp_path / "tiny", "4k") as folder:
        yield folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room enough."""
    with mounted(tmp_path / "small", "1m") as folder:
        yield folder


@pytest.mark.root
def test_a_full_disk_is_said_and_what_was_not_written_is_kept(tiny_disk: Path) -> None:
    history = History(str(tiny_disk), 100)
    written = 0
    while not (warning := history.append(change(written + 1))):
        written += 1
        assert written < 100
    assert written > 5
    assert "cannot be written: No space left on device" in warning
    assert ids(history) == [f"r{n}" for n in range(1, written + 2)], "what happened is known while we live"
    assert ids(History(str(tiny_disk), 100)) == [f"r{n}" for n in range(1, written + 1)], "no half line"
    assert "No space" in history.save_last_good(release(9))
    assert [path.name for path in tiny_disk.iterdir()] == ["history.jsonl"]

    (tiny_disk / "history.jsonl").write_text("")  # somebody makes room
    assert history.append(change(50)) == ""
    assert ids(History(str(tiny_disk), 100)) == [f"r{written + 1}", "r50"]


@pytest.mark.root
def test_a_last_good_release_outlives_the_full_disk(tiny_disk: Path) -> None:
    history = History(str(tiny_disk), 100)
    assert history.save_last_good(release(1)) == ""
    (tiny_disk / "last_good.json.new").write_bytes(b"")
    (tiny_disk / "filler").symlink_to("/nowhere")
    with pytest.raises(OSError, match="No space"):
        (tiny_disk / "more").write_bytes(bytes(5000))
    assert "No space" in history.save_last_good(release(2))
    assert history.load_last_good() == (release(1), "")


_LIMITED = """
import sys
from quiesce.supervisor.history import History
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
history = History(sys.argv[1], 100)
warnings = [history.append({"release": f"r{n}", "reason": "x" * 100}) for n in range(1, 9)]
print(sum(not w for w in warnings), len(history.entries()), warnings[-1])
"""


def test_a_limit_on_file_size_is_no_other_than_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    good, known, warning = done.stdout.split(" ", 2)
    assert int(good) == 4 and int(known) == 8 and "cannot be written" in warning
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 600
    assert ids(History(str(tmp_path), 100)) == ["r1", "r2", "r3", "r4"]
    assert (tmp_path / "history.jsonl").read_bytes().endswith(b"\n")


def test_a_state_directory_that_is_none(tmp_path: Path) -> None:
    """As good as read-only, also for root."""
    (tmp_path / "file").write_text("")
    history = History(str(tmp_path / "file"), 5)
    assert "cannot be written: Not a directory" in history.append(change(1))
    assert "cannot be written: Not a directory" in history.save_last_good(release(1))
    assert ids(history) == ["r1"], "what happened is known while we live"
    assert history.load_last_good()[0] is None


@pytest.mark.root
def test_a_read_only_file_system(small_disk: Path) -> None:
    history = History(str(small_disk), 5)
    assert history.append(change(1)) == "" and history.save_last_good(release(1)) == ""
    if subprocess.run(
        ["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("cannot remount here")
    assert "Read-only file system" in history.append(change(2))
    assert "Read-only file system" in history.save_last_good(release(2))
    assert ids(history) == ["r1", "r2"]
    assert history.load_last_good() == (release(1), "")


# -- two at once ----------------------------------------------------------------------------------

_WRITER = """
import sys
from quiesce.supervisor.history import History
history = History(sys.argv[1], 1000)
sys.stdin.read()  # both begin when both are there
for n in range(60):
    assert history.append({"release": f"r{n}", "who": sys.argv[2], "reason": "x" * 3000}) == ""
"""


def test_two_writers_tear_no_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), who], stdin=subprocess.PIPE)
        for who in "ab"
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line]
    for who in "ab":
        assert [entry["release"] for entry in entries if entry["who"] == who] == [f"r{n}" for n in range(60)]
