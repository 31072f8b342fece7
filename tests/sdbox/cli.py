"""The commands of README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

from sdbox.boot import up
from sdbox.down import take_down
from sdbox.images import build_image
from sdbox.inside import box_environment, run_in_network, run_inside
from sdbox.options import UpOptions
from sdbox.state import all_up, find, need, rundir


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = _parser().parse_args(argv)
    if getattr(options, "cmd", None) and options.cmd[0] == "--":
        del options.cmd[0]
    status: int = options.perform(options)
    return status


def _up(options: argparse.Namespace) -> int:
    up(_up_options(options))
    return 0


def _exec(options: argparse.Namespace) -> int:
    command = options.cmd or ["/bin/bash"]
    env = box_environment(options.setenv)
    return run_inside(need(options.name), command, env, cwd=options.chdir, user=options.user)


def _netexec(options: argparse.Namespace) -> int:
    return run_in_network(need(options.name), options.cmd)


def _journal(options: argparse.Namespace) -> int:
    command = ["journalctl", "--no-pager", "-o", "short-monotonic", *options.cmd]
    return run_inside(need(options.name), command, box_environment([]))


def _down(options: argparse.Namespace) -> int:
    box = find(options.name)
    if not box:
        return 0
    began = time.monotonic()
    take_down(box, graceful=options.graceful, timeout_s=options.timeout)
    if not options.quiet:
        print(f"sdbox: {box.name} down in {(time.monotonic() - began) * 1000:.0f} ms", file=sys.stderr)
    return 0


def _run(options: argparse.Namespace) -> int:
    options.name = options.name or f"run{os.getpid()}"
    up(_up_options(options))
    pid = os.fork()  # entering the box cannot be undone
    if pid == 0:
        os._exit(run_inside(need(options.name), options.cmd, box_environment(options.setenv)))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    take_down(need(options.name))
    shutil.rmtree(rundir(options.name), ignore_errors=True)
    return status


def _ls(options: argparse.Namespace) -> int:
    for box in all_up():
        print(f"{box.name}\tpid={box.pid}\timage={box.image}\tnet={box.net}\tcgroup={box.cgroup}")
    return 0


def _image(options: argparse.Namespace) -> int:
    print(build_image(options.suite, force=options.force))
    return 0


def _up_options(options: argparse.Namespace) -> UpOptions:
    chosen = {field.name: getattr(options, field.name) for field in fields(UpOptions)}
    for key in ("bind", "unit", "setenv"):
        chosen[key] = tuple(chosen[key])
    return UpOptions(**chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdbox", description="a real systemd in a throw-away box")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, perform: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(perform=perform)
        return sub

    sub = command("up", _up, "boot a box")
    sub.add_argument("name")
    _add_up_arguments(sub)
    sub = command("exec", _exec, "run a command in the box")
    sub.add_argument("name")
    sub.add_argument("--user")
    sub.add_argument("--chdir", default="/")
    sub.add_argument("--setenv", "-E", action="append", default=[])
    sub.add_argument("cmd", nargs=argparse.REMAINDER)
    sub = command("netexec", _netexec, "run a host process in the box's network")
    sub.add_argument("name")
    sub.add_argument("cmd", nargs=argparse.REMAINDER)
    sub = command("journal", _journal, "the box's journal")
    sub.add_argument("name")
    sub.add_argument("cmd", nargs=argparse.REMAINDER)
    sub = command("down", _down, "end a box")
    sub.add_argument("name")
    sub.add_argument("--graceful", action="store_true")
    sub.add_argument("--timeout", type=float, default=30)
    sub.add_argument("-q", "--quiet", action="store_true")
    command("ls", _ls, "the boxes that are up")
    sub = command("image", _image, "build a Debian root file system")
    sub.add_argument("suite")
    sub.add_argument("--force", action="store_true")
    sub = command("run", _run, "up, exec, down")
    sub.add_argument("--name")
    _add_up_arguments(sub)
    sub.add_argument("cmd", nargs=argparse.REMAINDER)
    return parser


def _add_up_arguments(sub: argparse.ArgumentParser) -> None:
    default = UpOptions("")
    sub.add_argument("--image", default=default.image, help="host, trixie, bookworm, or a directory")
    sub.add_argument("--bind", action="append", default=[], metavar="SRC[:DST][:ro]")
    sub.add_argument("--unit", action="append", default=[], metavar="FILE", help="copied before the boot")
    sub.add_argument("--setenv", "-E", action="append", default=[], metavar="K=V")
    sub.add_argument("--net", choices=("private", "host"), default=default.net)
    sub.add_argument("--target", default=default.target)
    sub.add_argument("--size", default=default.size, help="limit of what the box may write")
    sub.add_argument("--stop-timeout", default=default.stop_timeout)
    sub.add_argument("--log-level", default=default.log_level)
    sub.add_argument("--log-target", default=default.log_target, help="journal or console")
    sub.add_argument("--timeout", type=float, default=default.timeout)
    sub.add_argument("--replace", action="store_true")
    sub.add_argument("-q", "--quiet", action="store_true")
