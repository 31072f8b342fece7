"""Put a supervisor together, run it until it stops, take it apart again."""

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial

from quiesce.shared.errors import ConfigError, ControlError, QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.shared.logs import Log, journal_reads
from quiesce.supervisor import fdnames
from quiesce.supervisor.activation import take_kept_fds, take_listen_fds
from quiesce.supervisor.adoption import Adoption, Inheritance, record, settings_in_force
from quiesce.supervisor.announcing import Announcing
from quiesce.supervisor.changes import Changes
from quiesce.supervisor.cold_start import ColdStart
from quiesce.supervisor.config import Loaded, Settings, Unreadable
from quiesce.supervisor.control_door import open_door
from quiesce.supervisor.control_protocol import Request
from quiesce.supervisor.control_server import (
    ControlServer,
    Reply,
    allow_owner_and_group,
    remove_own_socket,
    runs_as_us,
)
from quiesce.supervisor.core.snapshot import Snapshot
from quiesce.supervisor.crew import KEPT_PER_WORKER, close_on_exec_all
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.history import History
from quiesce.supervisor.keeper_link import KeeperLink
from quiesce.supervisor.launch import raise_file_limit, supervisor_command
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.logfile import LogFile
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.manager import Manager
from quiesce.supervisor.memory import Memory, Saving
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.operations import Operations
from quiesce.supervisor.pidfile import (
    InstanceLock,
    LockedError,
    adopt_lock,
    remove_pidfile,
    take_lock,
    write_pidfile,
)
from quiesce.supervisor.places import Places
from quiesce.supervisor.reexec import Reexec
from quiesce.supervisor.service import Service
from quiesce.supervisor.signal_commands import SignalCommands
from quiesce.supervisor.signals import Signals
from quiesce.supervisor.starting import Mode, Once, ReportTo, StartReport
from quiesce.supervisor.state_store import StateStore
from quiesce.supervisor.surprises import Surprises
from quiesce.supervisor.watching import SILENT, Ended, Stopping, Watch

STOP_NEWS_S = 1.0
BEAT_S = 1.0
LAST_WORDS_S = 1.0
LINGER_S = 5.0  # after a take-over: for commands that have lost their supervisor and look for the next one
MOST_PIPES = 2048


def serve(loaded: Loaded | Unreadable, places: Places | None, *, mode: Mode, report: ReportTo) -> int:
    """Run an instance until it stops.

    Args:
        loaded: Its configuration, or why there is none: a service that runs already, and whose last supervisor
            has died, does not depend on what lies in the file by now.
        places: Its directories; they are made.  None if it is unreadable.
        mode: Who is above us.
        report: Called at most once: when it accepts, or when the start failed.  Not called where
            another supervisor has said it before.

    Returns:
        The exit code of the process.
    """
    told = Once(report)
    close_on_exec_all()
    manager = Manager.take(os.environ)
    try:
        kept = take_kept_fds(os.environ, os.getpid())
        legacy = Inheritance([*take_listen_fds(os.environ, os.getpid()), *kept], in_place=bool(kept))
    except ConfigError as exc:
        return told.failed(Exit.USAGE, exc)
    except QuiesceError as exc:
        return told.failed(Exit.DOWN, exc)
    supervisor: _Supervisor | None = None
    lock: InstanceLock | None = None
    try:
        if legacy.goes_on:
            assert legacy.snapshot is not None
            places = Places(legacy.snapshot.name, legacy.snapshot.runtime_dir, legacy.snapshot.state_dir)
            loaded = settings_in_force(legacy.snapshot, loaded)
        elif isinstance(loaded, Unreadable):
            raise loaded.why
        assert places is not None
        places.create()
        lock = _lock(places, legacy)
        supervisor = _Supervisor(loaded, places, lock, mode, told, manager, legacy)
        return supervisor.run()
    except LockedError as exc:
        return told.failed(Exit.BUSY, exc)
    except QuiesceError as exc:
        manager.say_failed(exc)
        if mode is Mode.BACKGROUND and not legacy.goes_on:
            Log(2).error("start failed", why=str(exc))  # who asked may not have listened (cron)
        if legacy.goes_on:  # nobody waits for an answer, and the manager only sees a status
            Log(2).error("cannot go on from the last supervisor", why=str(exc))
            return told.failed(Exit.DOWN, exc)
        return told.failed(Exit.USAGE if isinstance(exc, ConfigError) else Exit.DOWN, exc)
    finally:
        if supervisor is not None:
            supervisor.close()
        legacy.close()
        if lock is not None:
            lock.release()


