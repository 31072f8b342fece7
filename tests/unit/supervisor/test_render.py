"""Status, history and banner as people see them: in 80 columns, safe for a terminal."""

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor import render

NOW = 1_800_000_000.0

STATUS: dict[str, Any] = {
    "name": "shop",
    "crash_safe": False,
    "crash_safe_reason": "re-adoption after the death of the supervisor comes with a later version",
    "supervisor": {"pid": 811, "version": "0.1.0", "since": NOW - 273_600},
    "listeners": [
        {"name": "http", "address": "0.0.0.0:8080"},
        {"name": "u", "address": "unix:/run/shop.sock"},
    ],
    "release": "r42",
    "rollout": {
        "state": "baking",
        "release": "r42",
        "from": "r41",
        "since": NOW - 4,
        "text": "5xx 0.0 % of 812",
    },
    "releases": [
        *(
            {
                "id": "r41",
                "label": None,
                "path": "/srv/shop/releases/41",
                "state": "quiesced",
                "app": "shop.wsgi",
            },
        ),
        {
            "id": "r42",
            "label": "v2.1",
            "state": "baking",
            "app": "shop.wsgi:application",
            "path": "/srv/shop/a-very-long-name-of-a-folder/releases/20261123101500",
        },
    ],
    "workers": [
        {
            "id": f"{release}/{number}",
            "pid": 4_000_000 + number,
            "release": release,
            "state": state,
            "connections": {"open": 1234, "idle": 1200, "busy": 34},
            "requests": 1_234_567,
            "since": NOW - 90,
        }
        for release, state in (("r41", "quiesced"), ("r42", "accepting"))
        for number in (1, 2)
    ],
    "counters": {"requests_total": 9_876_543},
    "wanted_workers": 2,
    "notices": ["the configured release was rolled back before, so r42 serves instead; deploy a fixed one"],
}


def test_status_of_a_bake() -> None:
    assert (
        render.status(STATUS, NOW)
        == """\
shop: r42 serves, healthy (2 of 2 workers accept)
  listening   0.0.0.0:8080, unix:/run/shop.sock
  rollout     baking r42 (from r41) for 4s: 5xx 0.0 % of 812
  supervisor  pid 811, quiesce 0.1.0, up 3d 4h
  crash safe  no: re-adoption after the death of the supervisor comes with a
              later version
  requests    9,876,543
! the configured release was rolled back before, so r42 serves instead; deploy a
fixed one

  RELEASE  STATE     LABEL  APP                    DIRECTORY
  r41      quiesced  -      shop.wsgi              /srv/shop/releases/41
  r42*     baking    v2.1   shop.wsgi:application  …lder/releases/20261123101500

  WORKER      PID  STATE       OPEN   IDLE  BUSY   REQUESTS     AGE
  r41/1   4000001  quiesced   1,234  1,200    34  1,234,567  1m 30s
  r41/2   4000002  quiesced   1,234  1,200    34  1,234,567  1m 30s
  r42/1   4000001  accepting  1,234  1,200    34  1,234,567  1m 30s
  r42/2   4000002  accepting  1,234  1,200    34  1,234,567  1m 30s
"""
    )


def test_what_moved_has_a_column_where_anything_did() -> None:
    workers = [
        {
            **worker,
            "handed_out": 12_345 * number,
            "taken_in": 12_345,
            "connections": {"open": 40_000, "idle": 39_000, "busy": 9},
        }
        for number, worker in enumerate(STATUS["workers"])
    ]
    releases = [{**STATUS["releases"][0], "lane": 7}, {**STATUS["releases"][1], "lane": 0}]
    text = render.status({**STATUS, "workers": workers, "releases": releases}, NOW)
    lines = text.splitlines()
    assert "  moving      7 to r41" in lines
    assert max(map(len, lines)) <= 80, text
    head = next(line for line in lines if line.lstrip().startswith("WORKER"))
    assert head.split() == ["WORKER", "PID", "STATE", "OPEN", "IDLE", "BUSY", "OUT", "IN", "REQUESTS", "AGE"]
    last = next(line for line in lines if line.startswith("  r42/2")).split()
    assert last[3:9] == ["40k", "39k", "9", "37k", "12k", "1.2M"]


