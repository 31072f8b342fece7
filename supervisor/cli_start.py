"""`run`, `start` and `check`: the commands that need the configuration, and become a supervisor.

`run` and `start` come by here twice: first to put a keeper in their place (launch.py), then, started
by that, to be the supervisor.  The second time each path is relative to where the person stood the
first time (`--here`).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from quiesce.shared.errors import ConfigError, ControlError, ProtocolError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import fdnames, render
from quiesce.supervisor.activation import FIRST, KEPT, take_listen_fds
from quiesce.supervisor.cli_console import Console
from quiesce.supervisor.config import Loaded, Unreadable, load_settings
from quiesce.supervisor.config_keys import OPTION_KEYS
from quiesce.supervisor.daemonize import Reporter, Surroundings, open_standard_streams, start_in_background
from quiesce.supervisor.launch import become_keeper, is_supervisor, supervisor_command, wants_keeper
from quiesce.supervisor.places import Places, resolve_places
from quiesce.supervisor.starting import Mode, StartReport


def load(args: Namespace) -> Loaded:
    """The configuration that a command line means.

    Raises:
        ConfigError: What is wrong with it.
    """
    return load_settings(*_asked(args))


def _asked(args: Namespace) -> tuple[dict[str, Any], str | None, str | None, str]:
    """Options, name, file and folder, as ``load_settings`` wants them."""
    given = vars(args)
    options: dict[str, Any] = {key.name: given[key.name] for key in OPTION_KEYS if key.name in given}
    if args.app is not None:
        options["service.app"] = args.app
    if args.bind:
        options["bind"] = args.bind
    return options, given.get("name"), args.config, _here(args)


def _here(args: Namespace) -> str:
    """What relative paths are relative to."""
    given: str | None = getattr(args, "here", None)
    if given is not None:
        return given
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory has been removed; change to another one") from None


def _places(args: Namespace, loaded: Loaded) -> Places:
    runtime_dir: str | None = getattr(args, "runtime_dir", None)
    if runtime_dir is not None:
        runtime_dir = os.path.join(_here(args), runtime_dir)
    return resolve_places(loaded.settings.service.name, runtime_dir)


def run(args: Namespace, console: Console) -> int:
    """Serve until stopped."""
    open_standard_streams()
    if _wants_keeper(args):
        load(args)  # what is wrong with it is said before anything is started
        become_keeper(_command(args), take_listen_fds(os.environ, os.getpid()))
    systemd = os.environ.get("NOTIFY_SOCKET") and not os.environ.get("QUIESCE_KEEPER")
    mode = Mode.SYSTEMD if systemd else Mode.FOREGROUND

    def report(started: StartReport) -> None:
        # Under systemd the journal has it from the log.
        if mode is Mode.FOREGROUND or started.code != Exit.OK:
            tell_start("run", args, console, started)

    return _serve(args, mode, report)


def start(args: Namespace, console: Console) -> int:
    """Serve in the background; return when it accepts."""
    open_standard_streams()
    kept = _wants_keeper(args)
    if is_supervisor(os.environ, os.getpid()):
        return _serve(args, Mode.BACKGROUND, _report_to(_passed(fdnames.REPORT)))
    loaded = load(args)
    places = _places(args, loaded)
    places.create()  # the log may lie in the state directory

    def serve_there(report: Reporter) -> int:
        if kept:
            become_keeper(_command(args), [(fdnames.REPORT, report.fd)])
        from quiesce.supervisor.main import serve

        return serve(loaded, places, mode=Mode.BACKGROUND, report=report)

    args.here = _here(args)  # the daemon stands elsewhere
    report = start_in_background(serve_there, Surroundings(loaded.settings.log.file or places.log))
    return tell_start("start", args, console, report)


def _wants_keeper(args: Namespace) -> bool:
    """Are we to become a keeper?  Else what our own supervisor may have left in the environment is not for us."""
    if not is_supervisor(os.environ, os.getpid()):
        for name in ("QUIESCE_KEEPER", KEPT):
            os.environ.pop(name, None)
    return wants_keeper(os.environ, os.getpid(), args.no_keeper)


def _command(args: Namespace) -> list[str]:
    """The supervisor's command line: ours, with where we stand."""
    here = [] if "--here" in args.argv else ["--here", _here(args)]
    return supervisor_command([*here, *args.argv])


def _serve(args: Namespace, mode: Mode, report: Callable[[StartReport], None]) -> int:
    """Be the supervisor."""
    from quiesce.supervisor.main import serve

    try:
        loaded = load(args)
        return serve(loaded, _places(args, loaded), mode=mode, report=report)
    except ConfigError as exc:
        if _passed(fdnames.STATE) is None and KEPT not in os.environ:
            if mode is Mode.BACKGROUND:
                report(StartReport(int(Exit.USAGE), str(exc)))
            raise
        # What runs was started with another configuration, and goes on with that.
        return serve(Unreadable(exc, *_asked(args)), None, mode=mode, report=report)


def _passed(name: str) -> int | None:
    """The descriptor of this name among those that the keeper passed; it is not taken."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return FIRST + names.index(name) if ours and name in names else None


def _report_to(fd: int | None) -> Callable[[StartReport], None]:
    """Tell the `quiesce start` that waits; nobody waits for a supervisor after the first.

    ``fd`` stays whose it is: it lies in the store as well, and the supervisor lets it go there.
    """
    return (lambda report: None) if fd is None else Reporter(os.dup(fd))


def tell_start(command: str, args: Namespace, console: Console, report: StartReport) -> int:
    """Print the banner, or why there is none."""
    if report.code != Exit.OK or console.as_json:
        return console.result(command, report.code, report.text, report.detail, report.data)
    console.out(render.banner(report.data, command, _address(args, report.data)))
    return report.code


def _address(args: Namespace, data: Mapping[str, Any]) -> str:
    """The options with which later commands find this instance."""
    runtime_dir = getattr(args, "runtime_dir", None)
    if runtime_dir is not None:
        return f" --runtime-dir {runtime_dir}"
    name = data.get("name", "default")
    return "" if name == "default" else f" --name {name}"


def check(args: Namespace, console: Console) -> int:
    """Judge configuration and application, or only print the configuration."""
    loaded = load(args)
    if args.show_config:
        from quiesce.supervisor import config_show

        if console.as_json:
            return console.result("check", int(Exit.OK), "", "", config_show.document(loaded))
        console.out(render.settings(config_show.rows(loaded)))
        return int(Exit.OK)
    from quiesce.supervisor.trial import check as check_application

    report = check_application(loaded)
    unsafe = _not_crash_safe(_places(args, loaded))
    text = f"{report.text}; but the instance that runs is not crash safe: {unsafe}" if unsafe else report.text
    return console.result(
        "check", report.code, text, report.detail, {**report.data, "not_crash_safe": unsafe}
    )


def _not_crash_safe(places: Places) -> str:
    """Why the instance that runs there would not survive its supervisor; "": it would, or none runs."""
    from quiesce.supervisor.control_client import QUICK_TIMEOUT_S, ask

    try:
        found = ask(places, "status", {}, lambda item: None, QUICK_TIMEOUT_S).data
    except (ControlError, ProtocolError):
        return ""
    return "" if found.get("crash_safe") else str(found.get("crash_safe_reason", ""))


COMMANDS: Mapping[str, Callable[[Namespace, Console], int]] = {"run": run, "start": start, "check": check}
