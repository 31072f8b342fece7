"""What the units' sandbox allows, and what it is worth: Django at work, two virtual environments, scores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from load import LoadClient, fresh
from sdbox.fixtures import host, instance
from sdbox.installation import INTERPRETER, ROOT, make_environment, site_packages
from sdbox.service import DROP_INS, Host, Instance, ask

__all__ = ["host", "instance"]  # pytest finds fixtures by name

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

SDBOX = ROOT / "tests" / "sdbox"
# `systemd-analyze security`, the same figure for both versions; README.md and the drop-ins repeat them.
SCORES = {
    "": 1.4,
    "control-group": 1.4,
    "jit": 1.4,
    "port-below-1024": 1.5,
    "root-with-user": 2.4,
}


def drop_in(name: str) -> str:
    return (DROP_INS / f"{name}.conf").read_text()


@pytest.mark.parametrize("name", SCORES)
def test_exposure(host: Host, name: str) -> None:
    unit = f"quiesce@scored-{name}.service"
    if name:
        host.write_unit(f"{unit}.d/{name}.conf", drop_in(name))
        host.reload_units()
    # Exit status 1 when the exposure is above the threshold (in tenths).
    limit = round(SCORES[name] * 10)
    judged = host.box.run("systemd-analyze", "security", "--no-pager", f"--threshold={limit}", unit)
    last = judged.stdout.strip().splitlines()[-1]
    assert judged.returncode == 0 and f": {SCORES[name]} " in last, last
    if name:
        assert f"xposure {SCORES[name]}" in drop_in(name) or "xposure as before" in drop_in(name)


def test_a_django_application_at_work(host: Host, instance: Instance) -> None:
    """It stores an upload, sends mail, runs a subprocess, uses its database and every temporary directory."""
    pytest.importorskip("django")
    release = instance.releases / "site"
    make_environment(release / ".venv", ("django", "asgiref", "sqlparse"))
    shutil.copyfile(SDBOX / "django_site.py", release / "site_of_shop.py")
    media = instance.releases / "media"
    media.mkdir()
    media.chmod(0o777)  # an administrator gives it to the user quiesce
    config = instance.config.read_text().replace('"shop:app"', '"site_of_shop:application"')
    config = config.replace('health_path = "/healthz"', 'health_path = "/"')
    instance.config.write_text(config.replace("[[listen]]", f'env = {{ MEDIA = "{media}" }}\n[[listen]]', 1))
    instance.drop_in("media", drop_in("media-directory").replace("/srv/shop/media", str(media)))
    inbox = host.directory / f"inbox-{host.box.name}"
    shutil.copyfile(SDBOX / "mail_sink.py", host.directory / "mail_sink.py")
    sink = (
        "systemd-run",
        "-p",
        "Type=notify",
        INTERPRETER,
        f"{host.directory}/mail_sink.py",
        "2525",
        str(inbox),
    )
    assert host.box.run(*sink).returncode == 0
    instance.deploy("site")
    instance.start()

    body = b"--x\r\n" + b'Content-Disposition: form-data; name="file"; filename="parcel.bin"\r\n\r\n'
    body += bytes(range(256)) * 1000 + b"\r\n--x--\r\n"
    status, said = ask(instance, "/upload", body, Content_Type="multipart/form-data; boundary=x")
    assert status == 200, said
    assert said.startswith(b"parcel.bin by way of /var/cache/quiesce/"), said
    assert (media / "parcel.bin").read_bytes() == bytes(range(256)) * 1000
    assert ask(instance, "/mail") == (200, b"1 sent")
    assert "is on its way" in inbox.read_text()
    uid = instance.box.run("id", "-u", "quiesce").stdout.strip()
    assert ask(instance, "/run") == (200, f"{uid} 45\n".encode())
    assert ask(instance, "/query") == (200, b"1")
    status, said = ask(instance, "/temporary")
    assert status == 200, said
    assert said.split(b"\n")[1].startswith(b"/tmp/"), said


def test_workers_of_two_virtual_environments_under_dynamic_user(instance: Instance) -> None:
    """Nothing of the machine belongs to the user, who has no name before the service starts."""
    for release in ("a", "b"):
        venv = make_environment(instance.releases / release / ".venv")
        # Code of the virtual environment, which runs at every start of its interpreter.
        (site_packages(venv) / "sitecustomize.py").write_text(
            f"import os\nos.environ['VENV'] = '{release}'\n"
        )
    # A name of its own: the default is the unit's, `quiesce`, and that user is there (quiesce.sysusers).
    instance.drop_in("dynamic", "[Service]\nUser=nobody-knows\nDynamicUser=yes\n")
    instance.start()
    user = instance.shown("UID")["UID"]
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        instance.deploy("b")
        code, said = instance.ctl("reload")
        assert code == 0, said
        load.wait_answers(20)
        report = load.stop()
    assert not report.failures(), report.explain()
    assert set(report.releases) == {"a", "b"}
    assert "VENV=b" in environment(instance)
    for pid in instance.pids():
        assert instance.box.run("stat", "-c", "%u", f"/proc/{pid}").stdout.strip() == user
    assert user not in ("0", instance.box.run("id", "-u", "quiesce").stdout.strip())


def test_root_with_user(instance: Instance) -> None:
    """The supervisor is root with few capabilities; workers are somebody else, and every command works."""
    instance.box.run("useradd", "--system", "shopkeeper")
    instance.box.run("groupadd", "--force", "deploy")
    config = instance.config.read_text()
    instance.config.write_text(
        config.replace("[service]", '[service]\nuser = "shopkeeper"\ncontrol_group = "deploy"').replace(
            'drain_timeout = "5s"', 'drain_timeout = "1s"\n[worker]\nexit_timeout = "0.5s"'
        )
    )
    closed = instance.releases / "closed"
    shutil.copytree(instance.releases / "b", closed)
    venv = make_environment(closed / ".venv")
    (site_packages(venv) / "sitecustomize.py").write_text("import os\nos.environ['VENV'] = 'closed'\n")
    uid = int(instance.box.run("id", "-u", "shopkeeper").stdout)
    gid = int(instance.box.run("id", "-g", "shopkeeper").stdout)
    give(closed, uid, gid)
    instance.drop_in("root", drop_in("root-with-user"))
    instance.start()
    instance.deploy("closed")
    with LoadClient(instance.target, fresh(2, think_s=0.002)) as load:
        load.wait_answers(20)
        code, said = instance.ctl("reload")
        assert code == 0, said
        load.wait_answers(20)
        assert not (report := load.stop()).failures(), report.explain()
    assert "VENV=closed" in environment(
        instance
    )  # the supervisor has seen that interpreter (CAP_DAC_READ_SEARCH)
    owners = {
        pid: instance.box.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() for pid in instance.pids()
    }
    assert owners.pop(instance.supervisor()) == "root"
    assert set(owners.values()) == {"shopkeeper"} and len(owners) >= 2
    # A worker that hears nothing is ended all the same (CAP_KILL).
    deaf = next(iter(instance.workers().values()))
    assert instance.box.run("kill", "-STOP", str(deaf)).returncode == 0
    code, said = instance.ctl("stop", instance.socket, instance.service)
    assert code == 0 and "remains running" not in said and "Deactivated successfully" in said, said


def environment(instance: Instance) -> list[str]:
    """What the application sees: NAME=VALUE."""
    return ask(instance, "/env")[1].decode().splitlines()


def give(tree: Path, uid: int, gid: int) -> None:
    """Make it shopkeeper's, and closed to others."""
    for path in (tree, *tree.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
