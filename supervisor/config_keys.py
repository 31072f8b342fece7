"""The table of configuration keys: what each is called, wants, defaults to and means.  Pure.

It feeds the reader of ``quiesce.toml``, the command line options, their help and
``check --show-config``.  It imports nothing, because every command line needs it and
``quiesce status`` must be quick.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What a key wants, in the words of an error message."""

    TEXT = "text in quotes"
    INTEGER = "a whole number"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    DURATION = "a duration"
    SIZE = "a size"
    OCTAL = "octal mode bits in quotes"
    LIST = "a list of texts"
    TABLE = "a table of texts"


class Change(Enum):
    """When a changed value comes into force."""

    LIVE = "live"  # with `reconfigure`: the supervisor itself uses it
    ROLLOUT = "rollout"  # with the next `upgrade`: workers are made with it
    RESTART = "restart"  # with the next cold start


class Key(NamedTuple):
    """One key of ``quiesce.toml`` and its option."""

    name: str  # dotted: "rollout.bake"
    kind: Kind
    default: object  # as it stands in the decoded settings: seconds, bytes, tuples
    help: str
    change: Change
    metavar: str = ""
    option: str = ""  # when it is not the key's own name with dashes
    choices: tuple[str, ...] = ()
    path: bool = False  # relative to the file's folder, or for an option to the working directory
    later: str = ""  # the feature that is not there yet: anything but the default is refused

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.partition(".")[2]

    @property
    def flag(self) -> str:
        return "--" + (self.option or self.leaf.replace("_", "-"))

    @property
    def required(self) -> bool:
        return self.name == "service.app"


INTERFACES = ("auto", "wsgi", "asgi", "native")
LEVELS = ("debug", "info", "warning", "error")
DEFAULT_ADDRESS = "127.0.0.1:8000"
DEFAULT_NAME = "default"
WORKERS_AUTO = 0  # the CPUs that cgroup and affinity allow: counted when the configuration is read
# The kernel lowers it to net.core.somaxconn, so this asks for all there is: listen(2).
DEFAULT_BACKLOG = 65535

T, N, F, B, D, S, X, L, M = (
    *(Kind.TEXT, Kind.INTEGER, Kind.NUMBER, Kind.BOOLEAN, Kind.DURATION),
    *(Kind.SIZE, Kind.OCTAL, Kind.LIST, Kind.TABLE),
)
# What decides: does `recipes.recipe` or `release_dir.resolve` read it?  Then running workers keep what
# they have, even where the supervisor uses it as well (drain_timeout): both must mean the same.
LIVE, ROLLOUT, RESTART = Change.LIVE, Change.ROLLOUT, Change.RESTART

