"""Twenty changes of version while every kind of client hammers: nobody notices but by the better answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps import Behaviour, Notes, build
from harness import Port, running
from harness.verdict import Changes, assert_all_well
from load import LoadClient, everything

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
IMPORT_S = 1.0
CHANGES = 20


@pytest.mark.parametrize("flavour", ["wsgi", "asgi", "native"])
def test_twenty_upgrades_and_rollbacks_lose_nothing(
    flavour: str, tmp_path: Path, notes: Notes, port: Port
) -> None:
    slow = Behaviour(import_s=IMPORT_S)
    # Generations follow each other faster than idle connections leave: each would wait for the last but one.
    rollout = {"max_generations": "30"}
    v1, v2, v3, v4 = (build(tmp_path, name, notes, flavour, slow) for name in ("v1", "v2", "v3", "v4"))
    changes = Changes()
    with (
        running(
            tmp_path / "instance", v1, "--interface", "auto", binds=[port.address], rollout=rollout
        ) as instance,
        LoadClient(instance.target, *everything(seconds=3.0)) as load,
    ):
        load.wait_answers(200)
        for _ in range(CHANGES // 5):
            for release in (v2, v3, v4):
                changes.ok(instance, release.name, "upgrade", "--release", str(release.path), "--bake", "0.1")
            changes.ok(instance, "v3", "rollback")
            changes.ok(instance, "v1", "upgrade", "--release", str(v1.path), "--bake", "0.1")
        load.wait_answers(200)
        report = load.stop()
    print(f"{flavour}: {report.total} answers in {report.ended - report.began:.1f} s {report.answers}")
    stall = (
        f"longest gap {report.longest_gap_s:.3f} s, longest fresh connection {report.longest_fresh_s:.3f} s"
    )
    print(f"{stall}; without the client's own stalls, up to {report.client_stall_s:.3f} s")
    print(f"longest waits {report.longest_wait_s}, idle connections closed {report.idle_closed}")
    assert_all_well(report, notes)
    changes.assert_no_old_answers(report)
    assert report.releases.keys() == {"v1", "v2", "v3", "v4"}
    # Nobody waits for the import of new code: neither on a kept connection nor on a new one.
    assert max(report.longest_gap_s, report.longest_fresh_s) < IMPORT_S / 4, stall


def test_upgrades_faster_than_transfers_lose_nothing_by_default(
    tmp_path: Path, notes: Notes, port: Port
) -> None:
    """Uploads of three seconds, upgrades of half a one, `max_generations` as it comes: upgrades wait, nobody is cut."""
    releases = [build(tmp_path, name, notes) for name in ("v1", "v2", "v3")]
    changes = Changes()
    with (
        running(tmp_path / "instance", releases[0], binds=[port.address]) as instance,
        LoadClient(instance.target, *everything(seconds=3.0)) as load,
    ):
        for turn in range(1, 6):
            release = releases[turn % 3]
            changes.ok(instance, release.name, "upgrade", "--release", str(release.path))
        load.wait_answers(200)
        report = load.stop()
    assert_all_well(report, notes)
    changes.assert_no_old_answers(report)


def test_an_upgrade_over_a_unix_socket_and_tcp_at_once(tmp_path: Path, notes: Notes, port: Port) -> None:
    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    binds = [f"unix:{tmp_path}/shop.sock", port.address]
    changes = Changes()
    with running(tmp_path / "instance", v1, binds=binds) as instance:
        with (
            LoadClient(binds[0], *everything(1.0)) as over_unix,
            LoadClient(binds[1], *everything(1.0)) as over_tcp,
        ):
            changes.ok(instance, "v2", "upgrade", "--release", str(v2.path))
            over_unix.wait_answers(2000)
            changes.ok(instance, "v1", "rollback")
            over_unix.wait_answers(2000)
            over_tcp.wait_answers(200)
            reports = [over_unix.stop(), over_tcp.stop()]
        written = notes.tokens
    for report in reports:
        assert_all_well(report)
        changes.assert_no_old_answers(report)
        mine = report.tokens[0].rpartition("-")[0]
        assert report.judge_tokens(token for token in written if token.startswith(mine)) == {}


def test_slow_transfers_outlive_the_upgrade(tmp_path: Path, notes: Notes, port: Port) -> None:
    """An upload and a download that began on the old release end on it, long after `upgrade` has returned."""
    from load import download, upload

    v1, v2 = (build(tmp_path, name, notes) for name in ("v1", "v2"))
    with running(tmp_path / "instance", v1, binds=[port.address]) as instance:
        with LoadClient(
            instance.target, upload(2, 6.0), download(2, 6.0, size=16 << 20), wait_started=False, timeout_s=30
        ) as load:
            instance.wait_status(lambda status: sum(w["connections"]["busy"] for w in status["workers"]) >= 4)
            outcome = instance.ok("upgrade", "--release", str(v2.path))
            load.wait_started()
            report = load.stop()
        assert_all_well(report)
        assert report.releases.get("v1", 0) >= 2, report.releases
        assert report.ended > outcome.ended
        instance.settled(2)
