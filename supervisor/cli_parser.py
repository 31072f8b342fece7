"""The command line: commands, options, help that teaches.  Imports nothing of the supervisor."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import quiesce
from quiesce.supervisor.config_keys import OPTION_KEYS, Key, Kind

Add = Callable[[argparse.ArgumentParser], None]


class UsageError(Exception):
    """The command line cannot be meant: exit code 2."""

    def __init__(self, text: str, usage: str = "") -> None:
        super().__init__(text)
        self.usage = usage


class Command(NamedTuple):
    """One word behind `quiesce`."""

    name: str
    help: str  # one line
    example: str
    add: Add


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Python 3.14 colours what it formats by what standard output is, and our usage goes to standard error.
        self.color = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage())


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def _nothing(parser: argparse.ArgumentParser) -> None:
    """This command has no options of its own."""


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-keeper",
        action="store_true",
        help="no small parent that restarts a killed supervisor: for those who have their own",
    )
    _configuration(parser)


def _configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", metavar="APP", nargs="?", help="module:attribute, as in shop.wsgi:application")
    parser.add_argument("--config", metavar="FILE", help="default: ./quiesce.toml, /etc/quiesce/NAME.toml")
    bind = "address to listen on (repeatable): 127.0.0.1:8000, [::]:80, unix:/path, fd://NAME"
    parser.add_argument("--bind", metavar="ADDR", action="append", help=bind)
    title = ""
    for key in OPTION_KEYS:
        if key.section != title:
            title = key.section
            group = parser.add_argument_group(f"[{title}]")
        _option(group, key)


def _option(group: Any, key: Key) -> None:
    flags = [key.flag]
    if key.kind in (Kind.LIST, Kind.TABLE) and key.flag.endswith("s"):
        flags.append(key.flag[:-1])  # --env-file and --health-header read better when repeated
    settings: dict[str, Any] = {"dest": key.name, "help": key.help, "default": argparse.SUPPRESS}
    if key.later:
        settings["help"] = argparse.SUPPRESS
    if key.kind is Kind.BOOLEAN:
        settings.update(action="store_true")
    elif key.choices:
        settings.update(metavar="|".join(key.choices))  # judged with the configuration, in its words
    else:
        settings.update(metavar=key.metavar)
    if key.kind in (Kind.LIST, Kind.TABLE):
        settings.update(action="append")
    group.add_argument(*flags, **settings)


def _upgrade(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--release",
        metavar="DIR",
        help="directory of the new release (default: as configured, resolved afresh)",
    )
    add("--label", metavar="TEXT", help="a name for people: a tag, a commit")
    add("--python", metavar="PATH", help="interpreter, relative to the release")
    add("--app", metavar="APP", help="module:attribute")
    _bake(parser)
    add("--if-changed", action="store_true", help="do nothing if the same release serves already")
    add("--force", action="store_true", help="no probe, no bake; recorded in the history")
    add("--wait-drained", action="store_true", help="return only when the old workers have gone")
    add("--canary", metavar="N|P%", help=argparse.SUPPRESS)
    _no_wait(parser)


def _no_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return at once; see `quiesce status`")


def _bake(parser: argparse.ArgumentParser) -> None:
    text = "time in which a failure still undoes it, as in 10s; 0 = none"
    parser.add_argument("--bake", metavar="TIME", help=text)


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="WHICH", nargs="?", help="release id, label or directory")
    _bake(parser)
    _no_wait(parser)


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="redraw every second, until Ctrl-C")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", type=int, help="only the newest N")


def _scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", metavar="N", type=int, help="worker processes, 1 to 1000")
    _no_wait(parser)


def _what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        default="all",
        help="a worker id (r42/1), a release id (r42), or all",
    )


def _stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not wait for requests under way")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--show-config", action="store_true", help="print every key, value and origin; start nothing"
    )
    _configuration(parser)


def _reexec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the interpreter of another installation of quiesce (default: the same)",
    )
    _no_wait(parser)


def _systemd(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="the instance; the units are called quiesce-NAME or quiesce@NAME")
    add("--config", metavar="FILE", help="its configuration (default: /etc/quiesce/NAME.toml)")
    add(
        "--print",
        metavar="service|socket|all",
        choices=("service", "socket", "all"),
        default="all",
        help="which of its units (default: all)",
    )
    add("--quiesce", metavar="PATH", help="the command that the unit runs (default: this one)")
    add("--output", metavar="DIR", help="write the files there instead of printing them")


COMMANDS: tuple[Command, ...] = (
    Command("run", "serve in the foreground", "quiesce run shop.wsgi:application --bind :8000", _serve),
    Command("start", "serve in the background; return when it accepts", "quiesce start --name shop", _serve),
    Command(
        "upgrade", "roll out a new release without losing a request", "quiesce upgrade --label v42", _upgrade
    ),
    Command("promote", "end a bake now: the new release stays", "quiesce promote", _nothing),
    Command("abort", "end a rollout now: the old release stays", "quiesce abort", _nothing),
    Command("rollback", "go back to the previous good release", "quiesce rollback r41", _rollback),
    Command("status", "what runs: releases, workers, connections", "quiesce status --watch", _status),
    Command("history", "releases and rollouts, the newest last", "quiesce history --limit 10", _history),
    Command("scale", "change the number of workers", "quiesce scale 8", _scale),
    Command(
        "quiesce", "stop accepting: connections wait in the kernel's queue", "quiesce quiesce r42/1", _what
    ),
    Command("resume", "accept again", "quiesce resume all", _what),
    Command("drain", "leave a load balancer, then stop accepting, then wait", "quiesce drain", _no_wait),
    Command("reconfigure", "new settings without new code", "quiesce reconfigure", _nothing),
    Command("reexec", "replace the supervisor's own code in place", "quiesce reexec", _reexec),
    Command("reopen", "re-open log files, after they have been rotated", "quiesce reopen", _nothing),
    Command(
        "stop",
        "finish requests under way, then exit; idle connections are closed after a second",
        "quiesce stop --name shop",
        _stop,
    ),
    Command("check", "are this configuration and application good?", "quiesce check shop.wsgi", _check),
    Command(
        "systemd",
        "print units that fit a configuration",
        "quiesce systemd shop --config /etc/quiesce/shop.toml",
        _systemd,
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}

_DESCRIPTION = "quiesce keeps a Python web service answering while its code changes underneath."
_EPILOG = """\
A first service, and its first upgrade:
  quiesce run shop.wsgi:application     serve ./shop on http://127.0.0.1:8000/
  quiesce upgrade                       in another terminal, after you changed the code
  quiesce rollback                      and back

