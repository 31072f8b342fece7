"""One worker: what it says, and what becomes of its process, are lifecycle events; their actions are orders to it."""

import signal
from collections.abc import Callable, Sequence

from quiesce.shared import messages as msg
from quiesce.shared.errors import IllegalTransition
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.scoreboard import Field
from quiesce.supervisor import fdnames
from quiesce.supervisor.core import adoption
from quiesce.supervisor.core.exits import Ended
from quiesce.supervisor.core.lifecycle import (
    COMING,
    GOING,
    MOVING,
    ORDERS,
    SERVING,
    Action,
    Event,
    State,
    Step,
    said_by_worker,
    step,
)
from quiesce.supervisor.core.probe_reply import Verdict
from quiesce.supervisor.core.snapshot import WorkerRecord
from quiesce.supervisor.health import Prober
from quiesce.supervisor.render import plural
from quiesce.supervisor.worker_deadline import (
    DRAIN_GRACE_S,
    EXIT_GRACE_S,
    Deadline,
    answer_s,
    is_excused,
    overdue,
)
from quiesce.supervisor.worker_evidence import MAX_KEPT_DETAIL_CHARS, Evidence
from quiesce.supervisor.worker_lanes import WorkerLanes
from quiesce.supervisor.worker_parts import House, Parts, Terms
from quiesce.supervisor.worker_process import Process
from quiesce.supervisor.worker_wire import SAID, Wire

STOP_IDLE_S = 1.0  # so long a connection without a request may still begin one when the instance stops

Watcher = Callable[["Worker", State, State], None]


