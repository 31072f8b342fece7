"""The units of systemd/ under a real systemd, 252 and 257: start, reload, be refused, stop, restart, reboot.

Each test has an instance (or a service) of its own in one box for each image.  Those of the sandbox are in
test_systemd_sandbox.py, those of dying processes in test_systemd_crash.py.
"""

from __future__ import annotations

import time

import pytest

from harness.verdict import assert_all_well
from load import LoadClient, busy, fresh, post
from sdbox.fixtures import host, instance
from sdbox.installation import INTERPRETER, QUIESCE
from sdbox.service import DROP_INS, IMAGES, UNITS, Host, Instance, add_instance, machine, prepared

__all__ = ["host", "instance"]  # pytest finds fixtures by name

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]


def test_start_blocks_until_it_serves_and_status_says_what(instance: Instance) -> None:
    instance.start()
    # At once: `start` has returned, so the application answers.
    with LoadClient(instance.target, fresh(2), busy(1), max_answers=50) as load:
        assert_all_well(load.wait_report())
    shown = instance.shown("ActiveState", "StatusText", "NRestarts")
    assert shown["ActiveState"] == "active" and shown["NRestarts"] == "0", shown
    assert "r1" in shown["StatusText"], shown
    assert instance.status()["name"] == instance.name  # a plain root shell, without the unit's environment


def test_nobody_is_root(instance: Instance) -> None:
    instance.start()
    users = {instance.box.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() for pid in instance.pids()}
    assert users == {"quiesce"}


def test_a_member_of_control_group_may_use_every_command(instance: Instance) -> None:
    """And nobody else; the unit gives the supervisor the group, or it could not give the socket to it."""
    for command in (
        ("groupadd", "--force", "deploy"),
        ("useradd", "-G", "deploy", f"m-{instance.name[:20]}"),
        ("useradd", f"s-{instance.name[:20]}"),
    ):
        assert instance.box.run(*command).returncode == 0
    instance.config.write_text(
        instance.config.read_text().replace("[service]", '[service]\ncontrol_group = "deploy"')
    )
    instance.drop_in("control-group", (DROP_INS / "control-group.conf").read_text())
    instance.start()
    member, stranger = f"m-{instance.name[:20]}", f"s-{instance.name[:20]}"
    for command in (["status"], ["upgrade"], ["status", "--json"], ["history"]):
        code, said = instance.quiesce(*command, user=member)
        assert code == 0, said
    code, said = instance.quiesce("status", user=stranger)
    assert code != 0, said


def test_the_first_connection_starts_the_service(instance: Instance) -> None:
    code, said = instance.ctl("start", instance.socket)
    assert code == 0, said
    assert instance.shown("ActiveState")["ActiveState"] == "inactive"
    with LoadClient(instance.target, fresh(2), max_answers=10) as load:
        assert_all_well(load.wait_report())
    assert instance.shown("ActiveState")["ActiveState"] == "active"


def test_reload_under_load_to_a_new_release(instance: Instance) -> None:
    instance.start()
    with LoadClient(instance.target, fresh(2, think_s=0.002), busy(2), post(1)) as load:
        load.wait_answers(50)
        instance.deploy("b")
        code, said = instance.ctl("reload")
        returned = time.monotonic()
        assert code == 0, said
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    assert report.fresh[-1].release == "b" and report.fresh[0].release == "a"
    assert report.stale_answers(returned, report.ended, "b") == []
    assert not report.judge_tokens(instance.notes.tokens)
    assert "r2" in instance.shown("StatusText")["StatusText"]


def test_reload_of_a_broken_release_fails_and_the_old_one_serves(instance: Instance) -> None:
    instance.start()
    workers = instance.workers()
    with LoadClient(instance.target, fresh(2, think_s=0.002), busy(2)) as load:
        instance.deploy("bad")
        code, said = instance.ctl("reload")
        assert code != 0
        assert "Traceback" in said, said  # the journal says why
        load.wait_answers(50)
        report = load.stop()
    assert_all_well(report)
    assert report.fresh[-1].release == "a"
    assert instance.shown("ActiveState")["ActiveState"] == "active"
    assert instance.workers() == workers
    assert instance.quiesce("upgrade")[0] == 1


def test_a_bake_may_be_longer_than_the_start_timeout(instance: Instance) -> None:
    """EXTEND_TIMEOUT_USEC keeps the reload, and before it the start, alive."""
    instance.config.write_text(instance.config.read_text().replace('bake = "0.2s"', 'bake = "4s"'))
    instance.drop_in("short", "[Service]\nTimeoutStartSec=2s\n")
    instance.start()
    instance.deploy("b")
    began = time.monotonic()
    code, said = instance.ctl("reload")
    assert code == 0, said
    assert time.monotonic() - began > 4  # so it was waited for
    assert "timed out" not in said
    assert instance.shown("ActiveState")["ActiveState"] == "active"


