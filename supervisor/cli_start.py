"""`run`, `start` and `check`: the commands that need the configuration, and become a supervisor."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from quiesce.shared.errors import ConfigError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import render
from quiesce.supervisor.cli_console import Console
from quiesce.supervisor.config import Loaded, load_settings
from quiesce.supervisor.config_keys import OPTION_KEYS
from quiesce.supervisor.daemonize import Surroundings, open_standard_streams, start_in_background
from quiesce.supervisor.places import Places, resolve_places
from quiesce.supervisor.starting import Mode, StartReport


def load(args: Namespace) -> Loaded:
    """The configuration that a command line means.

    Raises:
        ConfigError: What is wrong with it.
    """
    given = vars(args)
    options: dict[str, Any] = {key.name: given[key.name] for key in OPTION_KEYS if key.name in given}
    if args.app is not None:
        options["service.app"] = args.app
    if args.bind:
        options["bind"] = args.bind
    return load_settings(options, given.get("name"), args.config, _here())


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory has been removed; change to another one") from None


def _places(args: Namespace, loaded: Loaded) -> Places:
    return resolve_places(loaded.settings.service.name, getattr(args, "runtime_dir", None))


def run(args: Namespace, console: Console) -> int:
    """Serve until stopped."""
    open_standard_streams()
    loaded = load(args)
    places = _places(args, loaded)
    mode = Mode.SYSTEMD if os.environ.get("NOTIFY_SOCKET") else Mode.FOREGROUND

    def report(started: StartReport) -> None:
        # Under systemd the journal has it from the log.
        if mode is Mode.FOREGROUND or started.code != Exit.OK:
            tell_start("run", args, console, started)

    from quiesce.supervisor.main import serve

    return serve(loaded, places, mode=mode, report=report)


def start(args: Namespace, console: Console) -> int:
    """Serve in the background; return when it accepts."""
    open_standard_streams()
    loaded = load(args)
    places = _places(args, loaded)
    places.create()  # the log may lie in the state directory

    def serve_there(report: Callable[[StartReport], None]) -> int:
        from quiesce.supervisor.main import serve

        return serve(loaded, places, mode=Mode.BACKGROUND, report=report)

    report = start_in_background(serve_there, Surroundings(loaded.settings.log.file or places.log))
    return tell_start("start", args, console, report)


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
    return console.result("check", report.code, report.text, report.detail, report.data)


COMMANDS: Mapping[str, Callable[[Namespace, Console], int]] = {"run": run, "start": start, "check": check}