class Worker:
    """One worker process.  Owns its channel, pidfd and capture, each in a part that knows how to."""

    def __init__(
        self,
        house: House,
        parts: Parts,
        slot: int,
        number: int,
        terms: Terms,
        lane: str = "",
        record: WorkerRecord | None = None,
    ) -> None:
        """A worker that was just spawned, or with ``record`` one that another supervisor has left.

        ``lane``: the key of its generation's; "": there is none.
        """
        self.id = terms.configure.worker
        self.release_id = terms.configure.release
        self.number = number
        self.key = parts.key
        self.pid = parts.pid
        self.slot = slot
        self.state = State.SPAWNED
        self.since = house.loop.now()
        self.accepting_since: float | None = None
        self.restarts = 0  # how many before it, one after another, have died in its place
        self.has_left_place = False  # to a successor
        self.threads = 0
        self._speaks = (msg.PROTOCOL, msg.OLDEST_PROTOCOL)  # until its hello
        self.interface = ""
        self.watcher: Watcher = lambda worker, old, new: None
        self.on_wish: Callable[[Worker], None] = lambda worker: None  # it asks to be replaced
        self.connections_cut = 0
        self._house = house
        self._terms = terms
        self._wire = Wire(house.loop, house.log, parts.channel, self)
        self._process = Process(house.loop, house.store, self.key, parts.pidfd, self._gone)
        self._evidence = Evidence(parts.capture, house.log)
        self._deadline = Deadline(house.loop, self._on_deadline)
        self._prober: Prober | None = None
        self.lanes = WorkerLanes(house, self.id, lane, self._wire.tell, self._moved)
        self.asked_to_leave = False
        self._wishes_to_go = False
        self._hurried = False  # told to end at once
        self._idle_s = 0.0  # of its next `drain`
        self._cut_in: State | None = None  # where it stood when its channel broke: usually it was dying
        if record is None:
            self._keep()
            self._deadline.arm(terms.start_timeout_s)
        else:
            self._recall(record)

    def __repr__(self) -> str:
        return f"<Worker {self.id} {self.state.value} pid={self.pid}>"

    @property
    def failure(self) -> str:
        """Why it was lost, if it was not asked to leave; one sentence."""
        return self._evidence.failure

    @property
    def detail(self) -> str:
        """Its last words: a traceback, or the last lines of its output."""
        return self._evidence.detail

    # -- surviving the supervisor --------------------------------------------------------

    def _keep(self) -> None:
        """Put what the next supervisor needs into the descriptor store; `configure` waits for that."""
        store = self._house.store
        if self._wire.is_open:
            store.put(fdnames.channel(self.key), self._wire.fileno())
        self._process.keep()
        if self._evidence.capture is not None:
            store.put(fdnames.output(self.key), self._evidence.capture.cursor)

    def record(self) -> WorkerRecord:
        """What the next supervisor must know of it."""
        record = WorkerRecord(
            key=self.key,
            number=self.number,
            pid=self.pid,
            slot=self.slot,
            state=self.state.value,
            since=self.since,
            waited_since=self._deadline.waited_since,
            deadline=self._deadline.at,
            accepting_since=self.accepting_since,
            threads=self.threads,
            interface=self.interface,
            protocol=self._speaks[0],
            oldest_protocol=self._speaks[1],
            on_trial=self._evidence.on_trial,
            asked_to_leave=self.asked_to_leave,
            failure=self.failure,
            detail=self.detail[-MAX_KEPT_DETAIL_CHARS:],
            cut=self.connections_cut,
            restarts=self.restarts,
        )
        self.lanes.record(record)
        return record

    def _recall(self, record: WorkerRecord) -> None:
        self.state = State(record.state)
        self.since, self.accepting_since = record.since, record.accepting_since
        self.threads, self.interface = record.threads, record.interface
        self._speaks = record.protocol, record.oldest_protocol
        evidence = self._evidence
        evidence.failure, evidence.detail, evidence.on_trial = record.failure, record.detail, record.on_trial
        self.connections_cut, self.restarts = record.cut, record.restarts
        self._deadline.recall(record.deadline, record.waited_since)
        self.asked_to_leave = record.asked_to_leave
        self.lanes.recall(record)

    def take_over(self) -> None:
        """Begin with a worker that another supervisor has left: ask who it is, do again what that one did last.

        May end its life at once: call it when its watcher is set.
        """
        if self._process.pidfd < 0:
            self._gone(Ended())
            return
        if not self._wire.is_open:
            self._cut_in = self._cut_in or self.state
            self._handle(Event.CHANNEL_LOST)
            return
        self._wire.identify()
        if self.state in (State.QUIESCING, State.QUIESCED):
            self.lanes.take_over()
        self._step(adoption.at_once(self.state))

    def on_identity(self, hello: msg.Hello) -> None:
        """The answer to `identify`: now the worker and our books agree again."""
        named = hello.worker
        if named and (named, hello.release) != (self.id, self.release_id):
            self.fail(f"worker {self.id} says that it is {named}, and was killed")
            return
        if hello.oldest_protocol > msg.PROTOCOL:
            self._retire(f"its quiesce is {hello.version}, too new for us to command it")
            return
        self._note(hello)
        if hello.interface:
            self.interface, self.threads = hello.interface, hello.threads
        if named and self.state not in GOING:
            # The last supervisor may have died in the middle of a `reconfigure`.
            self._send_listeners()
        if self.lanes.reading:
            self.lanes.tell()
        before = self.state
        self._step(adoption.identified(self.state, hello.state, configured=bool(named)))
        self._house.log.info(
            "worker adopted",
            worker=self.id,
            pid=self.pid,
            says=hello.state,
            was=before.value,
            now=self.state.value,
        )

    def _retire(self, why: str) -> None:
        """We cannot talk to it, but it must not be left alone: without a channel it finishes what it has and leaves."""
        self._house.log.warning("worker is retired", worker=self.id, pid=self.pid, reason=why)
        self.asked_to_leave = True
        self.on_wire_lost()

    def on_stale(self, message: msg.Message) -> None:
        """Said to the last supervisor: of that only what no `hello` repeats is worth anything."""
        if isinstance(message, (msg.Failed, msg.Ready, msg.Drained)):
            self._note(message)
        if isinstance(message, msg.Failed):
            self._handle(Event.SAID_FAILED)

    # -- what others ask of it ----------------------------------------------------------

    def ask(self, event: Event) -> None:
        """Give it an event that a rollout, the fleet or a command asks for."""
        if event in (Event.LEAVE_ASKED, Event.DRAIN_ASKED):
            self.asked_to_leave = True
        self._hurried = self._hurried or event is Event.LEAVE_ASKED
        self._handle(event)

    def finish(self) -> None:
        """The instance stops: nobody is left who could have its connections, so those that ask nothing are ended."""
        self._idle_s = STOP_IDLE_S
        drains = self.state is State.DRAINING and not self._hurried
        self.ask(Event.LANE_ASKED if drains else Event.DRAIN_ASKED)

    def redirect(self, target: str) -> None:
        """What it has shall go into another lane than it was told before; "": it shall stay."""
        if target == self.lanes.target:
            return
        self.lanes.target = target
        if self.state in MOVING and not self._hurried:
            self._house.save()
            self._handle(Event.LANE_ASKED)

    @property
    def moving(self) -> bool:
        """Is it quiesced, or about to be, and not done with handing over what can move?"""
        return self.lanes.moving and self.state in MOVING

    def _moved(self) -> None:
        self.watcher(self, self.state, self.state)

    def fail(self, why: str) -> None:
        """Kill it for a fault that was observed from outside (a stalled loop)."""
        self._lost(why)
        self.asked_to_leave = False
        self._process.signal(signal.SIGKILL)

    def probe_again(self, done: Callable[[Verdict], None]) -> Prober:
        """Ask it the health rule's questions while it serves; the caller bounds the time."""
        return Prober(self._house.loop, self._send, self._terms.rule, done)

    def use_log(self, fd: int) -> None:
        """Its trial is over: from now on it writes to the log itself, whoever lives."""
        if not self._evidence.on_trial:
            return
        self._evidence.on_trial = False
        self.copy_output()
        # What it writes until it has read this still goes into the capture, so that is kept.
        self._house.save()
        self._send(msg.UseLog(), (fd,))

    def use_log_again(self, fd: int) -> None:
        """The log is another descriptor now: it was re-opened, or this supervisor has one of its own."""
        if not self._evidence.on_trial and self.state not in GOING:
            self._send(msg.UseLog(), (fd,))

    def when_heard(self, then: "Callable[[Worker], None]") -> None:
        """Call ``then`` when it has obeyed everything that was said to it so far, or never will."""
        self._wire.when_heard(lambda: then(self))

    def tell(self, message: msg.Message, fds: Sequence[int] = ()) -> None:
        """Say something that is no order of its lifecycle (`listen`, `unlisten`)."""
        self._send(message, fds)

    def copy_output(self) -> None:
        """Bring what it wrote into the log."""
        self._evidence.copy_output()

    def check_output(self) -> None:
        """Kill it if it writes without end before it serves."""
        if self.state in COMING and (why := self._evidence.wrote_too_much(self.id)):
            self.fail(why)

    def counter(self, field: Field) -> int:
        """A field of its scoreboard slot: a hint."""
        return self._house.scoreboard.reading(self.slot, field)

    def stands_still(self, now: float, since_s: float) -> bool:
        """Has its loop not turned for so long, for whatever reason?  A hint; of one that never said so: no."""
        turn = self.counter(Field.TURN_NS)
        return bool(turn) and now - turn / 1e9 > since_s

    # -- events -------------------------------------------------------------------------

    def on_message(self, message: msg.Message, re: int | None) -> None:
        self.copy_output()
        if isinstance(message, msg.HandedOver):
            self.lanes.handed_over(message, re)
            return
        if isinstance(message, msg.ReplaceMe):
            self._wishes_to_go = True
            self.on_wish(self)
            return
        event = SAID.get(type(message))
        if event is None:
            word = message.type if isinstance(message, msg.Unknown) else type(message).__name__
            self._house.log.warning("message skipped", worker=self.id, message=word)
            return
        if isinstance(message, msg.Hello) and message.oldest_protocol > msg.PROTOCOL:
            self.fail(
                f"worker {self.id} needs a newer supervisor (its quiesce is {message.version}); install that here, too"
            )
            return
        self._note(message)
        self._handle(event)

    def _note(self, message: msg.Message) -> None:
        """Keep what it says of itself."""
        if isinstance(message, msg.Hello):
            self._speaks = message.protocol, message.oldest_protocol
            self.lanes.version = message.lane_version
        elif isinstance(message, msg.Failed):
            self._evidence.lost(message.reason, message.detail[: msg.MAX_DETAIL_BYTES])
        elif isinstance(message, msg.Ready):
            self.interface, self.threads = message.interface, message.threads
        elif isinstance(message, msg.Drained):
            self.connections_cut = message.cut
        elif isinstance(message, msg.Quiesced):
            self.lanes.quiesced()

    def on_wire_lost(self) -> None:
        """Its end of the channel is closed, or nothing that comes makes sense."""
        self._close_wire()
        self._cut_in = self._cut_in or self.state
        self._handle(Event.CHANNEL_LOST)

    def _gone(self, how: Ended) -> None:
        # What it said just before it died may still lie in the channel.
        self._wire.read()
        as_it_wished = self._wishes_to_go and how.status == WorkerExit.OK
        if not self.asked_to_leave and not self.failure and not as_it_wished:
            self._lost(self._evidence.why_it_ended(self.id, self._cut_in or self.state, how))
        elif how.signal and not self.failure and (count := self.counter(Field.CONN_OPEN)):
            self._house.log.warning(
                "connections lost with a worker that was leaving",
                worker=self.id,
                how=str(how),
                count=count,
            )
        self.copy_output()
        self._close_wire()
        self.lanes.settle()
        if self._prober is not None:
            self._prober.cancel()
        self._process.close()
        self._handle(Event.EXITED)
        self._evidence.close(lambda: self._house.store.drop(fdnames.output(self.key)))

    def _lost(self, why: str) -> None:
        """It is dead, or about to be killed, and what it holds goes with it."""
        count = self.counter(Field.CONN_OPEN) if self.state in SERVING else 0
        self._evidence.lost(f"{why}; {plural(count, 'connection')} went with it" if count else why)

    def _on_deadline(self) -> None:
        if is_excused(
            self.state,
            self._deadline.waited_s,
            in_request=bool(self.counter(Field.IN_REQUEST_SINCE_NS)),
            drain_timeout_s=self._terms.drain_timeout_s,
            pid=self.pid,
        ):
            self._deadline.look_again()
            return
        path = self._prober.pending_path() if self._prober else ""
        reason = overdue(self.id, self.state, self._deadline.waited_s, path)
        if reason:
            self._lost(reason)
        self._handle(Event.DEADLINE)

    # -- transitions --------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        try:
            taken = step(self.state, event)
        except IllegalTransition as exc:
            if not said_by_worker(event) and event is not Event.CHANNEL_LOST:
                raise
            self._house.log.warning("worker spoke out of turn", worker=self.id, error=str(exc))
            return
        self._step(taken)

    def _step(self, taken: Step) -> None:
        before = self.state
        self.state, actions = taken
        if self.state is State.ACCEPTING and self.accepting_since is None:
            self.accepting_since = self._house.loop.now()
        if self.state is not before:
            orders = any(action in ORDERS for action in actions)
            self._house.save() if orders else self._house.save_soon()
        for action in actions:
            _PERFORM[action](self)
        if self.state is not before:
            self.watcher(self, before, self.state)

    def _configure(self) -> None:
        # Not before it is with the descriptor store: from here on it would serve, and nobody could adopt it.
        self._house.store.sync(lambda kept: self._configure_now())

    def _configure_now(self) -> None:
        if self.state is not State.LOADING:
            return
        self._send_listeners()
        self._send(msg.UseScoreboard(self.slot), (self._house.scoreboard.fd,))
        self._send(self._terms.configure)

    def _send_listeners(self) -> None:
        self._send(msg.Listen(self._house.listeners.names()), self._house.listeners.fds())

    def _probe(self) -> None:
        self._prober = Prober(self._house.loop, self._send, self._terms.rule, self._on_verdict)

    def _on_verdict(self, verdict: Verdict) -> None:
        self._prober = None
        if self.state is not State.PROBING:
            return
        if not verdict.passed:
            self._evidence.lost(f"health probe of worker {self.id} failed: {verdict.text}")
        self._handle(Event.PROBE_PASSED if verdict.passed else Event.PROBE_FAILED)

    def _send(self, message: msg.Message, fds: Sequence[int] = ()) -> bool:
        """Say it.  False: it will never be heard."""
        return self._wire.tell(message, fds) is not None

    def _close_wire(self) -> None:
        if self._wire.is_open:
            # The store's copy goes too: while it is open the worker sees no end of its channel.
            self._house.store.drop(fdnames.channel(self.key))
            self._wire.close()

    def _send_drain(self) -> None:
        self.lanes.order(msg.Drain(self._terms.drain_timeout_s, idle_s=self._idle_s))

    def _send_drain_rest(self) -> None:
        rest = self._deadline.rest(DRAIN_GRACE_S)
        timeout_s = self._terms.drain_timeout_s if rest is None else rest
        self.lanes.order(msg.Drain(timeout_s, idle_s=self._idle_s))

    def _send_accept(self) -> None:
        self.lanes.tell()
        self._send(msg.Accept())

    def _send_quiesce(self) -> None:
        if not self.lanes.reading:
            self.lanes.tell()
        self.lanes.order(msg.Quiesce())
        if self.state is State.QUIESCED:  # no deadline waits for its answer to a second one
            self.lanes.quiesced()

    def _send_resume(self) -> None:
        self.lanes.settle()
        self._send(msg.Resume())


