"""Replace the supervisor's own code in place: `reexec`, SIGUSR2.

The same process executes the new code: its pid, its children and its place below systemd stay.  What it
holds goes along as open descriptors, what it knows in the state's memfd; the new code goes on as after a
crash (adoption.py), only that nothing has died.  Before the point of no return the new
code is asked, in a process of its own, whether it can be imported and can read that state.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import quiesce
from quiesce.shared.errors import ConfigError, QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor.activation import kept_environment
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.launch import supervisor_command
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.memory import Memory
from quiesce.supervisor.operations import Args, Operations, Reply
from quiesce.supervisor.service import Service
from quiesce.supervisor.signals import reset_in_child
from quiesce.supervisor.watching import Busy

PATIENCE_S = 30.0  # for the new code's imports
MAX_OUTPUT_BYTES = 64 * 1024

Environment = Callable[[], dict[str, str]]
Fds = Sequence[tuple[str, int]]


class Reexec:
    """The command, and the state between its two halves."""

    def __init__(
        self,
        service: Service,
        operations: Operations,
        store: FdStore,
        memory: Memory,
        sockets: Fds,
        environment: Environment,
        before: Callable[[], None],
        replaced: str,
    ) -> None:
        """Args as the parts they are; further:

        sockets: What the service manager has passed; it does not pass it again to the same process.
        environment: What it has said to us, to be said again.
        before: Called just before the point of no return.
        replaced: The version that was here before in this very process, by `reexec`; "": none.
        """
        self._service = service
        self._loop: Loop = service.loop
        self._operations = operations
        self._store = store
        self._memory = memory
        self._sockets = sockets
        self._environment = environment
        self._before = before
        self._replaced = replaced
        self._running: _Preflight | None = None
        operations.add("reexec", self.reexec)

    def reexec(self, args: Args, reply: Reply) -> None:
        """Begin.  The answer to success comes from the new code.

        Raises:
            Busy: A rollout is being decided, or another one is on its way.
            ConfigError: There is no such interpreter.
        """
        if self._operations.again:
            self._tell_outcome(reply)
            return
        self._service.admission.refuse_if_busy()
        if self._running is not None:
            reply.result(Exit.BUSY, "the supervisor is being replaced already")
            return
        python = args.get("python")
        if python is not None and not (isinstance(python, str) and os.access(python, os.X_OK)):
            raise ConfigError(f"--python: {python!r} cannot be executed; give the path of an interpreter")
        reply.progress("asking the new code whether it can go on")
        command = supervisor_command(sys.argv[1:], python)

        def judged(problem: str, detail: str) -> None:
            if problem:
                decided(problem, detail)
            else:
                # What waits to be stored, or to be let go, would be lost with this process's queue.
                self._store.sync(lambda _kept: decided("", ""))

        def decided(problem: str, detail: str) -> None:
            self._running = None
            if not problem:
                try:
                    self._service.admission.refuse_if_busy()
                    self._exec(command, reply)
                except Busy as exc:  # a change has begun while the new code was asked
                    reply.result(Exit.BUSY, str(exc))
                    return
                except (OSError, QuiesceError) as exc:
                    problem = str(exc)
            self._service.log.error("reexec refused", reason=problem)
            text = f"{problem}; nothing was replaced, quiesce {quiesce.__version__} goes on"
            reply.result(Exit.FAILED, text, detail)

        self._running = _Preflight(self._loop, _preflight_command(command), self._memory.store.fd, judged)

    def _tell_outcome(self, reply: Reply) -> None:
        if self._replaced:
            python = "{}.{}.{}".format(*sys.version_info[:3])
            text = f"quiesce {quiesce.__version__} on Python {python} goes on in process {os.getpid()}"
            text += f" (was {self._replaced})"
            reply.result(Exit.OK, text, data={"version": quiesce.__version__, "pid": os.getpid()})
        else:
            text = "the supervisor died while it was being replaced; the last code that worked goes on"
            reply.result(Exit.FAILED, f"{text} (quiesce {quiesce.__version__}, process {os.getpid()})")

    def _exec(self, command: Sequence[str], reply: Reply) -> None:
        """The point of no return.

        Raises:
            OSError: It was none.
        """
        pairs = [*self._store.kept(), *self._sockets]
        env = {**os.environ, **self._environment(), "QUIESCE_KEPT": kept_environment(pairs, os.getpid())}
        reply.progress("replacing the supervisor's code; everything else goes on")
        self._service.log.info("replacing the supervisor's code", command=" ".join(command[:4]))
        self._memory.replacing = quiesce.__version__
        self._service.save()
        self._before()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for _, fd in pairs:
                os.set_inheritable(fd, True)
            os.execve(command[0], list(command), env)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._memory.replacing = ""
            self._service.save()
            self._service.on_rollout()  # the manager was told of a change: it is over
            for _, fd in pairs:
                with suppress(OSError):  # the one because of which we are here
                    os.set_inheritable(fd, False)


def _preflight_command(command: Sequence[str]) -> list[str]:
    """The same interpreter and flags, another module."""
    flags = list(command[: command.index("-P") + 1])
    if "-c" in command[: len(flags) + 2]:
        program = command[len(flags) + 1].replace("quiesce.supervisor.cli", "quiesce.supervisor.preflight")
        return [*flags, "-c", program.replace("main()", "main(sys.argv)")]
    return [*flags, "-m", "quiesce.supervisor.preflight"]


class _Preflight:
    """One process of the new code.  Owns its pidfd and the read end of its output."""

    def __init__(
        self, loop: Loop, command: Sequence[str], state: int, judged: Callable[[str, str], None]
    ) -> None:
        self._loop = loop
        self._judged = judged
        self._output = b""
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pid = os.fork()
        if self._pid == 0:
            _become(command, state, writing)
        os.close(writing)
        self._pidfd = os.pidfd_open(self._pid)
        self._timer = loop.call_at(loop.now() + PATIENCE_S, self._late)
        loop.watch(self._reading, self._on_output)
        loop.watch(self._pidfd, self._on_exit)

    def _on_output(self, _events: int) -> None:
        chunk = os.read(self._reading, 1 << 16)
        self._output = (self._output + chunk)[-MAX_OUTPUT_BYTES:]
        if not chunk:
            self._loop.unwatch(self._reading)

    def _late(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._output += f"\nit did not answer within {PATIENCE_S:g} s".encode()

    def _on_exit(self, _events: int) -> None:
        try:
            while chunk := os.read(self._reading, 1 << 16):
                self._output += chunk
        except BlockingIOError:
            pass
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        self._timer.cancel()
        self._loop.unwatch(self._reading)
        self._loop.unwatch(self._pidfd)
        os.close(self._reading)
        os.close(self._pidfd)
        good = info is not None and info.si_code == os.CLD_EXITED and info.si_status == 0
        text = self._output.decode("utf-8", "replace").strip()
        found = _verdict(text) if good else None
        if found is None:
            self._judged("the new code cannot go on", text)
        else:
            self._judged("", "")


def _verdict(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) and "version" in found else None


def _become(command: Sequence[str], state: int, writing: int) -> None:
    """In the child; never returns."""
    try:
        reset_in_child()
        os.setsid()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.set_inheritable(state, True)
        signal.alarm(int(PATIENCE_S) + 1)  # who would end it may die before; an alarm survives the exec
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(command[0], [*command, str(state)], os.environ)
    except BaseException as exc:
        os.write(2, f"{command[0]} cannot be started: {exc}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)
