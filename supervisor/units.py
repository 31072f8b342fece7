"""systemd units fitted to a configuration: `quiesce systemd`, and the files in ``systemd/``.

Both come from the two texts below, so they cannot drift apart; a test holds ``systemd/`` against them.
The numbers in their comments are the rules of ``systemd/README.md``.
"""

from __future__ import annotations

import math
import os
import re
import sys
from argparse import Namespace
from dataclasses import dataclass

from quiesce.shared.addresses import FD, TCP6, UNIX
from quiesce.shared.errors import ConfigError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor.cli_console import Console
from quiesce.supervisor.config import Listen, Settings, load_settings
from quiesce.supervisor.config_keys import DEFAULT_BACKLOG, DEFAULT_NAME
from quiesce.supervisor.config_source import check_instance_name

QUIESCE = "/opt/quiesce/bin/quiesce"  # what the shipped units run
USER = "quiesce"  # systemd/quiesce.sysusers makes it
STORE_MIN = 1024  # three generations of 64 workers, and room to `scale`
NOFILE_MIN = 65536
START_MIN_S = 600
STOP_MARGIN_S = 25
_HOMES = ("/home/", "/root/", "/run/user/")  # what ProtectHome= hides
_EMPTIED = ("/tmp/", "/var/tmp/")  # what the unit has of its own

_SERVICE = """\
{head}
# The numbers point at the rules in systemd/README.md.

[Unit]
Description=Python web service{of} (quiesce)
# 1: the port belongs to the socket unit; no socket, no service.
Requires={sockets}
After={sockets} network.target
# 2: a start limit would close the port as well.
StartLimitIntervalSec=0

[Service]
# 3: the supervisor says READY=1 when the application answers, not before.
Type=notify
NotifyAccess=main
Sockets={sockets}
# 4: {path_note}
ExecStart={quiesce} run --name {name} --config {config}
# 5: blocks until the new release serves or has been refused; its exit code is the answer.
ExecReload={quiesce} upgrade --name {name}
TimeoutStartSec={start}
# 6: only the supervisor hears from systemd; workers outlive it, and it waits for them when it stops.
KillMode=process
# 7: above drain_delay + drain_timeout + exit_timeout.
TimeoutStopSec={stop}s
# 8: O_NONBLOCK is shared with every worker that holds the socket.
NonBlocking=yes
# 9: after a crash, a hang and a failed start; not after a clean stop, nor after exit code 2 (the configuration).
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=500ms
WatchdogSec=30s
# 10: 8 + listeners + (3 x workers + 2) x (max_generations + 1): what the next supervisor finds when this one is killed.
FileDescriptorStoreMax={store}
# 11: one worker that the kernel kills is replaced; it is no reason to stop the others.
OOMPolicy=continue
# 12: nobody is root.
User={user}
{group}# 13: control socket and lock; what a reboot must not lose; temporary files, which outlive a restart.
RuntimeDirectory=quiesce/{name}
RuntimeDirectoryPreserve=restart
StateDirectory=quiesce/{name}
StateDirectoryMode=0700
CacheDirectory=quiesce/{name} quiesce/{name}/tmp
CacheDirectoryMode=0700
BindPaths=/var/cache/quiesce/{name}/tmp:/tmp /var/cache/quiesce/{name}/tmp:/var/tmp
Environment=TMPDIR=/var/cache/quiesce/{name}/tmp
UMask=0077
# 14: a descriptor for every connection; limits.connections counts per worker.
LimitNOFILE={nofile}
# 15: what the service may write beside its own directories: nothing.  A media directory: drop-ins/media-directory.conf.
ProtectSystem=strict
{writable}ProtectHome={home}
PrivateTmp=yes
PrivateMounts=yes
PrivateDevices=yes
DevicePolicy=closed
# 16: what it may not see or change of the machine.
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
# 17: what it may not become.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
# 18: what it may ask of the kernel.  @chown is for unix sockets and control_group.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=@chown
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
Also={sockets}
"""

_SOCKET = """\
{head}

[Unit]
Description=Listening socket {listener} of a Python web service{of} (quiesce)

[Socket]
{note}ListenStream={listen}
{options}Service={service}
# 19: one unit for each role; listeners are found by this name.
FileDescriptorName={listener}
# 20: the longest queue that net.core.somaxconn allows.
Backlog={backlog}

[Install]
WantedBy=sockets.target
"""


