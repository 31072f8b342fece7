"""Obeys the supervisor: messages, SIGTERM and the end of the channel become steps of the standing table."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from quiesce import __version__
from quiesce.shared import messages as msg
from quiesce.shared.channel import Incoming
from quiesce.shared.errors import PeerClosed
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.fdpass import close_all
from quiesce.shared.messages import Message
from quiesce.worker import output
from quiesce.worker.core.standing import Action, Event, State, step
from quiesce.worker.daemon import Daemon
from quiesce.worker.inbox import Inbox, one, sockets_of, target_of
from quiesce.worker.loops.base import READ, WRITE, Loop, Timer
from quiesce.worker.net.idlers import end_idle
from quiesce.worker.net.lane_writer import Target
from quiesce.worker.proctitle import ProcTitle
from quiesce.worker.supervisor_link import Link, complain

TITLE_EVERY_S = 0.25
# For the answer to `replace-me`: longer than a dead supervisor's successor needs, shorter than those wait who send
# SIGKILL after SIGTERM.
REPLACING_S = 3.0

_STATE_TOLD = {State.FAREWELL: State.DRAINING, State.LEAVING: State.DRAINED}


def hello(configure: msg.Configure | None, state: State, ready: msg.Ready | None = None) -> msg.Hello:
    """Who this worker is and how it stands; ``ready``: what it said when it was."""
    return msg.Hello(
        msg.PROTOCOL,
        msg.OLDEST_PROTOCOL,
        __version__,
        "{}.{}.{}".format(*sys.version_info[:3]),
        os.getpid(),
        configure.worker if configure else "",
        configure.release if configure else "",
        _STATE_TOLD.get(state, state).value,
        ready.interface if ready else "",
        ready.threads if ready else 0,
        msg.LANE_VERSION,
    )


class Ending(Protocol):
    """What an application does at the end (ASGI's lifespan)."""

    def shutdown(self, done: Callable[[], None]) -> None: ...


class Orders:
    """The conversation of a worker that has loaded its application.

    Args:
        link: Becomes ours.
        inbox: What came before; the daemon has its listeners already.
        ending: Runs after the last connection and before the loop stops; None if there is nothing to run.
    """

    def __init__(
        self, link: Link, inbox: Inbox, daemon: Daemon, loop: Loop, conf: msg.Configure, ending: Ending | None
    ) -> None:
        self.state = State.STARTING
        self.status: int = WorkerExit.OK  # the exit status, once the loop has stopped
        self._link, self._inbox, self._daemon, self._loop = link, inbox, daemon, loop
        self._conf, self._ending = conf, ending
        self._ready: msg.Ready | None = None  # what was said
        self._attends = False
        self._early: list[Incoming] = []  # came while the application starts, and is for one that has started
        self._drain_timeout_s = conf.drain_timeout_s
        self._drain_seq: int | None = None
        self._drain_until = inf
        self._idle_s = 0.0  # 0: connections without a request have until then, too
        self._idle_timer: Timer | None = None
        self._target: Target | None = None  # of the order that is being obeyed
        self._has_accepted = False
        self._watches_write = False
        self._title = ProcTitle(conf.name, conf.worker)
        self._title_armed = False
        self._signals: tuple[int, int] | None = None
        self._told_to_go = False  # by a signal
        self._unanswered: Timer | None = None  # `replace-me`

    # -- beginning ----------------------------------------------------------------------

    def attend(self) -> None:
        """Listen to the supervisor.  In the loop's thread, in one of its turns.

        While a lifespan starts this comes before :meth:`begin`, so that `identify` is answered, what is to
        be held is held, and `shutdown` and the end of the channel are heard.
        """
        self._attends = True
        self._loop.watch(self._link.fileno(), self._on_channel)
        self.pump()

    def begin(self, ready: msg.Ready) -> None:
        """Say ready and obey, beginning with what has come meanwhile.  In the loop's thread, in one of its turns."""
        self._watch_signals()
        self._ready = ready
        self._handle(Event.LOADED, answer=ready)
        for name in list(self._inbox.lanes):
            self._daemon.add_lane(name, self._inbox.lanes.pop(name))
        early, self._early = self._early, []
        for incoming in early:
            self._obey(incoming)
        if self._attends:
            self.pump()
        else:
            self.attend()

    def _watch_signals(self) -> None:
        """SIGTERM wakes the loop; SIGINT belongs to whoever has the terminal, and that is not us."""
        # Not SIG_IGN, which the application's children would inherit.
        signal.signal(signal.SIGINT, lambda *_: None)
        on_signal = getattr(self._loop, "on_signal", None)
        if on_signal is not None:  # asyncio has one wakeup descriptor, and the application may use it too
            on_signal(signal.SIGTERM, self._on_sigterm)
            return
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals = reader, writer
        self._loop.watch(reader, self._on_wakeup)
        # Written at C level: the kernel may deliver the signal to another thread than the one that waits.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

    def _on_wakeup(self, _mask: int) -> None:
        assert self._signals is not None
        try:
            numbers = os.read(self._signals[0], 512)
        except BlockingIOError:
            return
        if signal.SIGTERM in numbers:  # the application may have handlers for others
            self._on_sigterm()

    def _on_sigterm(self) -> None:
        if self._loop.now() >= self._drain_until:
            # Past a drain's deadline it is the supervisor's last word before SIGKILL: what is left is cut, so that the
            # application still ends normally.
            self._handle(Event.SHUTDOWN)
        elif self.state is State.FAREWELL or not self._told_to_go:
            self._told_to_go = True
            self._handle(Event.TOLD_TO_GO)
        else:
            # Somebody insists.  EOF tells the supervisor.
            self._farewell()

    def _ask_to_be_replaced(self) -> None:
        self._link.say(msg.ReplaceMe(signal.SIGTERM.name))
        if self._unanswered is None:
            self._unanswered = self._loop.call_at(self._loop.now() + REPLACING_S, self._not_replaced)

    def _replacing(self, _incoming: Incoming) -> None:
        if self._unanswered is not None:
            self._unanswered.cancel()
            self._unanswered = None

    def _not_replaced(self) -> None:
        self._unanswered = None
        if self.state in (State.READY, State.ACCEPTING, State.QUIESCED):
            complain(
                f"worker {self._conf.worker} was sent SIGTERM, and the supervisor does not answer: it finishes what it "
                "has, and leaves"
            )
            self._farewell()

    def descriptors(self) -> list[int]:
        """What a forked child must not keep."""
        early = [fd for incoming in self._early for fd in incoming.fds]
        return [*(self._signals or ()), self._link.fileno(), *self._inbox.descriptors(), *early]

    # -- the channel --------------------------------------------------------------------

    def _on_channel(self, mask: int) -> None:
        if mask & WRITE:
            self._link.flush()
        self.pump()

    def pump(self) -> None:
        """Obey everything that is there.  The daemon calls this before it accepts: orders come first."""
        if not self._link.is_open:
            return
        try:
            while (incoming := self._link.receive()) is not None:
                self._obey(incoming)
        except PeerClosed:
            self._farewell()
            return
        if self._link.lost and not self._has_accepted:
            self._give_up(self._link.lost)
        self._watch_write()

    def _farewell(self) -> None:
        """Finish what was accepted, and leave: nobody will say anything any more."""
        if self._link.is_open:
            self._loop.unwatch(self._link.fileno())
            self._link.close()
        self._handle(Event.ORPHANED)
        # Nobody will say `resume`: let the address go, so that a new start finds it free while we drain.
        for name in self._daemon.listeners():
            self._daemon.remove_listener(name)

    def _give_up(self, why: str) -> None:
        """Something was lost before this worker served anyone: it may have been a listener."""
        if self.state is not State.LEAVING:
            self._link.say(msg.Failed(why))
            self.status = WorkerExit.PROTOCOL
            self._handle(Event.SHUTDOWN)

    def _watch_write(self) -> None:
        wanted = self._link.wants_write
        if wanted != self._watches_write and self._link.is_open and self._attends:
            self._watches_write = wanted
            self._loop.rewatch(self._link.fileno(), READ | WRITE if wanted else READ)

    def _obey(self, incoming: Incoming) -> None:
        """Do what one message says.  Nothing that it says may end this worker by accident."""
        try:
            order = _ORDERS.get(type(incoming.message))
            if self.state is State.STARTING and type(incoming.message) in _OF_THE_STARTED:
                self._early.append(incoming)
            elif order is None:
                close_all(incoming.fds)
                complain(f"message {type(incoming.message).__name__!r} is not for a worker; it is skipped")
            else:
                order(self, incoming)
        except Exception as exc:
            complain(f"message {type(incoming.message).__name__!r} failed: {type(exc).__name__}: {exc}")

    def _listen(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.Listen)
        for name, sock in sockets_of(incoming.message, incoming.fds):
            self._daemon.add_listener(name, sock)

    def _unlisten(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.Unlisten)
        for name in incoming.message.names:
            self._daemon.retire_listener(name)

    def _lanes(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.UseLane)
        for name, sock in sockets_of(incoming.message, incoming.fds):
            self._daemon.add_lane(name, sock)

    def _shed(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.Shed)
        target = target_of(incoming.message, incoming.fds)
        if target is not None:
            self._daemon.shed(incoming.message.most, target)

    def _scoreboard(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.UseScoreboard)
        self._inbox.attach(incoming.message, incoming.fds)
        self._daemon.use_slot(self._inbox.slot, self._inbox.neighbours)

    def _log(self, incoming: Incoming) -> None:
        output.use(one(incoming.fds))

    def _probe(self, incoming: Incoming) -> None:
        message = incoming.message
        assert isinstance(message, msg.Probe)
        self._daemon.add_connection(
            socket.socket(fileno=one(incoming.fds)),
            peer=_address(message.peer),
            local=_address(message.local),
            scheme=message.scheme,
            probe=True,
        )

    def _identify(self, incoming: Incoming) -> None:
        self._link.say(hello(self._conf, self.state, self._ready), re=incoming.seq)
        if self._unanswered is not None:
            self._ask_to_be_replaced()  # the one before may not have heard it

    def _configure(self, incoming: Incoming) -> None:
        # A supervisor that took over does not know whether the one before it came to say this.
        assert isinstance(incoming.message, msg.Configure)
        if incoming.message.worker != self._conf.worker:
            complain(
                f"a `configure` for {incoming.message.worker} came to {self._conf.worker}; a worker serves one "
                "release, so it is skipped"
            )

    def _quiesce(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.Quiesce)
        self._handle_with_lane(Event.QUIESCE, incoming.message, incoming)

    def _drain(self, incoming: Incoming) -> None:
        assert isinstance(incoming.message, msg.Drain)
        self._drain_timeout_s = max(0.0, incoming.message.timeout_s)
        self._drain_seq = incoming.seq
        self._idle_s = max(0.0, incoming.message.idle_s)
        self._handle_with_lane(Event.DRAIN, incoming.message, incoming)

    def _handle_with_lane(self, event: Event, message: msg.Quiesce | msg.Drain, incoming: Incoming) -> None:
        self._target = target_of(message, incoming.fds)
        self._handle(event, incoming.seq)
        unused, self._target = self._target, None
        if unused is not None:
            unused.close()

    def _hand_over(self, seq: int | None) -> None:
        target, self._target = self._target, None
        self._daemon.hand_over_to(
            target, lambda moved, left: self._link.say(msg.HandedOver(moved, left), re=seq)
        )

    # -- the table ----------------------------------------------------------------------

    def _handle(self, event: Event, seq: int | None = None, answer: Message | None = None) -> None:
        old = self.state
        self.state, actions = step(old, event)
        for action in actions:
            self._perform(action, old, seq, answer)
        self._watch_write()
        if event is Event.LOADED or self.state is not old:
            self._show_title()

    def _perform(self, action: Action, old: State, seq: int | None, answer: Message | None) -> None:
        daemon, say = self._daemon, self._link.say
        if action is Action.ACCEPT:
            self._has_accepted = True
            self._drain_until = inf
            if old is State.READY:
                daemon.accept()
            else:
                daemon.resume()
        elif action is Action.QUIESCE:
            daemon.quiesce()
        elif action is Action.HAND_OVER:
            self._hand_over(seq)
        elif action is Action.KEEP:
            daemon.orphaned()
        elif action is Action.DRAIN:
            self._drain_until = self._loop.now() + self._drain_timeout_s
            daemon.drain(self._drain_timeout_s, self._on_empty)
            self._end_idle_later()
        elif action is Action.LEAVE:
            self._leave()
        elif action is Action.SAY_READY:
            assert answer is not None
            say(answer)
        elif action is Action.SAY_ACCEPTING:
            say(msg.Accepting(), re=seq)
        elif action is Action.SAY_QUIESCED:
            say(msg.Quiesced(daemon.open), re=seq)
        elif action is Action.SAY_RESUMED:
            say(msg.Resumed(), re=seq)
        elif action is Action.SAY_DRAINED:
            say(msg.Drained(daemon.cut), re=self._drain_seq)
        elif action is Action.SAY_REPLACE_ME:
            self._ask_to_be_replaced()

    def _on_empty(self) -> None:
        self._handle(Event.EMPTY)

    def _end_idle_later(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._idle_s:
            self._idle_timer = self._loop.call_at(self._loop.now() + self._idle_s, self._end_idle)

    def _end_idle(self) -> None:
        if self._daemon.draining:
            end_idle(self._daemon)
            self._end_idle_later()  # one that has sent an empty line, or comes by a lane that has not ended yet

    def _leave(self) -> None:
        """Let go of every connection, end the application, stop the loop."""
        self._daemon.close()
        if self._ending is None:
            self._loop.stop()
        else:
            self._ending.shutdown(self._loop.stop)
            if self._conf.exit_timeout_s > 0:
                self._loop.call_at(self._loop.now() + self._conf.exit_timeout_s, self._loop.stop)

    # -- the title ----------------------------------------------------------------------

    def _show_title(self) -> None:
        self._title.show(_STATE_TOLD.get(self.state, self.state).value, self._daemon.open)
        if self.state in (State.QUIESCED, State.DRAINING, State.FAREWELL) and not self._title_armed:
            self._title_armed = True
            self._loop.call_at(self._loop.now() + TITLE_EVERY_S, self._title_again)

    def _title_again(self) -> None:
        self._title_armed = False
        self._show_title()


def _address(given: list[Any] | None) -> tuple[str, int] | None:
    """[host, port] as it came; anything else is a unix socket's, which has none."""
    if given is None or len(given) < 2:
        return None
    return str(given[0]), int(given[1])


def _by_event(event: Event) -> Callable[[Orders, Incoming], None]:
    return lambda orders, incoming: orders._handle(event, incoming.seq)


_OF_THE_STARTED = frozenset(
    (msg.Probe, msg.UseLane, msg.Accept, msg.Quiesce, msg.Shed, msg.Resume, msg.Drain)
)

_ORDERS: dict[type[Any], Callable[[Orders, Incoming], None]] = {
    msg.Identify: Orders._identify,
    msg.Configure: Orders._configure,
    msg.Listen: Orders._listen,
    msg.Unlisten: Orders._unlisten,
    msg.UseScoreboard: Orders._scoreboard,
    msg.UseLog: Orders._log,
    msg.UseLane: Orders._lanes,
    msg.Probe: Orders._probe,
    msg.Quiesce: Orders._quiesce,
    msg.Shed: Orders._shed,
    msg.Drain: Orders._drain,
    msg.Replacing: Orders._replacing,
    msg.Accept: _by_event(Event.ACCEPT),
    msg.Resume: _by_event(Event.RESUME),
    msg.Shutdown: _by_event(Event.SHUTDOWN),
}
