"""A command's end of the control socket: one request, its progress, its result.

The supervisor may be killed while a command waits.  Its listener lies in the descriptor store, so
the command connects again, waits in the queue for the next supervisor, and asks the same with the
same id: what was begun is never begun a second time, and its outcome is told to whoever names it.

Stdlib only, and little of it: `quiesce status` is run in loops.
"""

from __future__ import annotations

import os
import socket
import time
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
TAKE_OVER_S = 60.0  # the longest that we wait for a word of a supervisor after one has gone
REFUSED_S = 5.0  # and for one to listen at all: where there is a store, the listener never goes
AGAIN_S = 0.1  # between two attempts; nothing tells a client when a socket is listened on
_QUEUE_FULL_S = 2.0
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
    line = encode_request(Request(os.urandom(16).hex(), command, given))
    asking = _Asking(places, command, line, on_progress, timeout_s)
    with _connect(places) as sock:
        result = asking.exchange(sock)
    return asking.again() if result is None else result


def _connect(places: Places) -> socket.socket:
    end = time.monotonic() + _QUEUE_FULL_S
    while True:
        try:
            return connect(places.control_sock)
        except BlockingIOError as exc:  # its queue is full; a unix socket does not wait for room in it
            if time.monotonic() >= end:
                raise _hangs(places) from exc
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
        time.sleep(AGAIN_S)


class _Asking:
    """One request, over as many connections as it takes.

    Args:
        line: The request; the same, id included, on every connection.
        timeout_s: Longest silence; None: as long as a supervisor that has read it takes.
    """

    def __init__(
        self, places: Places, command: str, line: bytes, on_progress: OnProgress, timeout_s: float | None
    ) -> None:
        self._places = places
        self._command = command
        self._line = line
        self._on_progress = on_progress
        self._timeout_s = timeout_s
        self._limited = timeout_s is not None  # silence has an end now
        self._until = 0.0  # which one, on time.monotonic()
        self._hear()

    def _hear(self) -> None:
        self._until = time.monotonic() + (TAKE_OVER_S if self._timeout_s is None else self._timeout_s)

    def exchange(self, sock: socket.socket) -> Result | None:
        """Ask, and read until the result.  None: the connection broke before it.  ``sock`` stays the caller's."""
        self._bound(sock)
        try:
            sock.sendall(self._line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it refused us before it read us, and its reason can be read
        except TimeoutError as exc:
            raise _hangs(self._places) from exc
        buffer = bytearray()
        while (data := self._receive(sock)) is None or data:
            searched = len(buffer)
            buffer += data or b""
            result = self._take_lines(buffer, searched)
            if result is not None:
                return result
            if len(buffer) > MAX_REPLY_BYTES:
                raise ProtocolError(
                    "the supervisor's answer has no end; is that really a quiesce supervisor?"
                )
        if not self._limited:
            self._hear()  # it was one that lived: its successor has all the time again
        return None

    def _receive(self, sock: socket.socket) -> bytes | None:
        """Wait for the next bytes; b"": the connection is gone; None: silence that may go on."""
        self._bound(sock)
        try:
            return sock.recv(1 << 16)
        except TimeoutError as exc:
            if self._timeout_s is not None or not _was_read(sock):
                raise self._silent() from exc
            self._limited = False  # a supervisor has it, and may be draining for longer
            return None
        except OSError:
            return b""

    def _take_lines(self, buffer: bytearray, searched: int) -> Result | None:
        while (end := buffer.find(b"\n", searched)) >= 0:
            reply = decode_reply(bytes(buffer[:end]))
            del buffer[: end + 1]
            searched = 0
            if isinstance(reply, Result):
                return reply
            self._hear()
            self._limited = self._timeout_s is not None
            if reply is not None:
                self._on_progress(reply)
        return None

    def again(self) -> Result:
        """Find the next supervisor and ask it the same.

        Raises:
            LostConnection: There will be none, as far as can be known: nobody holds the instance's lock
                (a keeper or systemd holds it for a dead supervisor), nobody listens for 5 s although
                somebody holds it, or nobody says a word for 60 s.
        """
        if "MAINPID" in os.environ:
            # We are ExecReload= of the very unit: systemd starts no supervisor before we have ended.
            raise _lost(self._command)
        refused_until = time.monotonic() + REFUSED_S
        told = False
        while is_held(self._places.lock):
            if not told and self._command != "reexec":  # there it is what was asked for
                told = True
                self._on_progress(Progress("the supervisor went away; waiting for the next one to take over"))
            try:
                sock = connect(self._places.control_sock, self._left())
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() >= refused_until:
                    break
            except (BlockingIOError, TimeoutError):
                refused_until = time.monotonic() + REFUSED_S  # others wait too: its queue is full
            except OSError as exc:
                raise _lost(self._command) from exc
            else:
                self._limited = True  # a connection in the queue of nobody looks like any other
                with sock:
                    result = self.exchange(sock)
                if result is not None:
                    return result
                if self._timeout_s is not None:
                    break  # a question that changes nothing is as good asked anew
                refused_until = time.monotonic() + REFUSED_S
            if time.monotonic() >= self._until:
                raise self._silent()
            time.sleep(AGAIN_S)
        raise _lost(self._command)

    def _bound(self, sock: socket.socket) -> None:
        sock.settimeout(self._left() if self._limited else None)

    def _left(self) -> float:
        return max(0.01, self._until - time.monotonic())  # 0 would mean "do not wait"

    def _silent(self) -> LostConnection:
        if self._timeout_s is not None:
            return _hangs(self._places)
        return LostConnection(
            f"the supervisor went away before {self._command} was decided, and no other has taken over within "
            f"{TAKE_OVER_S:g} s; look at `quiesce status`, `quiesce history` and its log"
        )


def _was_read(sock: socket.socket) -> bool:
    """Has the peer read all that we sent?  unix(7) SIOCOUTQ."""
    import fcntl
    import termios

    unread = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return not any(unread)


def is_held(lock: str) -> bool:
    """Does anybody hold the instance: a supervisor, or a keeper or systemd for a dead one?

    A lock that is free is ours for an instant, shared: a `start` of just then may be told that the
    instance runs.  /proc/locks would not disturb it, and does not show the locks of the dead.
    """
    import fcntl

    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # not ours to see; the time limits hold
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


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


def _lost(command: str) -> LostConnection:
    """The honest error: what was asked may have happened or not.

    For `stop` as well, although nobody is there any more.  A supervisor that was killed on its way out is
    succeeded by one that finishes the stop and answers for it.  When none comes, nobody has seen the last
    workers leave: they drain by themselves and may be at it still, or their requests were cut.
    """
    if command == "stop":
        return LostConnection(
            "the supervisor went away before it had said that everything is stopped, and no other has taken over; "
            "workers that are left finish what they have and leave; see `quiesce status` and its log"
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
