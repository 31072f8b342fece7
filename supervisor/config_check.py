"""What types cannot say about a configuration: ranges, forms, uniqueness.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quiesce.shared.addresses import FD, UNIX, parse_address
from quiesce.shared.errors import ConfigError
from quiesce.supervisor.config_keys import BY_NAME
from quiesce.supervisor.config_source import check_instance_name, complaint
from quiesce.supervisor.config_text import describe
from quiesce.supervisor.fdnames import is_ours

if TYPE_CHECKING:
    from quiesce.supervisor.config import Listen, Settings

# (least, most) by key.  What must not be "none" has a least above 0.
RANGES: Mapping[str, tuple[float, float]] = {
    "service.workers": (1, 1000),  # the scoreboard has 1,024 slots, for both generations of a rollout
    "service.threads": (1, 1000),
    "rollout.health_passes": (1, 100),
    "rollout.start_timeout": (0.001, 86400),
    "rollout.max_error_rate": (0, 1),
    "rollout.max_generations": (2, 100),  # old and new: with one there is no rollout
    "rollout.history": (1, 10000),
    "worker.exit_timeout": (0.001, 3600),
    "limits.header_bytes": (256, 2**24),
    "limits.connections": (1, 10**6),
    "limits.connections_per_ip": (0, 10**6),
    "limits.header_timeout": (0.001, 86400),
}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2 token
_VARIABLE = re.compile(r"[^=\0]+")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+", re.ASCII)
_TARGET = re.compile(r"/[\x21-\x7e]*", re.ASCII)
_LISTENER = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:.+)?")


def check_values(settings: Settings, origins: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` for the first value that cannot be meant."""

    def wrong(name: str, text: str) -> ConfigError:
        return complaint(name, origins[name], text)

    check_instance_name(settings.service.name, origins["service.name"])
    _check_app(settings.service.app, origins["service.app"])
    for name, (least, most) in RANGES.items():
        section, _, leaf = name.partition(".")
        value = getattr(getattr(settings, section), leaf)
        if not least <= value <= most:
            raise wrong(
                name, f"wants {BY_NAME[name].kind.value} from {least:g} to {most:g}, not {describe(value)}"
            )
    rollout = settings.rollout
    if rollout.health_path and not _TARGET.fullmatch(rollout.health_path):
        raise wrong(
            "rollout.health_path", f'wants a path such as "/healthz", not {describe(rollout.health_path)}'
        )
    _check_ready_path(rollout.ready_path, rollout.health_path, origins["rollout.ready_path"])
    for path in rollout.warmup:
        if not _TARGET.fullmatch(path):
            raise wrong("rollout.warmup", f'wants paths such as "/", not {describe(path)}')
    if not _HOST.fullmatch(rollout.health_host):
        raise wrong("rollout.health_host", f"wants a host name, not {describe(rollout.health_host)}")
    for name, value in rollout.health_headers.items():
        if not _HEADER_NAME.fullmatch(name) or any(ord(char) < 0x20 or ord(char) > 0xFF for char in value):
            raise wrong(
                "rollout.health_headers", f"has {describe(name)}, which is no HTTP header of one line"
            )
    for name, value in settings.service.env.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise wrong("service.env", f"has {describe(name)}, which cannot be an environment variable")


def _check_ready_path(ready: str, health: str, origin: str) -> None:
    if ready and (not _TARGET.fullmatch(ready) or "?" in ready):
        raise complaint("rollout.ready_path", origin, f'wants a path such as "/ready", not {describe(ready)}')
    # The daemon answers it, before the application is asked: as a gate it would prove nothing.
    if ready and ready == health.partition("?")[0]:
        raise complaint(
            "rollout.ready_path", origin, "wants a path of its own: at health_path the application answers"
        )


def _check_app(app: str, origin: str) -> None:
    file = app.partition(":")[0].endswith(".py") or "/" in app.partition(":")[0]
    if _APP.fullmatch(app) and not file:
        return
    hint = ""
    if file:
        module = app.partition(":")[0].removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
        hint = f'; that is a file, its module would be "{module}"'
    raise complaint(
        "service.app",
        origin,
        f'wants module:attribute such as "shop.wsgi:application", not {describe(app)}{hint}',
    )


def check_listeners(listeners: Sequence[Listen], origin: str) -> None:
    """Raise :class:`ConfigError` unless there is one, and names and addresses are unique."""
    if not listeners:
        raise complaint(
            "listen", origin, 'wants at least one listener; write [[listen]] address = "127.0.0.1:8000"'
        )
    names: set[str] = set()
    addresses: set[str] = set()
    for listener in listeners:
        address = parse_address(listener.address)
        if not _LISTENER.fullmatch(listener.name):
            raise complaint(
                "listen.name", origin, f"wants letters, digits, dots or dashes, not {describe(listener.name)}"
            )
        if address.kind == FD and is_ours(address.name):
            raise complaint(
                "listen.address", origin, f'has "{address.text}", a name of quiesce\'s own; choose another'
            )
        if listener.name in names:
            raise complaint(
                "listen.name", origin, f'has "{listener.name}" twice; give each listener a name of its own'
            )
        if address.text in addresses and address.port != 0:
            raise complaint("listen.address", origin, f'has "{address.text}" twice; leave one out')
        if not 1 <= listener.backlog <= 65535:
            raise complaint(
                "listen.backlog", origin, f"wants a whole number from 1 to 65535, not {listener.backlog}"
            )
        if (address.kind != UNIX or address.abstract) and (listener.mode or listener.owner or listener.group):
            raise complaint(
                "listen.mode",
                origin,
                f"and owner and group are for unix sockets with a path, not for {address.text}",
            )
        names.add(listener.name)
        addresses.add(address.text if address.kind != FD else listener.address)
