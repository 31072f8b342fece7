"""Put a supervisor together, run it until it stops, take it apart again."""

import os
import resource
import signal
import stat
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from quiesce.shared.errors import ConfigError, ControlError, QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.shared.logs import Log, journal_reads
from quiesce.supervisor import status
from quiesce.supervisor.activation import take_listen_fds
from quiesce.supervisor.config import Loaded
from quiesce.supervisor.control_protocol import Request
from quiesce.supervisor.control_server import (
    ControlServer,
    Reply,
    allow_owner_and_group,
    open_control_socket,
    remove_own_socket,
)
from quiesce.supervisor.crew import close_on_exec_all
from quiesce.supervisor.history import History
from quiesce.supervisor.identity import group_id
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.operations import Operations
from quiesce.supervisor.pidfile import InstanceLock, LockedError, remove_pidfile, take_lock, write_pidfile
from quiesce.supervisor.places import Places
from quiesce.supervisor.service import Service
from quiesce.supervisor.signals import Signals
from quiesce.supervisor.starting import Mode, StartReport
from quiesce.supervisor.watching import SILENT, Busy, Ended, Stopping, Watch

WANTED_FILES = 65536  # soft RLIMIT_NOFILE that is asked for, as far as the hard one allows
STOP_NEWS_S = 1.0
SURPRISES, SURPRISES_S = 50, 10.0  # so many bugs in so many seconds are no accident

ReportTo = Callable[[StartReport], None]


def serve(loaded: Loaded, places: Places, *, mode: Mode, report: ReportTo) -> int:
    """Run an instance until it stops.

    Args:
        loaded: Its configuration.
        places: Its directories; they are made.
        mode: Who is above us.
        report: Called exactly once: when it accepts, or when the start failed.

    Returns:
        The exit code of the process.
    """
    told = _Once(report)
    try:
        places.create()
        lock = take_lock(places.lock, places.name)
    except LockedError as exc:
        return told.failed(Exit.BUSY, exc)
    except ConfigError as exc:
        return told.failed(Exit.USAGE, exc)
    except QuiesceError as exc:
        return told.failed(Exit.DOWN, exc)
    supervisor: _Supervisor | None = None
    try:
        supervisor = _Supervisor(loaded, places, lock, mode, told)
        return supervisor.run()
    except ConfigError as exc:
        return told.failed(Exit.USAGE, exc)
    except QuiesceError as exc:
        return told.failed(Exit.DOWN, exc)
    finally:
        if supervisor is not None:
            supervisor.close()
        lock.release()


class _Once:
    """Tells the outcome of the start once; later words are the log's."""

    def __init__(self, report: ReportTo) -> None:
        self._report: ReportTo | None = report

    def __call__(self, report: StartReport) -> None:
        tell, self._report = self._report, None
        if tell is not None:
            tell(report)

    def failed(self, code: Exit, exc: Exception) -> int:
        self(StartReport(int(code), str(exc)))
        return int(code)