KEYS: tuple[Key, ...] = (
    Key("service.name", T, DEFAULT_NAME, "the instance's name", RESTART, "NAME"),
    Key("service.app", T, "", "module:attribute, or 'module:factory()'", ROLLOUT, "APP"),
    Key("service.interface", T, "auto", "how the application is called", ROLLOUT, choices=INTERFACES),
    Key(
        "service.release",
        T,
        ".",
        "directory of the release; symlinks are resolved at each upgrade",
        ROLLOUT,
        "DIR",
        path=True,
    ),
    Key(
        "service.app_dir",
        T,
        ".",
        "working directory and first on sys.path, relative to the release",
        ROLLOUT,
        "DIR",
    ),
    Key(
        "service.python",
        T,
        "",
        "interpreter, relative to the release (default: .venv/bin/python if there)",
        ROLLOUT,
        "PATH",
    ),
    Key("service.workers", N, WORKERS_AUTO, "worker processes (default: the CPUs we may use)", LIVE, "N"),
    Key("service.threads", N, 8, "threads of a WSGI worker; 1 = inline", ROLLOUT, "N"),
    Key("service.user", T, "", "workers drop to this user", ROLLOUT, "USER"),
    Key("service.group", T, "", "workers drop to this group (default: the user's)", ROLLOUT, "GROUP"),
    Key("service.umask", X, 0o022, "file mode mask of the workers", ROLLOUT, "OCTAL"),
    Key("service.control_group", T, "", "group whose members may use every command", RESTART, "GROUP"),
    Key(
        "service.env_files",
        L,
        (),
        "file of KEY=VALUE lines, read at each rollout (repeatable)",
        ROLLOUT,
        "FILE",
        path=True,
    ),
    Key("service.env", M, {}, "environment variable of the workers (repeatable)", ROLLOUT, "KEY=VALUE"),
    Key(
        "rollout.health_path",
        T,
        "",
        "path that must answer 2xx or 3xx (default: /, and anything below 500)",
        ROLLOUT,
        "PATH",
    ),
    Key("rollout.health_host", T, "localhost", "Host header of probes", ROLLOUT, "HOST"),
    Key("rollout.health_headers", M, {}, "further header of probes (repeatable)", ROLLOUT, "NAME=VALUE"),
    Key("rollout.health_passes", N, 2, "probes in a row that must pass", ROLLOUT, "N"),
    Key("rollout.warmup", L, (), "path to request before a worker accepts (repeatable)", ROLLOUT, "PATH"),
    Key("rollout.start_timeout", D, 30.0, "time a worker has to say ready", ROLLOUT, "TIME"),
    Key("rollout.bake", D, 10.0, "time in which a new release is undone at once if it fails", LIVE, "TIME"),
    Key("rollout.drain_timeout", D, 30.0, "time old workers have to finish", ROLLOUT, "TIME"),
    Key("rollout.drain_delay", D, 0.0, "time between 'not ready' and quiesce", LIVE, "TIME"),
    Key(
        "rollout.ready_path",
        T,
        "",
        "readiness path of a load balancer, answered by the daemon",
        ROLLOUT,
        "PATH",
    ),
    Key("rollout.max_error_rate", F, 0.05, "share of 5xx answers in the bake that undoes it", LIVE, "SHARE"),
    Key("rollout.max_generations", N, 3, "releases that may run at once, draining ones included", LIVE, "N"),
    Key("rollout.history", N, 50, "rollouts remembered", LIVE, "N"),
    Key("worker.max_requests", N, 0, "replace a worker after about N requests", LIVE, "N"),
    Key("worker.max_age", D, 0.0, "replace a worker after about this time", LIVE, "TIME"),
    Key("worker.max_rss", S, 0, "replace a worker that has more memory", LIVE, "SIZE"),
    Key("worker.stall_timeout", D, 30.0, "replace a worker whose loop stands still", LIVE, "TIME"),
    Key("worker.request_timeout", D, 0.0, "longest time for one request; 0 = none", ROLLOUT, "TIME"),
    Key("worker.exit_timeout", D, 5.0, "time a worker has to exit", ROLLOUT, "TIME"),
    Key("limits.header_bytes", S, 32 * 1024, "largest request head", ROLLOUT, "SIZE"),
    Key("limits.body_bytes", S, 0, "largest request body; 0 = none", ROLLOUT, "SIZE"),
    Key("limits.connections", N, 10000, "connections of one worker", ROLLOUT, "N"),
    Key("limits.connections_per_ip", N, 0, "connections of one client; 0 = none", ROLLOUT, "N"),
    Key("limits.header_timeout", D, 10.0, "time for a request's head, in all", ROLLOUT, "TIME"),
    Key("limits.body_timeout", D, 30.0, "longest silence in a request's body", ROLLOUT, "TIME"),
    Key(
        "limits.body_min_rate",
        S,
        500,
        "bytes a second that a client sends or takes, after 30 s; 0 = none",
        ROLLOUT,
        "SIZE",
    ),
    Key("limits.send_timeout", D, 60.0, "longest time a client takes nothing", ROLLOUT, "TIME"),
    Key("limits.idle_timeout", D, 75.0, "longest time between two requests", ROLLOUT, "TIME"),
    Key("log.level", T, "info", "how much is logged", ROLLOUT, option="log-level", choices=LEVELS),
    Key(
        "log.format",
        T,
        "text",
        "text or json",
        RESTART,
        "FORMAT",
        "log-format",
        ("text", "json"),
        later="JSON logs",
    ),
    Key("log.file", T, "", "log file (default: standard error)", LIVE, "FILE", option="log-file", path=True),
    Key("log.access", B, False, "log every request", RESTART, option="log-access", later="the access log"),
)

BY_NAME = {key.name: key for key in KEYS}
SECTIONS = ("service", "listen", "rollout", "worker", "limits", "log")
LISTEN_KEYS = ("name", "address", "mode", "owner", "group", "backlog")
# service.name has --name, which is an option of every command; listeners have --bind.
OPTION_KEYS = tuple(key for key in KEYS if key.name not in ("service.name", "service.app"))
