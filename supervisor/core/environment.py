"""A worker's environment, from the supervisor's and the configuration.  Pure."""

from collections.abc import Iterable, Mapping

from quiesce.shared.errors import ConfigError

#: What systemd, or the keeper, or the supervisor before a `reexec` said to the supervisor, and to nobody else.
#: What is said to a whole service stays: INVOCATION_ID, JOURNAL_STREAM (workers write to that stream too), *_DIRECTORY,
#: TMPDIR, SYSTEMD_EXEC_PID (which is there for children to compare).
_OURS = frozenset(
    (
        "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE", "MAINPID",
        "EXIT_CODE", "EXIT_STATUS", "SERVICE_RESULT",  # of Exec lines that run after the main process
        "REMOTE_ADDR", "REMOTE_PORT",  # of Accept=yes; an application would take them for CGI's
        "QUIESCE_KEEPER", "QUIESCE_KEPT", "QUIESCE_ARGV",
    )
)  # fmt: skip
_OURS_PREFIX = "LISTEN_"


def build(
    inherited: Mapping[str, str],
    files: Iterable[Mapping[str, str]],
    configured: Mapping[str, str],
    about: Mapping[str, str],
    account: Mapping[str, str],
) -> dict[str, str]:
    """The environment of a worker; each argument wins over those before it.

    Args:
        inherited: The supervisor's own.
        files: `env_files`, in order.
        configured: `env`.
        about: QUIESCE_NAME and its like.
        account: HOME, USER, LOGNAME, if workers run as somebody else; weaker than files and `env`.
    """
    env = {
        name: value
        for name, value in inherited.items()
        if name not in _OURS and not name.startswith(_OURS_PREFIX)
    }
    env.update(account)
    for file in files:
        env.update(file)
    env.update(configured)
    env.update(about)
    return env


def parse_env_file(text: str, name: str) -> dict[str, str]:
    """Read lines of ``NAME=value``, as systemd's EnvironmentFile= and shells write them.

    Empty lines and lines that begin with ``#`` or ``;`` are skipped, ``export`` is allowed, one pair
    of quotes round the value is taken off; in double quotes backslash escapes the next character.

    Raises:
        ConfigError: A line is none of these; its value is not shown.
    """
    env: dict[str, str] = {}
    # Not splitlines(): a form feed or U+2028 in a value ends no line.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.removeprefix("export ").partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise ConfigError(f"{name}:{number}: a line must be NAME=value")
        if "\0" in value:
            raise ConfigError(f"{name}:{number}: a NUL cannot be in the environment; is this a text file?")
        env[key] = _unquote(value.strip(), f"{name}:{number}")
    return env


def _unquote(value: str, where: str) -> str:
    if value[:1] not in ("'", '"'):
        return value
    quote, body = value[0], value[1:]
    if len(value) < 2 or not body.endswith(quote):
        raise ConfigError(f"{where}: the value begins with {quote} and does not end with it")
    body = body[:-1]
    if quote == "'":
        return body
    out: list[str] = []
    escaped = False
    for char in body:
        if not escaped and char == "\\":
            escaped = True
            continue
        out.append(char)
        escaped = False
    return "".join(out)