class _Supervisor:
    """All parts of a running instance, wired."""

    def __init__(self, loaded: Loaded, places: Places, lock: InstanceLock, mode: Mode, told: _Once) -> None:
        settings = loaded.settings
        self._places = places
        self._mode = mode
        self._told = told
        self._code = int(Exit.OK)
        self._accepts = False
        self._ended = False
        self._undo: list[Callable[[], None]] = []
        close_on_exec_all()
        inherited = take_listen_fds(os.environ, os.getpid())
        self._notifier = Notifier(os.environ.pop("NOTIFY_SOCKET", None))
        self._undo.append(self._notifier.close)
        _raise_file_limit()
        self.loop = Loop()
        self._undo.append(self.loop.close)
        log_fd = _open_log(settings.log.file)
        self.log = Log(log_fd, settings.log.level, journal=journal_reads(log_fd))
        self.loop.on_error = _Surprises(self.log)
        self.listeners = Listeners()
        self.listeners.open(settings.listen, inherited)
        self._undo.append(self.listeners.close)
        history = History(places.state_dir, settings.rollout.history)
        self.service = Service(self.loop, self.log, loaded, self.listeners, history, log_fd)
        self.service.log_file = _file_behind(log_fd)
        self._undo.append(self.service.crew.close)
        self.service.on_change = self._changed
        self.service.on_gone = self._gone
        self.operations = Operations(self.service)
        self._control = self._open_control(settings.service.control_group)
        lock.write_pid(os.getpid())
        write_pidfile(places.pid, os.getpid())
        self._undo.append(lambda: remove_pidfile(places.pid, os.getpid()))
        self._signals = Signals(self.loop, self._signal_actions())
        self._undo.append(self._signals.close)
        self._title: Callable[[str], None] | None = None
        self._told_line = ""

    def _open_control(self, control_group: str) -> ControlServer:
        gid = group_id(control_group) if control_group else None
        listener = open_control_socket(self._places, gid)
        self._undo.append(lambda: remove_own_socket(self._places.control_sock))
        server = ControlServer(
            self.loop, listener, allow_owner_and_group(os.geteuid(), gid), self._on_request
        )
        self._undo.append(server.close)
        return server

    def _on_request(self, request: Request, reply: Reply) -> None:
        peer = request.peer
        if request.command not in ("status", "history"):
            who = {"uid": peer.uid, "pid": peer.pid} if peer is not None else {}
            self.log.info(f"command {request.command}", **who)
        self.operations.handle(request.command, request.args, reply)

    # -- running ------------------------------------------------------------------------

    def run(self) -> int:
        """Start, serve, stop.  Returns the exit code."""
        self.log.info("quiesce starts", name=self.service.settings.service.name, pid=os.getpid())
        self._notifier.status("starting")
        self.service.start(Watch(self._progress, self._decided, SILENT.finished))
        self.loop.run()
        return self._code

    def _progress(self, text: str) -> None:
        self._notifier.status(text)

    def _decided(self, ended: Ended) -> None:
        """The first release serves, or none does."""
        if ended.code == Exit.OK:
            self._accepts = True
            from setproctitle import setproctitle  # after ready: a title is not worth a late start

            self._title = setproctitle
            self._notifier.ready(status.one_line(self.service))
            self._told(StartReport(int(Exit.OK), ended.text, data=self._banner()))
            self._changed()
            return
        self._told(StartReport(ended.code, ended.text, ended.detail))
        if self.service.stopping is Stopping.NO:  # else somebody stopped us: that is no failure
            self._code = ended.code
            self.service.stop(now=True)

    def _banner(self) -> dict[str, Any]:
        service = self.service
        assert service.serving is not None
        release, terms = service.serving.release, service.serving.recipe.terms
        worker = next(iter(service.serving), None)
        return {
            "urls": self.listeners.urls(),
            "name": service.settings.service.name,
            "release": release.id,
            "path": release.path,
            "python": release.python,
            "workers": service.upkeep.wanted,
            "threads": worker.threads if worker is not None else terms.configure.threads,
            "interface": worker.interface if worker is not None else release.interface,
            "health": terms.rule.text,
            "config_file": service.loaded.file,
            "runtime_dir": self._places.runtime_dir,
            "log": self.service.log_file,
            "notices": list(service.notices),
        }

    def _changed(self) -> None:
        """Show the truth: STATUS= and the process title, when it has changed."""
        if self._notifier.pending:  # systemd was slow; this comes by at least once a second
            self._notifier.flush()
        if not self._accepts:
            return
        line = status.one_line(self.service)
        if line == self._told_line:
            return
        self._told_line = line
        self._notifier.status(line)
        serving = self.service.serving
        if self._title is not None and serving is not None:
            count = f"{serving.accepting()}/{self.service.upkeep.wanted}"
            self._title(
                f"quiesce: supervisor {self.service.settings.service.name} {serving.release.id} {count}"
            )

    # -- signals ------------------------------------------------------------------------

    def _signal_actions(self) -> dict[int, Callable[[], None]]:
        return {
            signal.SIGHUP: self._on_hup,
            signal.SIGTERM: lambda: self._on_stop("SIGTERM"),
            signal.SIGINT: lambda: self._on_stop("SIGINT"),
            signal.SIGQUIT: lambda: self._stop("SIGQUIT", now=True),
            signal.SIGTTIN: lambda: self._on_scale("SIGTTIN", 1),
            signal.SIGTTOU: lambda: self._on_scale("SIGTTOU", -1),
            signal.SIGWINCH: self._on_winch,
            signal.SIGUSR1: lambda: self.log.warning("SIGUSR1: re-opening logs comes with a later version"),
            signal.SIGUSR2: lambda: self.log.warning("SIGUSR2: `reexec` comes with a later version"),
        }

    def _on_hup(self) -> None:
        """Upgrade; after SIGWINCH: resume."""
        if self._is_changing("SIGHUP"):
            return
        if self.service.upkeep.held:
            self.log.info("SIGHUP: resuming")
            self.service.upkeep.unhold()
            return
        self.log.info("SIGHUP: upgrading")
        try:
            self.service.upgrade({}, None, {}, SILENT._replace(decided=self._log_ended))
        except QuiesceError as exc:
            self.log.warning("SIGHUP: no upgrade", why=str(exc))

    def _is_changing(self, name: str) -> bool:
        """A rollout quiesces and resumes by itself: a second hand would upset its table."""
        try:
            self.service.refuse_if_busy()
        except Busy as exc:
            self.log.warning(f"{name} ignored", why=str(exc))
            return True
        return False

    def _log_ended(self, ended: Ended) -> None:
        if ended.code == Exit.OK:
            self.log.info(ended.text)
        else:
            self.log.multiline("error", ended.text, ended.detail)

    def _on_scale(self, name: str, by: int) -> None:
        wanted = max(1, self.service.upkeep.wanted + by)
        self.log.info(name, workers=wanted)
        try:
            self.service.scale(wanted)
        except Busy as exc:
            self.log.warning(f"{name} ignored", why=str(exc))

    def _on_winch(self) -> None:
        # A terminal sends it whenever its window changes size.
        if _has_terminal():
            return
        if self._is_changing("SIGWINCH"):
            return
        self.log.info("SIGWINCH: quiescing all workers; SIGHUP resumes")
        self.service.upkeep.hold()

    def _on_stop(self, name: str) -> None:
        """The first one is graceful, a second one is fast."""
        self._stop(name, now=self.service.stopping is not Stopping.NO)

    def _stop(self, name: str, *, now: bool) -> None:
        if self.service.stopping is Stopping.FAST:
            return
        self.log.info(f"{name}: stopping", how="fast" if now else "graceful")
        self._notifier.stopping()
        self.service.stop(now=now)
        self._tell_stopping(first=True)

    def _tell_stopping(self, first: bool = False) -> None:
        if self.service.crew.all_gone():
            return
        waiting = self.service.waiting_for()
        self._notifier.extend_timeout(self.service.settings.rollout.drain_timeout + 10)
        if first and self._mode is Mode.FOREGROUND and sys.stderr.isatty():
            again = "" if self.service.stopping is Stopping.FAST else " (Ctrl-C again cuts them)"
            print(f"\nquiesce: waiting for {waiting}{again}", file=sys.stderr, flush=True)
        elif first:
            self.log.info(f"waiting for {waiting}")
        self.operations.tell_stopping()
        if self.service.stopping is not Stopping.NO:
            self.loop.call_at(self.loop.now() + STOP_NEWS_S, self._tell_stopping)

    def _gone(self) -> None:
        """The last worker is reaped."""
        if self._ended:
            return
        self._ended = True
        self._told(StartReport(int(Exit.DOWN), "stopped before it accepted"))
        self.operations.stopped()
        self.log.info("quiesce has stopped", name=self.service.settings.service.name)
        self.loop.stop()

    def close(self) -> None:
        """Take everything apart, last part first.

        Workers that are left (an error of ours) see EOF on their channels, drain and leave.
        """
        for undo in reversed(self._undo):
            undo()


