"""What each signal to the supervisor means; those that mean a command say in the log what it would have said."""

import os
import signal
from collections.abc import Callable
from typing import Any

from quiesce.shared.errors import QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.shared.logs import Log
from quiesce.supervisor.operations import Args, Reply
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import SILENT, Busy, Ended

Command = Callable[[Args, Reply], None]


class SignalCommands:
    """The table of signals (design: 7. Commands)."""

    def __init__(
        self, service: Service, reopen: Command, reexec: Command, stop: Callable[[str, bool], None]
    ) -> None:
        """``stop`` is given the signal's name, and whether it is to be fast in any case."""
        self._service = service
        self._log: Log = service.log
        self._reopen = reopen
        self._reexec = reexec
        self._stop = stop

    def actions(self) -> dict[int, Callable[[], None]]:
        """By number, for :class:`~quiesce.supervisor.signals.Signals`."""
        return {
            signal.SIGHUP: self._on_hup,
            signal.SIGTERM: lambda: self._stop("SIGTERM", False),
            signal.SIGINT: lambda: self._stop("SIGINT", False),
            signal.SIGQUIT: lambda: self._stop("SIGQUIT", True),
            signal.SIGTTIN: lambda: self._on_scale("SIGTTIN", 1),
            signal.SIGTTOU: lambda: self._on_scale("SIGTTOU", -1),
            signal.SIGWINCH: self._on_winch,
            signal.SIGUSR1: lambda: self._on_command("SIGUSR1", self._reopen),
            signal.SIGUSR2: lambda: self._on_command("SIGUSR2", self._reexec),
        }

    def _on_hup(self) -> None:
        """Upgrade; after SIGWINCH: resume."""
        if self._is_changing("SIGHUP"):
            return
        if self._service.upkeep.held:
            self._log.info("SIGHUP: resuming")
            self._service.upkeep.readmit()
            return
        self._log.info("SIGHUP: upgrading")
        try:
            self._service.upgrade({}, None, {}, SILENT._replace(decided=self._log_ended))
        except QuiesceError as exc:
            self._log.warning("SIGHUP: no upgrade", why=str(exc))

    def _is_changing(self, name: str) -> bool:
        """A rollout quiesces and resumes by itself: a second hand would upset its table."""
        try:
            self._service.admission.refuse_if_busy()
        except Busy as exc:
            self._log.warning(f"{name} ignored", why=str(exc))
            return True
        return False

    def _log_ended(self, ended: Ended) -> None:
        if ended.code == Exit.OK:
            self._log.info(ended.text)
        else:
            self._log.multiline("error", ended.text, ended.detail)

    def _on_command(self, name: str, command: Callable[[Args, Reply], None]) -> None:
        """A signal that means a command; what it would have said goes into the log."""
        try:
            command({}, LogReply(self._log, name))
        except QuiesceError as exc:
            self._log.warning(f"{name}: nothing was done", why=str(exc))

    def _on_scale(self, name: str, by: int) -> None:
        wanted = max(1, self._service.upkeep.wanted + by)
        self._log.info(name, workers=wanted)
        try:
            self._service.scale(wanted)
        except QuiesceError as exc:
            self._log.warning(f"{name} ignored", why=str(exc))

    def _on_winch(self) -> None:
        # A terminal sends it whenever its window changes size.
        if _has_terminal():
            return
        if self._is_changing("SIGWINCH"):
            return
        self._log.info("SIGWINCH: quiescing all workers; SIGHUP resumes")
        self._service.upkeep.hold()


class LogReply:
    """Where a command that came as a signal says how it went."""

    def __init__(self, log: Log, name: str) -> None:
        self._log = log
        self._name = name

    def progress(self, text: str, **data: Any) -> None:
        self._log.info(f"{self._name}: {text}")

    def result(self, code: int, text: str, detail: str = "", data: dict[str, Any] | None = None) -> None:
        if code == Exit.OK:
            self._log.info(f"{self._name}: {text}")
        else:
            self._log.multiline("error", f"{self._name}: {text}", detail)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