_PERFORM: dict[Action, Callable[[Worker], object]] = {
    Action.CONFIGURE: Worker._configure,
    Action.PROBE: Worker._probe,
    Action.SEND_ACCEPT: Worker._send_accept,
    Action.SEND_QUIESCE: Worker._send_quiesce,
    Action.SEND_RESUME: Worker._send_resume,
    Action.SEND_DRAIN: Worker._send_drain,
    Action.SEND_DRAIN_NOW: lambda w: w._send(msg.Drain(0.0)),
    Action.SEND_DRAIN_REST: Worker._send_drain_rest,
    Action.SEND_SHUTDOWN: lambda w: w._send(msg.Shutdown()),
    Action.SIGTERM: lambda w: w._process.signal(signal.SIGTERM),
    Action.SIGKILL: lambda w: w._process.signal(signal.SIGKILL),
    Action.ARM_START: lambda w: w._deadline.arm_rest(w._terms.start_timeout_s),
    Action.ARM_PROBE: lambda w: w._deadline.arm(w._terms.start_timeout_s),
    Action.ARM_ANSWER: lambda w: w._deadline.arm(answer_s(w.state)),
    Action.ARM_DRAIN: lambda w: w._deadline.arm(w._terms.drain_timeout_s + DRAIN_GRACE_S),
    Action.ARM_DRAIN_REST: lambda w: w._deadline.arm_rest(w._terms.drain_timeout_s + DRAIN_GRACE_S),
    Action.ARM_EXIT: lambda w: w._deadline.arm(w._terms.configure.exit_timeout_s + EXIT_GRACE_S),
    Action.DISARM: lambda w: w._deadline.disarm(),
}