def test_restarts_have_a_column_where_there_were_any() -> None:
    workers = [{**worker, "restarts": number} for number, worker in enumerate(STATUS["workers"])]
    lines = render.status({**STATUS, "workers": workers}, NOW).splitlines()
    head = next(line for line in lines if line.lstrip().startswith("WORKER"))
    assert head.split()[-3:] == ["REQUESTS", "RESTARTS", "AGE"]
    assert next(line for line in lines if line.startswith("  r42/2")).split()[-3] == "3"
    none = [{**worker, "restarts": 0} for worker in STATUS["workers"]]
    assert render.status({**STATUS, "workers": none}, NOW) == render.status(STATUS, NOW)


def test_a_drain_that_is_over_says_so_and_a_long_first_line_is_not_cut() -> None:
    quiet = [
        {**worker, "state": "quiesced", "connections": {"open": 3, "idle": 3, "busy": 0}}
        for worker in STATUS["workers"]
    ]
    doc = {**STATUS, "unready": True, "held": True, "workers": quiet}
    first, second = render.status(doc, NOW).splitlines()[:2]
    assert f"{first} {second}" == (
        "shop: r42 serves, NOT ACCEPTING, drained for a load balancer (0 of 2 workers accept)"
    )
    busy = [{**quiet[0], "connections": {"open": 3, "idle": 2, "busy": 1}}, *quiet[1:]]
    assert "draining for" in render.status({**doc, "workers": busy}, NOW)
    assert "draining for" in render.status({**doc, "held": False}, NOW)


def test_what_keeps_an_instance_alive_is_shown_and_being_safe_takes_no_line() -> None:
    safe = {**STATUS, "crash_safe": True, "crash_safe_reason": "", "keeper": 810, "log": "/var/log/shop.log"}
    lines = render.status(safe, NOW).splitlines()
    assert "  supervisor  pid 811 under keeper 810, quiesce 0.1.0, up 3d 4h" in lines
    assert "  log         /var/log/shop.log" in lines
    assert not [line for line in lines if "crash safe" in line or "readiness" in line]
    assert "keeper" not in render.status({**safe, "keeper": None}, NOW)
    assert "crash safe  no: unknown\n" in render.status({**safe, "crash_safe": False}, NOW)


def test_an_instance_that_leaves_its_load_balancer_says_so() -> None:
    lines = render.status({**STATUS, "unready": True}, NOW).splitlines()
    assert lines[0] == "shop: r42 serves, healthy, draining for a load balancer (2 of 2 workers accept)"
    assert "  readiness   ready_path answers 503, so that a load balancer sends nobody here" in lines


def test_a_reconfiguration_says_what_is_new_and_from_when_on() -> None:
    data = {
        "live": ["rollout.bake", "log.file"],
        "rollout": ["service.threads"],
        "restart": ["service.name"],
        "listeners": {
            "added": ["[::1]:80", "unix:/x\x1b"],
            "removed": ["127.0.0.1:80"],
            "changed": ["fd://a"],
        },
        "problems": ["cannot change \x07"],
    }
    assert (
        render.reconfigured(data)
        == """\
reconfigured
  listens on    [::1]:80, unix:/x\\x1b
  no longer on  127.0.0.1:80
  changed       fd://a
  live now      rollout.bake, log.file
  at upgrade    service.threads (with the next `quiesce upgrade`)
  at restart    service.name (`quiesce stop`, then start it again)
! cannot change \\x07
"""
    )
    assert render.reconfigured({}) == "nothing has changed\n"


def test_status_fits_into_the_columns_it_is_given() -> None:
    for width in (80, 100, 132):
        assert max(len(line) for line in render.status(STATUS, NOW, width).splitlines()) <= width


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"release": None, "workers": []}, "shop: NOTHING SERVES"),
        ({"wanted_workers": 4}, "shop: r42 serves, DEGRADED (2 of 4 workers accept)"),
        ({"workers": []}, "shop: r42 serves, NOT ACCEPTING (0 of 2 workers accept)"),
        (
            {"wanted_workers": 1, "workers": STATUS["workers"][3:]},
            "shop: r42 serves, healthy (1 of 1 worker accept)",
        ),
    ],
)
def test_the_headline_tells_the_truth(change: dict[str, Any], says: str) -> None:
    assert render.status({**STATUS, **change}, NOW).splitlines()[0] == says