class _Surprises:
    """Logs what a callback of ours raised, and goes on; gives up when it goes on for ever."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._when: deque[float] = deque(maxlen=SURPRISES)

    def __call__(self, exc: Exception) -> None:
        text = "".join(traceback.format_exception(exc))
        self._log.multiline("error", "bug in quiesce; it goes on", text, error=repr(exc))
        now = time.monotonic()
        self._when.append(now)
        if len(self._when) == SURPRISES and now - self._when[0] < SURPRISES_S:
            # A level-triggered descriptor that nobody can serve would spin for ever: a supervisor
            # that ends lets its workers drain, one that spins starves them.
            raise exc


def check(loaded: Loaded) -> StartReport:
    """Is this configuration and application good?  Starts one worker that serves nobody.

    Binds nothing, writes no history and needs no runtime directory, so it may run beside
    the instance that it is about.
    """
    from tempfile import TemporaryDirectory

    try:
        with TemporaryDirectory(prefix="quiesce-check-") as folder:
            return _check_in(loaded, folder)
    except ConfigError as exc:
        return StartReport(int(Exit.USAGE), str(exc))
    except (QuiesceError, ControlError) as exc:
        return StartReport(int(Exit.FAILED), str(exc))


def _check_in(loaded: Loaded, folder: str) -> StartReport:
    loop = Loop()
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    log = Log(null, "error")
    service = Service(loop, log, loaded, Listeners(), History(folder, 1), null)
    service.upkeep.wanted = 1
    reports: list[StartReport] = []

    def decided(ended: Ended) -> None:
        if ended.code == Exit.OK and service.serving is not None:
            release = service.serving.release
            worker = next(iter(service.serving))
            rule = service.serving.recipe.terms.rule.text
            text = f"{release.path}: {release.app} is good ({worker.interface}; {rule})"
            data = {
                "path": release.path,
                "python": release.python,
                "interface": worker.interface,
                "app": release.app,
            }
            reports.append(StartReport(int(Exit.OK), text, data=data))
        else:
            reason = ended.text.partition(": ")[2] or ended.text
            reports.append(StartReport(int(Exit.FAILED), reason, ended.detail))
        service.stop(now=True)

    service.on_gone = loop.stop
    try:
        service.start(SILENT._replace(decided=decided))
        loop.run()
    finally:
        service.crew.close()
        loop.close()
        os.close(null)
    return reports[0]


def _open_log(file: str) -> int:
    """The descriptor that we and our workers write to.

    Raises:
        ConfigError: The file cannot be opened.
    """
    if not file:
        return 2
    try:
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise ConfigError(f"cannot open log.file {file}: {exc.strerror}") from exc


def _file_behind(fd: int) -> str | None:
    """The path of the log, if it is a regular file (`start`, or `2>>shop.log`)."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    return os.readlink(f"/proc/self/fd/{fd}")


def _raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as we may have.  Workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
