"""Instances of quiesce as services of a box: what the systemd stories share."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apps.releases import Behaviour, Notes, build, link
from sdbox.box import Box, require_image
from sdbox.installation import QUIESCE, ROOT, install

IMAGES = ("host", "trixie")  # systemd 252 where this machine is Debian 12; systemd 257
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".socket"))
DROP_INS = ROOT / "systemd" / "drop-ins"

WELL = Behaviour()

CONFIG = """
[service]
app = "shop:app"
release = "{current}"
workers = 2
threads = 4

[[listen]]
name = "http"
address = "fd://http"

[rollout]
health_path = "/healthz"
bake = "0.2s"
drain_timeout = "5s"
"""


@dataclass(frozen=True)
class Host:
    """A booted box with quiesce and its units installed as systemd/README.md says.

    ``directory`` is seen under the same path inside and outside, so that a ``current`` link means the same.
    """

    box: Box
    directory: Path

    def write_unit(self, name: str, text: str) -> None:
        """A unit, or a drop-in (``UNIT.d/NAME.conf``)."""
        path = self.box.root / "etc/systemd/system" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    @property
    def version(self) -> int:
        """Of its systemd."""
        return int(self.box.run("systemctl", "--version").stdout.split()[1])

    def reload_units(self) -> None:
        assert self.box.run("systemctl", "daemon-reload").returncode == 0


@dataclass(frozen=True)
class Machine:
    """What outlives a boot: the releases, quiesce itself, /var/lib/quiesce.  The rest is fresh at each boot."""

    image: str
    directory: Path
    binds: tuple[str, ...]

    @contextmanager
    def boot(self) -> Iterator[Host]:
        """Boot it, with quiesce set up as systemd/README.md says."""
        with Box(f"units-{self.image}", self.binds, self.image) as box:
            host = Host(box, self.directory)
            prepare(host)
            yield host


@contextmanager
def machine(image: str) -> Iterator[Machine]:
    """A machine of that image, not booted yet."""
    require_image(image)
    # Not below /tmp: the services have one of their own.
    os.makedirs("/srv", exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="quiesce-", dir="/srv"))
    directory.chmod(0o755)
    try:
        (directory / "state").mkdir()
        binds = (str(directory), f"{directory}/state:/var/lib/quiesce", *install(directory))
        yield Machine(image, directory, binds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def booted(image: str) -> Iterator[Host]:
    """A machine that is booted once."""
    with machine(image) as one, one.boot() as host:
        yield host


def prepare(host: Host) -> None:
    """What an administrator does once on a fresh machine."""
    for unit in UNITS:
        host.write_unit(unit.name, unit.read_text())
    for name, folder in (("sysusers", "sysusers.d"), ("tmpfiles", "tmpfiles.d")):
        target = host.box.root / "etc" / folder
        target.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "systemd" / f"quiesce.{name}", target / "quiesce.conf")
    for command in (("systemd-sysusers",), ("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/quiesce.conf")):
        done = host.box.run(*command)
        assert done.returncode == 0, done.stderr
    host.reload_units()


@dataclass(frozen=True)
class Instance:
    """One instance of quiesce@.service, with releases a (serves at first), b, and bad (fails on import)."""

    host: Host
    name: str
    releases: Path
    unit: str = ""  # without its suffix; default: quiesce@NAME

    @property
    def box(self) -> Box:
        return self.host.box

    @property
    def service(self) -> str:
        return f"{self.unit or f'quiesce@{self.name}'}.service"

    @property
    def socket(self) -> str:
        return f"{self.unit or f'quiesce@{self.name}'}.socket"

    @property
    def target(self) -> str:
        """Its listening socket as the load client, which runs outside, sees it."""
        return f"unix:{self.box.root}/run/quiesce-{self.name}.sock"

    @property
    def config(self) -> Path:
        """Its configuration, seen from outside."""
        return self.box.root / "etc/quiesce" / f"{self.name}.toml"

    @property
    def notes(self) -> Notes:
        return Notes(self.releases / "notes")

    def build(self, release: str, behaviour: Behaviour = WELL) -> Path:
        return build(self.releases, release, self.notes, behaviour=behaviour).path

    def deploy(self, release: str) -> None:
        link(self.releases / "current", self.releases / release)

    def drop_in(self, name: str, text: str) -> None:
        """`systemctl edit`: a drop-in for this instance, in force at its next start."""
        self.host.write_unit(f"{self.service}.d/{name}.conf", text)
        self.host.reload_units()

    def ctl(self, verb: str, *units: str) -> tuple[int, str]:
        """systemctl VERB; its exit status, and what it and the journal said."""
        result = self.box.run("systemctl", verb, *(units or (self.service,)))
        return result.returncode, result.stderr + self.box.journal("-u", self.service)

    def start(self) -> None:
        code, said = self.ctl("start")
        assert code == 0, said

    def quiesce(self, *words: str, user: str = "root") -> tuple[int, str]:
        """A command as a person of the box types it; exit status and output."""
        done = self.box.run(QUIESCE, *words, "--name", self.name, user=user)
        return done.returncode, done.stdout + done.stderr

    def shown(self, *properties: str) -> dict[str, str]:
        """Properties of the service."""
        result = self.box.run("systemctl", "show", "-p", ",".join(properties), self.service)
        return dict(line.split("=", 1) for line in result.stdout.splitlines())

    def pids(self) -> list[str]:
        """The processes in the service's cgroup, as the box numbers them."""
        control_group = self.shown("ControlGroup")["ControlGroup"]
        if not control_group:
            return []
        return self.box.run("cat", f"/sys/fs/cgroup{control_group}/cgroup.procs").stdout.split()

    def workers(self) -> dict[str, int]:
        """Pid of each accepting worker."""
        workers = self.status()["workers"]
        assert isinstance(workers, list)
        return {worker["id"]: worker["pid"] for worker in workers if worker["state"] == "accepting"}

    def status(self) -> dict[str, object]:
        code, said = self.quiesce("status", "--json")
        assert code == 0, said
        document: dict[str, object] = json.loads(said)
        return document

    def rollout(self) -> object:
        """The state of the rollout; "unanswered" when nobody answers."""
        code, said = self.quiesce("status", "--json")
        return json.loads(said)["rollout"]["state"] if code == 0 else "unanswered"

    def messages(self) -> list[str]:
        """The journal of the service, messages only."""
        return self.box.journal("-u", self.service, "-o", "cat").splitlines()

    def supervisor(self) -> str:
        return self.shown("MainPID")["MainPID"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def ask(instance: Instance, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """One request from outside; status and body of the answer."""
    connection = _UnixConnection(instance.target.removeprefix("unix:"))
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST" if body is not None else "GET", path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def add_instance(host: Host, name: str, unit: str = "", config: str = CONFIG) -> Instance:
    """Write its releases and its configuration; nothing is started."""
    instance = Instance(host, name, host.directory / name, unit)
    if not instance.releases.exists():  # else from before a reboot
        instance.build("a")
        instance.build("b")
        instance.build("bad", Behaviour(on_import="raise"))
        instance.notes.path.chmod(0o777)
        instance.deploy("a")
    instance.config.write_text(config.format(current=instance.releases / "current"))
    instance.drop_in("50-notes", f"[Service]\nReadWritePaths={instance.notes.path}\n")
    return instance


@contextmanager
def prepared(host: Host, name: str, unit: str = "", config: str = CONFIG) -> Iterator[Instance]:
    """An instance that has not been started; ends it at the end of the test."""
    instance = add_instance(host, name, unit, config)
    try:
        yield instance
    finally:
        instance.ctl("stop", instance.socket, instance.service)


def wait_gone(host: Host, pid: str, timeout_s: float = 30.0) -> None:
    """Return when the process ``pid`` of the box has ended."""
    outside = outside_pid(host, pid)
    if outside is None:
        return
    try:
        pidfd = os.pidfd_open(outside)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], timeout_s)[0], f"process {pid} is still there"
    finally:
        os.close(pidfd)


def outside_pid(host: Host, pid: str) -> int | None:
    """The number that a process of the box has out here."""
    namespace = os.readlink(f"{host.box.root.parent}/ns/pid")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.readlink(f"/proc/{entry}/ns/pid") != namespace:
                continue
            for line in Path(f"/proc/{entry}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == pid:
                    return int(entry)
        except OSError:
            continue  # it has ended meanwhile
    return None