@dataclass(frozen=True)
class SocketUnit:
    """One listener: where it listens, and what its file says about itself.  Written as in a unit."""

    listener: str  # FileDescriptorName=, and fd://NAME in the configuration
    unit: str
    listen: str  # ListenStream=
    head: str
    note: str = ""
    options: tuple[str, ...] = ()
    backlog: int = DEFAULT_BACKLOG


@dataclass(frozen=True)
class Plan:
    """What differs from one instance's units to another's.  The defaults are those of ``systemd/``.

    Everything is written as in a unit: specifiers are meant, paths are quoted where they must be.
    """

    name: str  # as in paths: the instance's, or %i
    of: str  # " shop" in descriptions
    unit: str
    head: str
    config: str
    sockets: tuple[SocketUnit, ...]
    quiesce: str = QUIESCE
    path_note: str = "change this path (here and below) if quiesce lives elsewhere."
    user: str = USER
    group: tuple[str, ...] = ()  # lines
    writable: tuple[str, ...] = ()
    protect_home: str = "yes"
    start_s: int = START_MIN_S
    stop_s: int = 60
    store: int = STORE_MIN
    nofile: int = NOFILE_MIN


def service_text(plan: Plan) -> str:
    """The .service unit."""
    return _SERVICE.format(
        head=plan.head,
        of=plan.of,
        sockets=" ".join(socket.unit for socket in plan.sockets),
        name=plan.name,
        config=plan.config,
        quiesce=plan.quiesce,
        path_note=plan.path_note,
        start=f"{plan.start_s // 60}min" if plan.start_s % 60 == 0 else f"{plan.start_s}s",
        stop=plan.stop_s,
        store=plan.store,
        user=plan.user,
        group="".join(f"{line}\n" for line in plan.group),
        nofile=plan.nofile,
        writable="".join(f"ReadWritePaths={_optional(path)}\n" for path in plan.writable),
        home=plan.protect_home,
    )


def socket_text(plan: Plan, socket: SocketUnit) -> str:
    """One .socket unit."""
    return _SOCKET.format(
        head=socket.head,
        listener=socket.listener,
        of=plan.of,
        note=socket.note,
        listen=socket.listen,
        options="".join(f"{line}\n" for line in socket.options),
        service=plan.unit,
        backlog=socket.backlog,
    )


def shipped() -> dict[str, str]:
    """Name and text of the four files in ``systemd/``."""
    return _files(_SHIPPED_ONE) | _files(_SHIPPED_MANY)


def _files(plan: Plan, what: str = "all") -> dict[str, str]:
    files = {plan.unit: service_text(plan)} if what != "socket" else {}
    if what != "service":
        files |= {socket.unit: socket_text(plan, socket) for socket in plan.sockets}
    return {unit.replace("%i", ""): text for unit, text in files.items()}


_SHIPPED_ONE = Plan(
    name="default",
    of="",
    unit="quiesce.service",
    head='# One web service under quiesce: the instance named "default".  For several, use quiesce@.service.',
    config="/etc/quiesce/default.toml",
    sockets=(
        SocketUnit(
            listener="http",
            unit="quiesce.socket",
            listen="80",
            head="""\
# The listening socket of quiesce.service.  In the configuration it is  address = "fd://http".
# Another port: systemctl edit quiesce.socket, and there
#   [Socket]
#   ListenStream=
#   ListenStream=0.0.0.0:8080""",
        ),
    ),
)

_SHIPPED_MANY = Plan(
    name="%i",
    of=" %i",
    unit="quiesce@%i.service",
    head="# The web service named by the instance: quiesce@shop.service reads /etc/quiesce/shop.toml.",
    config="/etc/quiesce/%i.toml",
    sockets=(
        SocketUnit(
            listener="http",
            unit="quiesce@%i.socket",
            listen="/run/quiesce-%i.sock",
            head="""\
# The listening socket of quiesce@NAME.service: a unix socket for the proxy in front; instances need no port numbers.
# In the configuration it is  address = "fd://http".  A TCP port instead: systemctl edit quiesce@NAME.socket, and there
#   [Socket]
#   ListenStream=
#   ListenStream=127.0.0.1:8001""",
            note="# Not below /run/quiesce: those folders come and go with the service.\n",
            options=(
                "# 21: who may connect: the group that the proxy runs as (nginx, caddy, ... elsewhere).",
                "SocketGroup=www-data",
                "SocketMode=0660",
            ),
        ),
    ),
)