def _lock(places: Places, legacy: Inheritance) -> InstanceLock:
    """The one that the last supervisor has left, or a new one."""
    fd = legacy.take(fdnames.LOCK)
    lock = adopt_lock(fd, places.lock) if fd is not None else None
    if fd is not None and lock is None:
        legacy.void.append(fdnames.LOCK)
    return lock or take_lock(places.lock, places.name)


class _Supervisor:
    """All parts of a running instance, wired."""

    def __init__(
        self,
        loaded: Loaded,
        places: Places,
        lock: InstanceLock,
        mode: Mode,
        told: Once,
        manager: Manager,
        legacy: Inheritance,
    ) -> None:
        self._places = places
        self._mode = mode
        self._manager = manager
        self._snapshot = legacy.snapshot if legacy.goes_on else None
        self._problem = legacy.problem
        self._in_place = legacy.in_place
        self._code = int(Exit.OK)
        self._ended = False
        self._keeper: KeeperLink | None = None
        self._undo: list[Callable[[], None]] = []
        raise_file_limit()
        self.loop = Loop()
        self._undo.append(self.loop.close)
        self._linger_until = self.loop.now() + LINGER_S
        self._notifier = Notifier(manager.notify_socket, self.loop)
        self._undo.append(self._notifier.close)
        self._logfile = self._open_log(loaded, legacy)
        log_fd = self._logfile.fd
        self.log = Log(log_fd, loaded.settings.log.level, journal=journal_reads(log_fd))
        self.loop.on_error = Surprises(self.log)
        self._store = FdStore(self.loop, self._notifier, self.log, manager.store_limit)
        lacking = legacy.snapshot.missing if legacy.snapshot is not None and legacy.in_place else ()
        for name, fd in legacy.kept.items():
            (self._store.put if name in lacking else self._store.found)(name, fd)
        if legacy.memory is not None:
            self._store.found(fdnames.STATE, legacy.memory.fd)
        if fdnames.LOG in legacy.passed and self._snapshot is not None:
            self._store.found(fdnames.LOG, log_fd)
        scoreboard = legacy.scoreboard(self.log)
        # Before ours take their place: of two of one name, our successor might find the wrong one.
        for name in legacy.void:
            self._store.drop(name)
        self._store.put(fdnames.LOCK, lock.fd)
        self._memory = Memory(legacy.memory or StateStore.create(), self.loop, self.log, places.name)
        self._undo.append(self._memory.close)
        self._store.put(fdnames.STATE, self._memory.store.fd)
        self._memory.add(self._record)
        self.listeners = Listeners()
        self._undo.append(lambda: self.listeners.close() if self._ended else self.listeners.forget())
        self._open_listeners(loaded, legacy)
        history = History(places.state_dir, loaded.settings.rollout.history)
        self.service = Service(
            self.loop,
            self.log,
            loaded,
            self.listeners,
            history,
            log_fd,
            self._store,
            Saving(self._memory.save, self._memory.save_soon),
            scoreboard,
        )
        self._memory.add(partial(record, self.service, self._memory))
        self.service.log_file = self._logfile.path
        self._undo.append(self.service.crew.close)
        self._announcing = Announcing(
            self.service, self._notifier, self._store, told, mode, places.runtime_dir, self._memory.save
        )
        self.service.on_change = self._changed
        self.service.on_gone = self._gone
        self.service.on_rollout = self._announcing.on_rollout
        self.operations = Operations(self.service, self._snapshot.answers if self._snapshot else ())
        self._memory.add(self.operations.record)
        self._control_inode: tuple[int, int] | None = None
        self._control = self._open_control(loaded.settings.service.control_group, legacy)
        lock.write_pid(os.getpid())
        self._write_pidfile()
        self._undo.append(lambda: remove_pidfile(places.pid, os.getpid()) if self._ended else None)
        self._cold_start = ColdStart(
            self.service, Watch(self._announcing.progress, self._decided, SILENT.finished)
        )
        if self._snapshot is not None:
            self._adoption = Adoption(self.service, self._snapshot, legacy.kept)
            self._adoption.recall(self._cold_start)
        for name, fd in legacy.rest().items():
            if name != fdnames.REPORT:  # cli_start writes to it, and we let it go when it has
                self._store.drop(name)
                os.close(fd)
        self._sockets, legacy.sockets = legacy.sockets, []
        default_log = places.log if mode is Mode.BACKGROUND else ""
        self._changes = Changes(
            self.service, self.operations, self._store, self._logfile, default_log, self._sockets
        )
        self._memory.add(self._changes.record)
        if self._snapshot is not None:
            self._changes.recall(self._snapshot)
        self._keeper = self._watch_keeper()
        self._reexec = self._make_reexec()
        commands = SignalCommands(self.service, self._changes.reopen, self._reexec.reexec, self._on_stop)
        self._signals = Signals(self.loop, commands.actions())
        self._undo.append(self._signals.close)

    def _write_pidfile(self) -> None:
        try:
            write_pidfile(self._places.pid, os.getpid())
        except ControlError as exc:
            if self._snapshot is None:
                raise
            self.log.error("pid file", problem=str(exc))  # a disk that is full ends no service that runs

    def _watch_keeper(self) -> KeeperLink | None:
        pid = self._manager.keeper
        if pid is None:
            return None
        argv = supervisor_command(sys.argv[1:])
        keeper = KeeperLink(
            self.loop,
            self.log,
            self._store,
            self._notifier,
            argv,
            pid,
            on_change=self.service.changed,
            sockets=self._sockets,
        )
        self._undo.append(keeper.close)
        self.service.keeper = lambda: keeper.pid
        return keeper

    def _manager_says(self) -> dict[str, str]:
        """The environment that who is above us gives to its main process."""
        said = dict(self._manager.environment)
        return {**said, **self._keeper.environment()} if self._keeper is not None else said

    def _make_reexec(self) -> Reexec:
        return Reexec(
            self.service,
            self.operations,
            self._store,
            self._memory,
            self._sockets,
            self._manager_says,
            lambda: self._notifier.reloading("replacing the supervisor's code"),
            self._snapshot.reexec_from if self._snapshot is not None and self._in_place else "",
        )

    def _open_log(self, loaded: Loaded, legacy: Inheritance) -> LogFile:
        stored = legacy.take(fdnames.LOG)
        if self._snapshot is not None:
            logfile = LogFile.from_state(self._snapshot.log, stored)
            if logfile.problem:
                Log(logfile.fd).error("log", problem=logfile.problem)
        else:
            if stored is not None:
                os.close(stored)
                legacy.void.append(fdnames.LOG)
            logfile = LogFile.open(loaded.settings.log.file)
        self._undo.append(logfile.close)
        return logfile

    def _open_listeners(self, loaded: Loaded, legacy: Inheritance) -> None:
        if self._snapshot is None:
            taken = self.listeners.open(loaded.settings.listen, legacy.sockets, legacy.kept)
        else:
            adopted = self.listeners.adopt(self._snapshot.listeners, legacy.kept, legacy.sockets)
            taken = adopted.taken
            for problem in adopted.problems:
                self.log.error("listener", problem=problem)
        for name in taken:
            legacy.take(name)
        for listener in self.listeners:
            if not listener.inherited and listener.store_name not in taken:
                self._store.put(listener.store_name, listener.sock.fileno())

    def _record(self, snapshot: Snapshot) -> None:
        """Our part of the state."""
        snapshot.runtime_dir, snapshot.state_dir = self._places.runtime_dir, self._places.state_dir
        snapshot.accepts, snapshot.stopped = self._announcing.accepts, self._ended
        snapshot.control_inode = self._control_inode
        snapshot.log = self._logfile.to_state()
        snapshot.missing = self._store.missing

    def _open_control(self, control_group: str, legacy: Inheritance) -> ControlServer:
        listener, gid, self._control_inode = open_door(
            self._places, control_group, self._store, legacy, self._snapshot
        )
        self._undo.append(lambda: remove_own_socket(self._places.control_sock) if self._ended else None)
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
        if runs_as_us(request) and (peer is None or peer.uid not in (0, os.geteuid())):
            reply.result(
                Exit.USAGE, "reexec --python is for root and the owner of this instance; leave --python out"
            )
            return
        self.operations.handle(request.command, request.args, reply, request.id)

    # -- running ------------------------------------------------------------------------

    def run(self) -> int:
        """Start or go on, serve, stop.  Returns the exit code."""
        settings = self.service.settings
        self._beat()
        if self._snapshot is None:
            self.log.info("quiesce starts", name=settings.service.name, pid=os.getpid())
            self._store.measure(_most_kept(settings), self._measured)
            self._notifier.status("starting")
            self._memory.open()
            if self._problem:
                self.service.notice(self._problem)
            self._cold_start.begin()
        else:
            self._go_on(self._snapshot)
        self.loop.run()
        return self._code

    def _go_on(self, snapshot: Snapshot) -> None:
        """Another supervisor has been here: its workers serve."""
        workers = sum(len(generation.workers) for generation in snapshot.generations)
        self.log.info(
            "quiesce goes on",
            name=snapshot.name,
            pid=os.getpid(),
            workers=workers,
            after_version=snapshot.version,
            how="reexec" if self._in_place else "take-over",
        )
        self._store.measure(_most_kept(self.service.settings), self._measured)
        self._memory.attempts = snapshot.attempts
        self._memory.open()
        if snapshot.accepts:
            self._announcing.was_told()
            self._announcing.begin_to_accept()
        if self._manager.keeper is not None:
            # What starts after our death is what runs now, also if it is another Python than the last time.
            self._notifier.send(QUIESCE_ARGV=json.dumps(supervisor_command(sys.argv[1:])))
        self._adoption.take_over()
        if not snapshot.accepts:
            self._cold_start.go_on()
        self._memory.attempts = 0
        self._memory.save()
        self._announcing.on_rollout()

    def _measured(self, works: bool) -> None:
        """Do we survive our own death?"""
        if works:
            self.log.info("crash safe", places=self._store.capacity)
        else:
            self.log.warning("not crash safe", why=self._store.reason)
        self.service.changed()

    def _beat(self) -> None:
        """Tell the watchdog above us that this loop turns."""
        if self._manager.watchdog_s:
            self._notifier.watchdog()
            self.loop.call_at(self.loop.now() + min(BEAT_S, self._manager.watchdog_s / 4), self._beat)

    def _decided(self, ended: Ended) -> None:
        """The first release serves, or none does."""
        if ended.code == Exit.OK:
            self._announcing.started(ended, self._cold_start.failed)
            return
        self._notifier.errno(errno.EIO, ended.text)
        self._announcing.tell_start(StartReport(ended.code, ended.text, ended.detail))
        if self.service.stopping is Stopping.NO:  # else somebody stopped us: that is no failure
            self._code = ended.code
            self.service.stop(now=True)

    def _changed(self) -> None:
        if self._keeper is not None and self.service.stopping is not Stopping.NO:
            self._keeper.stop_watching()  # one that dies now is not replaced by one that was told nothing of the end
        self._announcing.changed()

    # -- stopping -----------------------------------------------------------------------

    def _on_stop(self, name: str, now: bool) -> None:
        """The first signal is graceful, a second one is fast."""
        now = now or self.service.stopping is not Stopping.NO
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
        if (
            self._snapshot is not None
            and self.operations.expects_more()
            and self.loop.now() < self._linger_until
        ):
            self.loop.call_at(self.loop.now() + 0.05, self._gone)
            return
        self._ended = True
        self._memory.save()
        self._announcing.tell_start(StartReport(int(Exit.DOWN), "stopped before it accepted"))
        self.operations.stopped()
        if self._keeper is not None:
            self._keeper.stop_watching()
        self._notifier.exit_status(self._code)
        self._notifier.say_the_rest(LAST_WORDS_S)  # a keeper that is not our parent would start another one
        self.log.info("quiesce has stopped", name=self.service.settings.service.name)
        self.loop.stop()

    def close(self) -> None:
        """Take everything apart, last part first.

        Workers that are left (an error of ours) are the next supervisor's; where nobody keeps their channels, they
        see them end, drain and leave.
        """
        for undo in reversed(self._undo):
            undo()


def _most_kept(settings: Settings) -> int:
    """So many descriptors may we ever want to have kept, and so many are asked for where nobody says how many fit."""
    generations = settings.rollout.max_generations + 1 if settings.rollout.max_generations else 4
    wanted = 2 * settings.service.workers * KEPT_PER_WORKER * generations + 64
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(wanted, MOST_PIPES, soft // 4 if soft > 0 else wanted))