def test_a_status_of_another_version_is_still_shown() -> None:
    assert "NOTHING SERVES" in render.status({}, NOW)
    assert "idle" in render.status({"name": "x", "release": "r1", "workers": [{}], "releases": [{}]}, NOW)


def test_history_has_the_newest_last_and_reasons_below() -> None:
    at = time.mktime((2026, 11, 23, 10, 15, 0, 0, 0, -1))
    entries = [
        {
            "at": at,
            "command": "start",
            "release": "r1",
            "label": None,
            "from": None,
            "outcome": "done",
            "duration_s": 0.412,
        },
        {
            "at": at + 60,
            "command": "upgrade",
            "release": "r2",
            "label": "v2",
            "from": "r1",
            "outcome": "rolled_back",
            "duration_s": 83.0,
            "reason": "worker r2/1 exited with status 1 while it was probed, and its last words were many",
        },
    ]
    assert (
        render.history(entries)
        == """\
WHEN                 RELEASE  LABEL  WHAT     OUTCOME        TOOK
2026-11-23 10:15:00  r1       -      start    done          0.41s
2026-11-23 10:16:00  r1 → r2  v2     upgrade  rolled back  1m 23s
    worker r2/1 exited with status 1 while it was probed, and its last words
    were many
"""
    )
    assert render.history([]) == "no rollouts yet\n"


def test_the_banner_says_what_to_type_next() -> None:
    data = {
        "urls": ["http://127.0.0.1:8000/"],
        "name": "shop",
        "release": "r1",
        "path": "/srv/shop",
        "workers": 2,
        "python": "/srv/shop/.venv/bin/python",
        "threads": 8,
        "interface": "wsgi",
        "config_file": None,
        "health": "GET / answers below 500",
    }
    assert (
        render.banner(data, "run", " --name shop")
        == """\
quiesce serves http://127.0.0.1:8000/
  instance  shop
  release   r1  /srv/shop
  python    /srv/shop/.venv/bin/python
  workers   2 workers × 8 threads, wsgi
  health    GET / answers below 500
  config    none
next:
  quiesce --name shop upgrade   roll out what is in the release directory now
  quiesce --name shop status    what runs
  quiesce --name shop stop      finish what was accepted and exit (or Ctrl-C here)
"""
    )
    assert "Ctrl-C" not in render.banner(data, "start")


def test_failures_and_refusals() -> None:
    assert (
        render.failure("upgrade", 1, "r2 failed", "Traceback\n  x\n")
        == "quiesce: upgrade failed: r2 failed\nTraceback\n  x\n"
    )
    assert render.failure("upgrade", 5, "busy") == "quiesce: upgrade refused: busy\n"
    assert render.failure("", 4, "no instance") == "quiesce: no instance\n"


@given(st.text(max_size=60))
def test_nothing_from_elsewhere_drives_the_terminal(text: str) -> None:
    for shown in (
        render.clean(text),
        render.block(text).removesuffix("\n"),
        render.failure("x", 1, text)[:-1],
    ):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
        shown.encode()
    assert "\n" not in render.clean(text)


def test_escape_sequences_are_made_visible() -> None:
    assert render.clean("\x1b[2Jhi\n\x07") == "\\x1b[2Jhi \\x07"
    assert render.block("a\tb\n\x1b[31mred") == "a       b\n\\x1b[31mred\n"


@given(st.integers(0, 10**8))
def test_an_age_has_at_most_two_units(seconds: int) -> None:
    assert re.fullmatch(r"\d+[smhd]( \d+[smh])?", render.age(seconds))


def test_ages_and_durations() -> None:
    assert [render.age(s) for s in (-5, 59.9, 60, 3600, 3660, 90000)] == [
        "0s",
        "59s",
        "1m",
        "1h",
        "1h 1m",
        "1d 1h",
    ]
    assert [render.duration(s) for s in (None, 0.005, 12.34, 61)] == ["-", "0.01s", "12.3s", "1m 1s"]
