"""A command's end of the control socket: one request, its progress, its result.

Stdlib only, and little of it: `quiesce status` is run in loops.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quiesce.shared.errors import ControlError, ProtocolError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor.control_protocol import (
    MAX_REPLY_BYTES,
    Progress,
    Request,
    Result,
    decode_reply,
    encode_request,
)
from quiesce.supervisor.places import Found, Places, connect, find_instances, resolve_places

QUICK_TIMEOUT_S = 10.0  # status and history are answered at once, or the supervisor hangs
OnProgress = Callable[[Progress], None]


class NoInstance(ControlError):
    """Nobody to talk to: exit code 4.  ``found`` are those that do run."""

    def __init__(self, text: str, found: Sequence[Found] = ()) -> None:
        super().__init__(text)
        self.found = tuple(found)


class LostConnection(ControlError):
    """The supervisor went away before it had answered: exit code 3."""


class Denied(ControlError):
    """It runs, and we may not command it: exit code 2."""


def choose_instance(name: str | None, runtime_dir: str | None) -> Places:
    """Whom a command means: the named one, that in ``--runtime-dir``, or the only one that runs.

    Raises:
        NoInstance: None or several; the message lists those that run.
    """
    if runtime_dir is not None:
        return resolve_places(name or os.path.basename(os.path.abspath(runtime_dir)), runtime_dir)
    found = find_instances()
    chosen = [item for item in found if name is None or item.places.name == name]
    # Inside a unit (or a shell made like one) its own instance is meant, whatever else runs.
    own = os.environ.get("RUNTIME_DIRECTORY", "").split(":")
    chosen = [item for item in chosen if item.places.runtime_dir in own] or chosen
    if len(chosen) == 1:
        return chosen[0].places
    if name is not None:
        many = (
            f"several instances {name!r} run, say which with --runtime-dir"
            if chosen
            else f"no instance {name!r} runs"
        )
        raise NoInstance(many + _where(chosen or found), found)
    if not found:
        raise NoInstance("no instance runs; start one with `quiesce run APP` or `quiesce start APP`")
    raise NoInstance(f"several instances run, say which with --name{_where(found)}", found)


def _where(found: Sequence[Found]) -> str:
    if not found:
        return "; no other does either"
    lines = [f"  {item.places.name}  ({item.places.runtime_dir})" for item in found]
    return ". These run:\n" + "\n".join(lines)


def ask(
    places: Places,
    command: str,
    args: Mapping[str, Any],
    on_progress: OnProgress,
    timeout_s: float | None = None,
) -> Result:
    """Send one request and wait for its result.

    Args:
        args: What was given; None is "not given" and is left out.
        timeout_s: Longest silence; None for commands that take as long as they take.

    Raises:
        NoInstance, Denied, LostConnection: Each with what to do next.
    """
    given = {key: value for key, value in args.items() if value is not None}
    request = Request(os.urandom(16).hex(), command, given)
    line = encode_request(request)
    with _connect(places) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it refused us before it read us, and its reason can be read
        except TimeoutError as exc:
            raise _hangs(places) from exc
        return _await_result(sock, places, command, on_progress)


def _connect(places: Places) -> socket.socket:
    try:
        return connect(places.control_sock)
    except PermissionError as exc:
        raise Denied(
            f"permission denied: {places.control_sock} is for its owner, root and the members of control_group"
        ) from exc
    except TimeoutError as exc:
        raise _hangs(places) from exc
    except OSError as exc:
        raise NoInstance(
            f"no instance runs in {places.runtime_dir} ({exc.strerror}); "
            "start one with `quiesce run APP` or `quiesce start APP`"
        ) from exc


def _hangs(places: Places) -> LostConnection:
    try:
        with open(places.pid, encoding="ascii") as file:
            who = f" (pid {int(file.read(32))})"
    except (OSError, ValueError):
        who = ""
    return LostConnection(
        f"the supervisor{who} does not answer on {places.control_sock}; "
        "it may be stopped (SIGSTOP, a debugger) or the machine is overloaded; what it serves is not affected"
    )


def _await_result(sock: socket.socket, places: Places, command: str, on_progress: OnProgress) -> Result:
    buffer = bytearray()
    while True:
        try:
            data = sock.recv(1 << 16)
        except TimeoutError as exc:
            raise _hangs(places) from exc
        except OSError:
            data = b""
        if not data:
            raise _lost(command)
        searched = len(buffer)
        buffer += data
        while (end := buffer.find(b"\n", searched)) >= 0:
            reply = decode_reply(bytes(buffer[:end]))
            del buffer[: end + 1]
            searched = 0
            if isinstance(reply, Result):
                return reply
            if reply is not None:
                on_progress(reply)
        if len(buffer) > MAX_REPLY_BYTES:
            raise ProtocolError("the supervisor's answer has no end; is that really a quiesce supervisor?")


def _lost(command: str) -> LostConnection:
    if command == "stop":
        return LostConnection(
            "the supervisor went away before it had said that everything is stopped; see `quiesce status` and its log"
        )
    return LostConnection(
        f"the supervisor went away before {command} was decided; "
        "look at `quiesce status`, `quiesce history` and its log before you try again"
    )


def exit_code_of(exc: ControlError | ProtocolError) -> Exit:
    """The exit code that tells a script what an error means."""
    if isinstance(exc, NoInstance):
        return Exit.NO_INSTANCE
    return Exit.USAGE if isinstance(exc, Denied) else Exit.DOWN
