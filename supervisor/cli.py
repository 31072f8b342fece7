"""The ``quiesce`` command: parse, ask the supervisor (or become one), print, exit with a code that means it."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quiesce.shared.errors import ConfigError, ControlError, ProtocolError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import render
from quiesce.supervisor.cli_console import Console
from quiesce.supervisor.cli_parser import BY_NAME, UsageError, build, parse

# What Ctrl-C does not undo, in the words of what goes on.
_GOES_ON = {
    "upgrade": "the rollout goes on; see `quiesce status`",
    "rollback": "the rollout goes on; see `quiesce status`",
    "abort": "it goes on being undone; see `quiesce status`",
    "scale": "the change goes on; see `quiesce status`",
    "quiesce": "the change goes on; see `quiesce status`",
    "resume": "the change goes on; see `quiesce status`",
    "drain": "it goes on draining; see `quiesce status`",
    "reconfigure": "the change goes on; see `quiesce status`",
    "reexec": "the replacement goes on; see `quiesce status`",
    "reopen": "the log files are being re-opened all the same",
    "stop": "the instance goes on stopping; `quiesce stop --now` ends it at once",
    "start": "it goes on starting in the background; see `quiesce status`",
}
WATCH_EVERY_S = 1.0
LEAVES_S, LOOK_S = 5.0, 0.01  # from the word that all has stopped to the end of the last process


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code (design: 7. Commands).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console("--json" in argv)
    command = ""
    try:
        args = parse(argv)
        command = args.command or ""
        args.argv = argv
        if not command:
            console.out(build(argv).format_help())
            return int(Exit.OK)
        return _dispatch(args, console)
    except UsageError as exc:
        if not console.as_json:
            console.error(exc.usage)
        return console.result("", int(Exit.USAGE), str(exc))
    except ConfigError as exc:
        return console.result("", int(Exit.USAGE), str(exc))
    except (ControlError, ProtocolError) as exc:
        return _no_answer(exc, console)
    except KeyboardInterrupt:
        why = _GOES_ON.get(command, "")
        return console.result("", int(Exit.INTERRUPTED), "interrupted" + (f"; {why}" if why else ""))


def _no_answer(exc: ControlError | ProtocolError, console: Console) -> int:
    from quiesce.supervisor.control_client import NoInstance, exit_code_of

    first, _, detail = str(exc).partition("\n")
    found = exc.found if isinstance(exc, NoInstance) else ()
    data = {
        "instances": [{"name": item.places.name, "runtime_dir": item.places.runtime_dir} for item in found]
    }
    return console.result(
        "", int(exit_code_of(exc)), first, detail, data if isinstance(exc, NoInstance) else None
    )


def _dispatch(args: Namespace, console: Console) -> int:
    command = BY_NAME[args.command]
    if command.name in ("run", "start", "check"):
        from quiesce.supervisor import cli_start

        return cli_start.COMMANDS[command.name](args, console)
    if command.name == "systemd":
        from quiesce.supervisor import units

        return units.command(args, console)
    special: dict[str, Callable[[Namespace, Console], int]] = {
        "status": _status,
        "history": _history,
        "stop": _stop,
    }
    return special.get(command.name, _change)(args, console)


def _ask(args: Namespace, console: Console, given: Mapping[str, Any], timeout_s: float | None = None) -> Any:
    from quiesce.supervisor.control_client import ask, choose_instance

    places = choose_instance(getattr(args, "name", None), getattr(args, "runtime_dir", None))
    return ask(places, args.command, given, lambda item: console.progress(item.text), timeout_s)


def _change(args: Namespace, console: Console) -> int:
    """Every command that is one request: its arguments go over, its result comes back."""
    result = _ask(args, console, _arguments(args))
    if args.command == "reconfigure" and result.code == Exit.OK and not console.as_json:
        console.out(render.reconfigured(result.data, console.width()))
        return int(Exit.OK)
    return console.result(args.command, result.code, result.text, result.detail, result.data)


def _stop(args: Namespace, console: Console) -> int:
    """As `_change`; what is stopped has also left: the next `start` finds lock and port free."""
    from quiesce.supervisor.control_client import choose_instance, is_held

    places = choose_instance(getattr(args, "name", None), getattr(args, "runtime_dir", None))
    code = _change(args, console)
    # The keeper is the last to hold the lock.  Somebody who starts the instance anew in this very moment
    # holds it too, and is not waited for long.
    until = time.monotonic() + LEAVES_S
    while code == Exit.OK and time.monotonic() < until and is_held(places.lock):
        time.sleep(LOOK_S)
    return code


def _arguments(args: Namespace) -> dict[str, Any]:
    """What is sent: flags only when given, paths absolute, durations in seconds.

    Raises:
        UsageError: A value that no supervisor would take.
    """
    ours = ("command", "name", "runtime_dir", "json", "here", "argv")
    given = {
        key: value for key, value in vars(args).items() if key not in ours and value not in (None, False)
    }
    if "canary" in given:
        raise UsageError("`upgrade --canary` comes with a later version of quiesce; leave it out")
    if "bake" in given:
        given["bake"] = _seconds(given["bake"])
    if "release" in given:
        given["release"] = _from_here(given["release"])
    if args.command == "reexec" and "python" in given:
        given["python"] = _interpreter(given["python"])
    if "/" in given.get("which", "") or given.get("which") in (".", ".."):
        given["which"] = _directory_or_label(given["which"])
    if args.command == "upgrade" and "MAINPID" in os.environ:
        given["reload"] = True  # ExecReload= of the unit: systemd waits for us and needs no other sign
    if args.command == "scale" and not 1 <= args.workers <= 1000:
        raise UsageError(f"scale wants a number of workers from 1 to 1000, not {args.workers}")
    return given


def _seconds(text: str) -> float:
    from quiesce.supervisor.config_text import parse_duration

    try:
        return parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"--bake {exc}") from exc


def _from_here(path: str) -> str:
    """Absolute.  Not abspath(): `current/../x` means another directory when `current` is a symlink."""
    try:
        return os.path.join(os.getcwd(), path) if path not in (".", "./") else os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory has been removed; change to another one") from None


def _interpreter(word: str) -> str:
    """Absolute: the supervisor stands in another directory.  Symlinks stay, or the virtualenv is lost."""
    if "/" in word:
        return _from_here(word)
    from shutil import which

    found = which(word)
    if found is None:
        raise UsageError(f"--python {word}: there is no such command in $PATH; give a path")
    return _from_here(found)


def _directory_or_label(which: str) -> str:
    path = _from_here(which)
    return path if os.path.isdir(path) else which  # labels may hold slashes: feature/basket


def _status(args: Namespace, console: Console) -> int:
    from quiesce.supervisor.control_client import QUICK_TIMEOUT_S

    if not args.watch:
        result = _ask(args, console, {}, QUICK_TIMEOUT_S)
        if result.code != Exit.OK or console.as_json:
            return console.result("status", result.code, result.text, result.detail, result.data)
        console.out(render.status(result.data, time.time(), console.width()))
        return int(Exit.OK)
    if console.as_json:
        raise UsageError(
            "--watch is for people; leave out --json, or call `quiesce status --json` again and again"
        )
    return _watch(args, console, QUICK_TIMEOUT_S)


def _watch(args: Namespace, console: Console, timeout_s: float) -> int:
    try:
        while True:
            result = _ask(args, console, {}, timeout_s)
            if result.code != Exit.OK:
                return console.result("status", result.code, result.text, result.detail)
            if not console.redraw(render.status(result.data, time.time(), console.width())):
                return int(Exit.OK)  # `quiesce status --watch | head`
            time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        return int(Exit.OK)  # the way that it is meant to end


def _history(args: Namespace, console: Console) -> int:
    from quiesce.supervisor.control_client import QUICK_TIMEOUT_S, NoInstance

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit wants a number from 1, not {args.limit}")
    try:
        result = _ask(args, console, {"limit": args.limit}, QUICK_TIMEOUT_S)
    except NoInstance as exc:
        return _history_of_stopped(args, console, exc)
    if result.code != Exit.OK or console.as_json:
        return console.result("history", result.code, result.text, result.detail, result.data)
    console.out(render.history(result.data.get("entries", []), console.width()))
    return int(Exit.OK)


def _history_of_stopped(args: Namespace, console: Console, none_runs: ControlError) -> int:
    """Of an instance that is named and does not run: what lies on disk is what it would say.

    Raises:
        ControlError: ``none_runs``, if there is nothing on disk either, or nobody has said whose is meant.
    """
    from quiesce.supervisor.control_client import choose_instance
    from quiesce.supervisor.history import History
    from quiesce.supervisor.places import resolve_places

    name = getattr(args, "name", None)
    runtime_dir = getattr(args, "runtime_dir", None)
    entries: list[dict[str, Any]] = []
    if name or runtime_dir:
        places = choose_instance(name, runtime_dir) if runtime_dir else resolve_places(str(name))
        entries = History(places.state_dir, sys.maxsize).entries(args.limit)
    if not entries:
        raise none_runs
    if console.as_json:
        return console.result("history", int(Exit.OK), f"{len(entries)} entries", "", {"entries": entries})
    console.error(f"{places.name} does not run; this is what {places.state_dir} holds\n")
    console.out(render.history(entries, console.width()))
    return int(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