def needed_store(workers: int, listeners: int, max_generations: int) -> int:
    """Descriptors in the manager's store when everything that may run at once does.

    A worker has three (channel, pidfd, output), a release two (its lane), the instance eight (state, lock,
    control socket, scoreboard, log, ...); a rollout brings one generation more than may stay.
    """
    return 8 + listeners + (3 * workers + 2) * (max_generations + 1)


def plan_for(settings: Settings, name: str, config: str, quiesce: str) -> Plan:
    """The units of one configuration.

    Args:
        settings: The configuration.
        name: The instance's, checked.
        config: Absolute path of its file.
        quiesce: Absolute path of the command.

    Raises:
        ConfigError: No unit can be made of it.
    """
    service, rollout = settings.service, settings.rollout
    base = "quiesce" if name == DEFAULT_NAME else f"quiesce-{name}"
    paths = [config, quiesce, service.release, *service.env_files]
    for path in paths:
        _refuse_emptied(path)
    in_homes = any(_below(path, _HOMES) for path in paths)
    group = [f"Group={service.group}"] if service.group else []
    if service.control_group:
        group.append(f"SupplementaryGroups={service.control_group}")
    return Plan(
        name=name,
        of=f" {name}",
        unit=f"{base}.service",
        head=f"# The web service {name}.  Made by `quiesce systemd {name} --config {config}`.",
        config=_word(config),
        sockets=tuple(
            _socket(item, base, name, config, first=index == 0) for index, item in enumerate(settings.listen)
        ),
        quiesce=_word(quiesce),
        path_note="the supervisor's own virtual environment; a release brings its own interpreter.",
        user=service.user or USER,
        group=tuple(group),
        writable=_writable(settings),
        protect_home="read-only" if in_homes else "yes",
        start_s=max(START_MIN_S, 60 * math.ceil((2 * rollout.start_timeout + rollout.bake) / 60 + 1)),
        stop_s=math.ceil(rollout.drain_delay + rollout.drain_timeout + settings.worker.exit_timeout)
        + STOP_MARGIN_S,
        store=max(STORE_MIN, needed_store(service.workers, len(settings.listen), rollout.max_generations)),
        nofile=max(NOFILE_MIN, 2 * settings.limits.connections + 4096),
    )


def _socket(item: Listen, base: str, name: str, config: str, *, first: bool) -> SocketUnit:
    address = item.parsed()
    listener = address.name if address.kind == FD else item.name
    unit = f"{base}.socket" if first else f"{base}@{listener}.socket"
    head = f'# Listener {listener} of {base}.service.  In {config} it is  address = "fd://{listener}".'
    options: list[str] = []
    if address.kind == FD:
        listen = _guess(listener, name)
        note = f"# {config} does not say where this is: change the line if it is elsewhere.\n"
    else:
        listen = (address.path if address.kind == UNIX else address.text).replace("%", "%%")
        note = f"# systemd binds it, not quiesce: the configuration must say fd://{listener} and not {address.text}.\n"
    if address.kind != UNIX and address.text.endswith(":0"):
        raise ConfigError(
            f"listener {listener!r} leaves the port to the kernel; a socket unit wants a number"
        )
    if address.kind == TCP6:
        options.append("BindIPv6Only=ipv6-only")
    if listen.startswith("/"):
        options += [f"SocketUser={item.owner}"] if item.owner else []
        options += [] if item.group else ["# Who may connect: the group of the proxy in front."]
        options.append(f"SocketGroup={item.group or 'www-data'}")
        options.append(f"SocketMode={item.mode or '0660'}")
    return SocketUnit(listener, unit, listen, head, note, tuple(options), item.backlog)


def _guess(listener: str, name: str) -> str:
    """Where a socket listens of which the configuration knows the name only."""
    if name == DEFAULT_NAME and listener in ("http", "https"):
        return "80" if listener == "http" else "443"
    return f"/run/quiesce-{name}.sock" if listener == "http" else f"/run/quiesce-{name}@{listener}.sock"


def _optional(word: str) -> str:
    """A path that may be missing: the dash stands inside the quotes.  systemd.exec(5) ReadWritePaths=."""
    return f'"-{word[1:]}' if word.startswith('"') else f"-{word}"