def test_stop_leaves_nothing_behind_and_stays_stopped(instance: Instance) -> None:
    instance.start()
    assert len(instance.pids()) >= 3  # a supervisor, two workers
    with LoadClient(instance.target, busy(2), max_answers=20, wait_started=False) as load:
        load.wait_report()
    code, said = instance.ctl("stop", instance.socket, instance.service)
    assert code == 0, said
    # The journal and not `show`: an inactive unit that nobody refers to is unloaded, and its result forgotten.
    assert instance.shown("ActiveState")["ActiveState"] == "inactive"
    assert "Deactivated successfully" in said and "Main process exited" not in said, said
    assert instance.pids() == []
    assert "remains running after unit stopped" not in said
    assert not (instance.box.root / "run/quiesce" / instance.name).exists()
    jobs = instance.box.run("systemctl", "list-jobs").stdout
    assert instance.name not in jobs, jobs


def test_quiesce_stop_is_a_clean_end_too(instance: Instance) -> None:
    """Nothing restarts it (but a new connection would: the socket unit is told to stop first)."""
    instance.start()
    code, said = instance.quiesce("stop")
    assert code == 0, said
    assert instance.box.run("systemctl", "is-active", "--wait", instance.service).returncode != 0
    said = instance.box.journal("-u", instance.service)
    assert "Scheduled restart job" not in said, said
    assert instance.shown("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_a_restart_loses_no_connection(instance: Instance) -> None:
    instance.start()
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        code, said = instance.ctl("restart")
        assert code == 0, said
        load.wait_answers(20)
        assert_all_well(load.stop())


def test_a_mistake_in_the_configuration_is_not_tried_again(instance: Instance) -> None:
    instance.config.write_text(instance.config.read_text() + '\n[limits]\nheader_byte = "1KiB"\n')
    code, said = instance.ctl("start")
    assert code != 0
    assert "header_bytes" in said  # the nearest key, in the journal
    shown = instance.shown("ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}


def test_a_broken_application_is_tried_again_until_it_is_mended(instance: Instance) -> None:
    """Clients wait meanwhile: no start limit closes the socket."""
    instance.drop_in("hurry", "[Service]\nRestartSec=50ms\n")
    instance.deploy("bad")
    assert instance.ctl("start", instance.socket)[0] == 0
    with LoadClient(instance.target, fresh(1), max_answers=5, timeout_s=60, wait_started=False) as load:
        while (
            int((shown := instance.shown("NRestarts", "ActiveState"))["NRestarts"]) < 6
        ):  # the usual limit is 5
            assert shown["ActiveState"] != "failed", shown
        instance.deploy("a")
        assert_all_well(load.wait_report())
    assert instance.shown("ActiveState")["ActiveState"] == "active"


def test_one_service_on_port_80_without_any_root(host: Host) -> None:
    with prepared(host, "default", "quiesce") as instance:
        instance.start()
        asked = host.box.run(INTERPRETER, "-c", ASK, "http://127.0.0.1:80/", user="daemon")
        assert asked.stdout.startswith("200 "), asked.stdout + asked.stderr
        shown = instance.shown("User", "CapabilityBoundingSet", "AmbientCapabilities")
        assert shown == {"User": "quiesce", "CapabilityBoundingSet": "", "AmbientCapabilities": ""}


def test_generated_units_serve_and_reload(host: Host) -> None:
    """`quiesce systemd`, its output copied to /etc/systemd/system, and nothing else."""
    with prepared(host, "made", "quiesce-made") as instance:
        config = instance.config.read_text() + '[[listen]]\naddress = "fd://admin"\n'
        instance.config.write_text(config)
        asked = ("systemd", "made", "--config", "/etc/quiesce/made.toml", "--output", "/etc/systemd/system")
        done = host.box.run(QUIESCE, *asked)
        assert done.returncode == 0, done.stderr
        host.reload_units()
        instance.start()
        with LoadClient(instance.target, fresh(2), busy(1)) as load:
            instance.deploy("b")
            code, said = instance.ctl("reload")
            assert code == 0, said
            load.wait_answers(50)
            assert_all_well(load.stop())
        with LoadClient(f"unix:{host.box.root}/run/quiesce-made@admin.sock", fresh(1), max_answers=5) as load:
            assert set(load.wait_report().releases) == {"b"}
        assert instance.status()["crash_safe"] is True
        code, said = instance.ctl("stop", "quiesce-made@admin.socket", instance.socket, instance.service)
        assert code == 0, said


def test_a_privileged_port_that_quiesce_binds_itself(host: Host, instance: Instance) -> None:
    config = instance.config.read_text() + '[[listen]]\naddress = "127.0.0.1:443"\n'
    instance.config.write_text(config)
    instance.drop_in("port", (DROP_INS / "port-below-1024.conf").read_text())
    instance.start()
    asked = host.box.run(INTERPRETER, "-c", ASK, "http://127.0.0.1:443/", user="daemon")
    assert asked.stdout.startswith("200 "), asked.stdout + asked.stderr


def test_notify_reload_where_systemd_has_it(host: Host, instance: Instance) -> None:
    if host.version < 253:
        pytest.skip("Type=notify-reload came with systemd 253")
    instance.drop_in("notify-reload", (DROP_INS / "notify-reload-253.conf").read_text())
    instance.start()
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        instance.deploy("b")
        code, said = instance.ctl("reload")
        returned = time.monotonic()
        assert code == 0, said
        load.wait_answers(20)
        report = load.stop()
    assert_all_well(report)
    assert report.stale_answers(returned, report.ended, "b") == []


ASK = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    print(answer.status, answer.read(100))
"""


def test_systemd_has_nothing_to_say_about_our_units(host: Host) -> None:
    verify(host, *(f"/etc/systemd/system/{unit.name.replace('@.', '@verified.')}" for unit in UNITS))


def test_systemd_has_nothing_to_say_about_our_drop_ins(host: Host) -> None:
    """Those for a newer systemd say so in their names."""
    units = []
    for drop_in in DROP_INS.iterdir():
        since = drop_in.stem.rpartition("-")[2]
        if not since.isdigit() or since == "1024" or int(since) <= host.version:
            unit = f"quiesce@{drop_in.stem}.service"
            host.write_unit(f"{unit}.d/{drop_in.name}", drop_in.read_text())
            units.append(f"/etc/systemd/system/{unit}")
    host.reload_units()
    assert len(units) >= 7
    verify(host, *units)


def test_systemd_has_nothing_to_say_about_generated_units(host: Host) -> None:
    out = host.directory / f"units-{host.box.name}"
    out.mkdir()
    for name, text in GENERATED.items():
        (host.box.root / f"etc/quiesce/{name}.toml").write_text(text)
        asked = (
            "systemd",
            name.replace(" ", "-"),
            "--config",
            f"/etc/quiesce/{name}.toml",
            "--output",
            str(out),
        )
        done = host.box.run(QUIESCE, *asked)
        assert done.returncode == 0, done.stderr
    # Loaded from their own folder, with their sockets beside them.
    verify(host, *map(str, out.iterdir()))


GENERATED = {
    "shop": '[service]\napp = "shop:app"\nrelease = "/srv"\nuser = "daemon"\ngroup = "daemon"\ncontrol_group = "adm"\n'
    '[[listen]]\naddress = "127.0.0.1:8000"\n[[listen]]\nname = "six"\naddress = "[::1]:8001"\n'
    '[[listen]]\nname = "admin"\naddress = "unix:/run/shop-admin.sock"\nmode = "660"\ngroup = "www-data"\n',
    "default": '[service]\napp = "shop:app"\nrelease = "/srv"\n[[listen]]\naddress = "fd://http"\n',
    "many": '[service]\napp = "shop:app"\nrelease = "/home"\nworkers = 300\n[[listen]]\naddress = "unix:@abstract"\n'
    '[rollout]\ndrain_timeout = "10m"\nstart_timeout = "20m"\n[limits]\nconnections = 100000\n'
    '[log]\nfile = "/var/log/many.log"\n',
    "with space": '[service]\napp = "shop:app"\nrelease = "/srv"\n[[listen]]\naddress = "0.0.0.0:80"\n',
}


def verify(host: Host, *units: str) -> None:
    assert units
    # Its exit status is 0 even for unknown keys: only silence is approval.
    result = host.box.run("systemd-analyze", "verify", *units)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


@pytest.mark.parametrize("image", IMAGES)
def test_a_reboot_after_a_rollback_serves_the_good_release(image: str) -> None:
    """What `current` points to was rolled back, and a reboot does not bring it back."""
    with machine(image) as one:
        with one.boot() as host:
            instance = add_instance(host, "rebooted")
            instance.start()
            instance.deploy("b")
            for command in ("upgrade", "rollback"):
                code, said = instance.quiesce(command)
                assert code == 0, said
            host.box.down(graceful=True)
        with one.boot() as host:
            instance = add_instance(host, "rebooted")
            instance.start()
            with LoadClient(instance.target, fresh(2), max_answers=20) as load:
                report = load.wait_report()
            assert_all_well(report)
            assert set(report.releases) == {"a"}
            assert "rolled back" in "\n".join(instance.messages())  # and it is said
