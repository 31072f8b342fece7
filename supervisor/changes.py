"""Change what is around the workers while they serve: `reconfigure`, `reopen`, `drain`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from quiesce.shared import messages as msg
from quiesce.shared.deadlines import Timer
from quiesce.shared.errors import ConfigError
from quiesce.shared.exitcodes import Exit
from quiesce.shared.scoreboard import Field
from quiesce.supervisor import fdnames
from quiesce.supervisor.binding import Listener, retire
from quiesce.supervisor.config import Settings
from quiesce.supervisor.core import reconfigure as pure
from quiesce.supervisor.core.lifecycle import GOING
from quiesce.supervisor.core.lifecycle import State as WorkerState
from quiesce.supervisor.core.snapshot import Snapshot
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.listeners import Committed
from quiesce.supervisor.logfile import LogFile
from quiesce.supervisor.operations import Args, Operations, Reply
from quiesce.supervisor.render import plural
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import Stopping
from quiesce.supervisor.worker_link import Worker

HEARD_S = 5.0  # for workers that are inside a request, or starved; what they were told they do all the same
LOOK_S = 0.1  # how often a drain looks at what sends no message: counters, a `resume all`
NEWS_S = 5.0
CALM_LOOKS = 3  # without any request under way: then the last has been answered

Fds = Sequence[tuple[str, int]]


class Changes:
    """Three commands, and what they share: telling every worker, and waiting until all have heard."""

    def __init__(
        self,
        service: Service,
        operations: Operations,
        store: FdStore,
        logfile: LogFile,
        default_log: str,
        sockets: Fds,
    ) -> None:
        """Args as the parts they are; further:

        default_log: The file for a configuration that names none; "": standard error.
        sockets: What the service manager has passed, (name, descriptor); the caller keeps them.
        """
        self._service = service
        self._store = store
        self._logfile = logfile
        self._default_log = default_log
        self._sockets = sockets
        self._quiesce_at: float | None = None  # when a drain quiesces; None: no drain, or it has
        self._quiescing: Timer | None = None
        service.on_commit = self.on_commit
        operations.add("reconfigure", self.reconfigure)
        operations.add("reopen", self.reopen)
        operations.add("drain", self.drain)

    def _when_heard(self, then: Callable[[list[Worker]], None]) -> None:
        """Call ``then`` when every worker has obeyed what was sent to it so far; with those that have not, in time."""
        loop = self._service.loop
        waiting = [worker for worker in self._service.crew if worker.state not in GOING]
        done = False

        def look() -> None:
            nonlocal done
            if not done:
                done = True
                guard.cancel()
                then([worker for worker in waiting if worker.state not in GOING])

        def heard(worker: Worker) -> None:
            if worker in waiting:
                waiting.remove(worker)
            if not waiting:
                look()

        guard = loop.call_at(loop.now() + HEARD_S, look)
        for worker in list(waiting):
            worker.when_heard(heard)
        if not waiting:
            loop.call_soon(look)

    # -- reconfigure --------------------------------------------------------------------------

    def reconfigure(self, args: Args, reply: Reply) -> None:
        """The configuration without new code.  What is wrong with it changes nothing.

        Raises:
            Busy, ConfigError: Likewise.
        """
        service, listeners = self._service, self._service.listeners
        service.admission.refuse_if_busy()
        again = service.loaded.reload()
        verdict = pure.compare(service.settings, again.settings)
        change = listeners.plan_change(again.settings.listen, self._sockets)
        wanted = again.settings.service.workers  # `scale` was in force until now
        service.admission.refuse_without_room(max(0, wanted - service.upkeep.wanted))
        prepared = listeners.prepare(change, self._sockets)
        try:
            moved = self._move_log(again.settings)
        except ConfigError:
            listeners.abandon(prepared)
            raise
        committed = listeners.commit(prepared)
        service.loaded = replace(again, settings=pure.merge(service.settings, again.settings))
        service.upkeep.wanted = wanted
        service.leaving = list(committed.unlisten)
        for listener in committed.added:
            if not listener.inherited:
                self._store.put(listener.store_name, listener.sock.fileno())
        service.save()
        if moved:
            self._tell_log()
        self._settle()
        self._tell_listeners(committed)
        service.upkeep.plan()
        service.changed()
        text, data = (
            pure.in_words(verdict, change, committed.problems),
            pure.document(verdict, change, committed.problems),
        )
        service.log.info(f"reconfigured: {text}")

        def heard(late: list[Worker]) -> None:
            for listener in committed.removed:
                self._let_go(listener)
            service.leaving = []
            service.save()
            reply.result(Exit.OK, text + _late(late), data=data)

        self._when_heard(heard)

    def _move_log(self, settings: Settings) -> bool:
        """Write to `log.file`, if it is another one now.

        Raises:
            ConfigError: It cannot be opened; nothing has changed.
        """
        target = settings.log.file or self._default_log
        if self._logfile.is_at(target):
            return False
        self._logfile.move(target)
        return True

    def _settle(self) -> None:
        """What the supervisor itself was told by the configuration that is in force now."""
        settings = self._service.settings
        self._service.history.keep(settings.rollout.history)
        self._service.log.set_level(settings.log.level)

    def on_commit(self) -> None:
        """An upgrade has put its configuration in force."""
        self._settle()
        try:
            if self._move_log(self._service.settings):
                self._tell_log()
        except ConfigError as exc:
            self._service.notice(str(exc))

    def _tell_listeners(self, committed: Committed) -> None:
        for worker in self._service.crew:
            if committed.unlisten:
                worker.tell(msg.Unlisten(list(committed.unlisten)))
            if committed.listen:
                worker.tell(
                    msg.Listen([listener.name for listener in committed.listen]),
                    [listener.sock.fileno() for listener in committed.listen],
                )

    def _let_go(self, listener: Listener) -> None:
        """After the workers, who have served what waited in its queue."""
        if not listener.inherited:
            self._store.drop(listener.store_name)
        retire(listener)

    # -- reopen -------------------------------------------------------------------------------

    def reopen(self, args: Args, reply: Reply) -> None:
        """logrotate has renamed the log: everybody writes to a new file of the old name.

        Raises:
            ConfigError: It cannot be opened; everybody writes on to the old one.
        """
        if self._logfile.path is None:
            reply.result(Exit.OK, "this instance logs to no file, so there is nothing to re-open")
            return
        self._logfile.reopen()
        self._tell_log()
        text = f"{self._logfile.path} is re-opened"
        self._service.log.info(text)
        self._when_heard(lambda late: reply.result(Exit.OK, text + _late(late)))

    def _tell_log(self) -> None:
        service, fd = self._service, self._logfile.fd
        service.log.set_fd(fd)
        service.log_file = self._logfile.path
        # The keeper writes there too, if its standard error is the log; and the next supervisor must know.
        self._store.drop(fdnames.LOG)
        if self._logfile.is_standard:
            self._store.put(fdnames.LOG, fd)
        service.use_log(fd)
        service.save()

    # -- drain --------------------------------------------------------------------------------

    def record(self, snapshot: Snapshot) -> None:
        """Our part of the state."""
        snapshot.quiesce_at = self._quiesce_at

    def recall(self, snapshot: Snapshot) -> None:
        """Go on with a drain that another supervisor has begun, whether or not anybody waits for it."""
        if snapshot.quiesce_at is not None:
            self._quiesce_later(snapshot.quiesce_at)

    def drain(self, args: Args, reply: Reply) -> None:
        """Leave a load balancer: not ready, then quiesced, then nobody's request is under way.

        Undone by `resume all`.

        Raises:
            Busy: A rollout is being decided.
        """
        service = self._service
        service.admission.refuse_if_busy()
        rollout = service.settings.rollout
        begun = service.crew.scoreboard.unready  # asked for again, perhaps under a new supervisor: it goes on
        service.crew.scoreboard.unready = True
        if not service.upkeep.held and not (begun and self._quiesce_at is not None):
            self._quiesce_later(service.loop.now() + rollout.drain_delay)
        service.save()
        service.log.info("drain: not ready any more", quiesce_after_s=rollout.drain_delay)
        service.changed()
        if args.get("no_wait"):
            reply.result(Exit.OK, "it drains; see `quiesce status`")
            return
        if rollout.drain_delay and not service.upkeep.held:
            where = f"`{rollout.ready_path}` answers 503; " if rollout.ready_path else ""
            reply.progress(f"{where}accepting goes on for {rollout.drain_delay:g} s")
        self._await_quiesced(reply)

    def _quiesce_later(self, when: float) -> None:
        if self._quiescing is not None:
            self._quiescing.cancel()
        self._quiesce_at = when
        self._quiescing = self._service.loop.call_at(when, self._quiesce)

    def _quiesce(self) -> None:
        """The delay of a drain is over."""
        service = self._service
        if not service.crew.scoreboard.unready or service.stopping is not Stopping.NO:
            self._quiesce_at = None  # ended by another command
        elif service.run is not None:
            self._quiesce_later(service.loop.now() + LOOK_S)  # it quiesces and resumes by itself
        else:
            self._quiesce_at = None
            service.upkeep.hold()

    def _await_quiesced(self, reply: Reply) -> None:
        service, loop = self._service, self._service.loop
        if not service.crew.scoreboard.unready or service.stopping is not Stopping.NO:
            reply.result(Exit.BUSY, "the drain was ended by another command; see `quiesce status`")
        elif service.upkeep.held and self._all_quiesced():
            self._await_end(reply, loop.now() + service.settings.rollout.drain_timeout)
        else:
            loop.call_at(loop.now() + LOOK_S, lambda: self._await_quiesced(reply))

    def _all_quiesced(self) -> bool:
        quiet = (WorkerState.QUIESCED, WorkerState.PROVEN, *GOING)
        return all(worker.state in quiet for worker in self._service.serving or ())

    def _await_end(self, reply: Reply, until: float, news_at: float = 0.0, calm: int = 0) -> None:
        """Connections end by themselves: each answer is its connection's last where there is a ready_path.

        One without a request is not waited for: a pool may hold it for minutes, and `stop` closes it at once.
        """
        service = self._service
        left = sum(worker.counter(Field.CONN_OPEN) for worker in service.crew)
        busy = sum(worker.counter(Field.CONN_BUSY) for worker in service.crew)
        now = service.loop.now()
        calm = 0 if busy else calm + 1
        if calm >= CALM_LOOKS or now >= until or not service.crew.scoreboard.unready:
            reply.result(Exit.OK, _drained(left, busy, service.crew.scoreboard.unready))
            return
        if now >= news_at:
            reply.progress(f"draining: {plural(left, 'connection')} left, {busy} busy")
            news_at = now + NEWS_S
        service.loop.call_at(now + LOOK_S, lambda: self._await_end(reply, until, news_at, calm))


def _drained(left: int, busy: int, unready: bool) -> str:
    if not unready:
        return "the drain was ended by `quiesce resume`"
    rest = f"; {plural(left - busy, 'idle connection')} left" if left > busy else ""
    if busy:
        rest += f"; {plural(busy, 'request')} still under way after drain_timeout"
    return f"drained{rest}; `quiesce resume all` accepts again, `quiesce stop` ends it"


def _late(late: Sequence[Worker]) -> str:
    if not late:
        return ""
    names = ", ".join(worker.id for worker in late[:4])
    return f"; {plural(len(late), 'worker')} ({names}) will follow, busy at present"