Exit codes: 0 done, 1 failed and rolled back, 2 usage or configuration, 3 failed and less than asked serves,
4 no such instance, 5 busy, 130 interrupted (a rollout goes on).  `quiesce COMMAND --help` says more."""


def _common(parser: argparse.ArgumentParser) -> None:
    """These stand before the command or after it; SUPPRESS keeps one from undoing the other."""
    absent: Any = argparse.SUPPRESS
    parser.add_argument(
        "--name", metavar="NAME", default=absent, help="the instance (default: the only one that runs)"
    )
    parser.add_argument("--runtime-dir", metavar="DIR", default=absent, help="where its control socket lies")
    parser.add_argument("--json", action="store_true", default=absent, help="print one JSON document")


def build(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for this command line: only commands that are in it get their options, for speed."""
    parser = _Parser(
        "quiesce", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Help, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"quiesce {quiesce.__version__}")
    _common(parser)
    # What a supervisor is given by its launcher: where the person stood, whatever becomes of that directory.
    parser.add_argument("--here", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            description=command.help[0].upper()
            + command.help[1:]
            + ("" if command.help.endswith("?") else "."),
            epilog=f"Example:\n  {command.example}",
            formatter_class=_Help,
            allow_abbrev=False,
            help=command.help,
        )
        if command.name in argv:
            _common(sub)
            command.add(sub)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, with the nearest option in the message when one is unknown.

    Raises:
        UsageError: The command line cannot be meant.
        SystemExit: 0, after ``--help`` or ``--version``.
    """
    parser = build(argv)
    try:
        return parser.parse_args(list(argv))
    except UsageError as exc:
        raise UsageError(_teach(str(exc), argv), exc.usage) from None


# What people type who come from elsewhere.
OTHER_WORDS = {
    "reload": "upgrade", "restart": "upgrade", "deploy": "upgrade", "phased-restart": "upgrade",
    "undo": "rollback", "revert": "rollback", "rotate": "reopen", "units": "systemd",
    "kill": "stop", "quit": "stop", "ps": "status", "top": "status --watch",
}  # fmt: skip

OTHER_OPTIONS = {
    "-w": "--workers", "-b": "--bind", "-c": "--config", "-u": "--user", "-g": "--group", "-k": "--interface",
    "--timeout": "--request-timeout", "--graceful-timeout": "--drain-timeout", "--keep-alive": "--idle-timeout",
    "--chdir": "--app-dir", "--port": "--bind", "--host": "--bind", "--pythonpath": "--app-dir",
    "--worker-class": "--interface", "--canary": "--canary with `quiesce upgrade`, where it comes with a later version",
}  # fmt: skip


def _teach(message: str, argv: Sequence[str]) -> str:
    from quiesce.supervisor.config_text import nearest

    if message.startswith("argument COMMAND: invalid choice"):
        word = message.split("'")[1] if "'" in message else ""
        guess = OTHER_WORDS.get(word) or nearest(word, BY_NAME)
        hint = f"did you mean `quiesce {guess}`?" if guess else "`quiesce` alone lists the commands"
        return f'there is no command "{word}"; {hint}'
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        return message
    word = unknown.split()[0].partition("=")[0]
    command = next((item for item in argv if item in BY_NAME), "")
    if not word.startswith("-"):
        return f'"{word}" is one word too many; see `quiesce {command} --help`'.replace("  ", " ")
    scratch = _Parser(add_help=False)
    _common(scratch)
    if command:
        BY_NAME[command].add(scratch)
    guess = OTHER_OPTIONS.get(word) or nearest(word, scratch._option_string_actions)
    hint = f"did you mean {guess}?" if guess else f"see `quiesce {command} --help`".replace("  ", " ")
    return f"unknown option {word}; {hint}"