def _writable(settings: Settings) -> tuple[str, ...]:
    """What must be writable beside the unit's own directories: the folder of a log file."""
    folder = os.path.dirname(settings.log.file)
    own = ("/run/quiesce/", "/var/lib/quiesce/", "/var/cache/quiesce/")
    return (_word(folder),) if folder and not _below(settings.log.file, own) else ()


def _refuse_emptied(path: str) -> None:
    if _below(path, _EMPTIED):
        raise ConfigError(
            f"{path} lies in a temporary directory, and the unit has one of its own (PrivateTmp=); "
            "put it elsewhere, as in /srv or /opt"
        )


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return os.path.normpath(path).startswith(folders)


def _word(path: str) -> str:
    """A path as one word of a unit's line.

    Raises:
        ConfigError: It has characters that are more trouble than they are worth.
    """
    if re.search(r"[\x00-\x1f\x7f\"'\\$;]", path):
        raise ConfigError(
            f"the path {path!r} has quotes, a dollar sign, a semicolon or control characters; rename it"
        )
    text = path.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def notes_on(settings: Settings, plan: Plan, config: str, quiesce: str) -> list[str]:
    """What the units cannot do by themselves, in sentences."""
    notes = [
        f'in {config}, write address = "fd://{socket.listener}" for {item.address}: systemd binds it now'
        for item, socket in zip(settings.listen, plan.sockets, strict=True)
        if item.parsed().kind != FD
    ]
    if plan.user == USER:
        notes.append(
            "the service runs as the user quiesce: make it with `useradd --system quiesce` if there is none, "
            "and let it read the release and the configuration"
        )
    if settings.service.control_group:
        notes.append(
            f"the group {settings.service.control_group} must exist, or the service does not start (216/GROUP)"
        )
    if plan.writable:
        notes.append(
            f"{' '.join(plan.writable)} must be there and belong to the service's user; under systemd the journal "
            "can have the log instead (leave out log.file)"
        )
    if plan.protect_home != "yes":
        notes.append(
            "something lies in a home directory, which the unit may read therefore (ProtectHome=read-only)"
        )
    if not os.access(quiesce, os.X_OK):
        notes.append(f"{quiesce} is not on this machine; --quiesce PATH names another")
    return notes


def command(args: Namespace, console: Console) -> int:
    """`quiesce systemd NAME`: print units, or write them.

    Raises:
        ConfigError: The name, the configuration or a path cannot be meant; nothing has been written.
    """
    name = check_instance_name(args.name, "option NAME")
    if name.startswith("-"):
        raise ConfigError(f"the name {name!r} would be read as an option; begin with a letter or digit")
    config = args.config or f"/etc/quiesce/{name}.toml"
    loaded = load_settings({}, name, config, os.getcwd())
    assert loaded.file is not None
    config, quiesce = os.path.normpath(loaded.file), _quiesce(args.quiesce)
    plan = plan_for(loaded.settings, name, config, quiesce)
    files = _files(plan, args.print)
    notes = notes_on(loaded.settings, plan, config, quiesce)
    if args.output:
        _write(files, args.output)
    if console.as_json:
        return console.result("systemd", int(Exit.OK), "", "", {"files": files, "notes": notes})
    console.out(_told(files, args.output))
    for note in notes:
        console.error(f"quiesce: note: {note}\n")
    return int(Exit.OK)


def _quiesce(given: str | None) -> str:
    """The command that the units run: the one that was named, else this one."""
    if given:
        return os.path.abspath(given)
    ours = os.path.abspath(sys.argv[0])
    return ours if os.path.basename(ours) == "quiesce" else os.path.join(sys.prefix, "bin", "quiesce")


def _write(files: dict[str, str], folder: str) -> None:
    try:
        for unit, text in files.items():
            path = os.path.join(folder, unit)
            with open(path + ".new", "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
            os.replace(path + ".new", path)
    except OSError as exc:
        raise ConfigError(
            f"cannot write {exc.filename}: {exc.strerror}; name another directory with --output"
        ) from exc


def _told(files: dict[str, str], folder: str | None) -> str:
    if folder:
        return "".join(f"{os.path.join(folder, unit)}\n" for unit in files)
    if len(files) == 1:
        return next(iter(files.values()))
    # As `systemctl cat` shows them.
    return "\n".join(f"# /etc/systemd/system/{unit}\n{text}" for unit, text in files.items())
