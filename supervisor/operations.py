"""What each command does: from a request on the control socket to the service, and back."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from quiesce.shared.errors import ConfigError, QuiesceError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import status
from quiesce.supervisor.config_text import parse_duration
from quiesce.supervisor.core.lanes import Why
from quiesce.supervisor.core.lifecycle import COMING, GOING
from quiesce.supervisor.core.lifecycle import Event as WorkerEvent
from quiesce.supervisor.core.lifecycle import State as WorkerState
from quiesce.supervisor.core.snapshot import AnswerRecord, Snapshot
from quiesce.supervisor.ledger import PLAIN, Ledger
from quiesce.supervisor.render import plural
from quiesce.supervisor.rollouts import RolloutRun
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import SILENT, Busy, Ended, Stopping, Watch
from quiesce.supervisor.worker_link import Worker


class Reply(Protocol):
    """Where the answer goes; does nothing once the client has gone."""

    def progress(self, text: str, **data: Any) -> None: ...
    def result(self, code: int, text: str, detail: str = "", data: dict[str, Any] | None = None) -> None: ...


Args = Mapping[str, Any]


class _Recorded:
    """A reply whose result is written into the ledger first."""

    def __init__(self, reply: Reply, record: Callable[..., None]) -> None:
        self._reply = reply
        self._record = record
        self.progress = reply.progress

    def result(self, code: int, text: str, detail: str = "", data: dict[str, Any] | None = None) -> None:
        self._record(code, text, detail, data)
        self._reply.result(code, text, detail, data)


class Operations:
    """The commands of a running instance."""

    def __init__(self, service: Service, records: Sequence[AnswerRecord] = ()) -> None:
        """``records``: the ledger that another supervisor has left."""
        self._service = service
        self._ledger = Ledger()
        self._ledger.recall(list(records))
        self._stop_replies: list[Reply] = []
        self._commands: dict[str, Callable[[Args, Reply], None]] = {
            "upgrade": self._upgrade,
            "promote": self._promote,
            "abort": self._abort,
            "rollback": self._rollback,
            "status": self._status,
            "history": self._history,
            "scale": self._scale,
            "quiesce": self._quiesce,
            "resume": self._resume,
            "stop": self._stop,
        }
        self._request = ""  # the id of the request that is being handled
        self._again = False  # ... which was made before, and another supervisor has not ended it
        service.on_decided = self._decided

    def add(self, command: str, handler: Callable[[Args, Reply], None]) -> None:
        """A command that is carried out elsewhere."""
        self._commands[command] = handler

    @property
    def again(self) -> bool:
        """Was the request that is being handled begun by another supervisor?"""
        return self._again

    def record(self, snapshot: Snapshot) -> None:
        """Our part of the state."""
        snapshot.answers = self._ledger.to_state()

    def handle(self, command: str, args: Args, reply: Reply, request_id: str = "") -> None:
        """Carry out one command; every way out of here ends in one ``reply.result``, now or later.

        A request that was made before is not carried out again: its outcome is told, or waited for.
        """
        handler = self._commands.get(command)
        if handler is None:
            reply.result(Exit.USAGE, f"no command {command!r}; see `quiesce --help`")
            return
        self._request, self._again = request_id, False
        if request_id and command not in PLAIN:
            known = self._ledger.find(request_id)
            reply = _Recorded(reply, partial(self._end_request, request_id))
            if known is not None and self._rejoin(known, args, reply):
                return
            self._again = known is not None
            if known is None:
                self._ledger.begin(request_id, command)
                self._service.save()
        try:
            handler(args, reply)
        except QuiesceError as exc:
            code = (
                Exit.BUSY
                if isinstance(exc, Busy)
                else Exit.USAGE
                if isinstance(exc, ConfigError)
                else Exit.DOWN
            )
            if command not in PLAIN:
                self._service.log.warning(f"command {command} refused", why=str(exc))
            reply.result(code, str(exc))
        except Exception as exc:
            # Answered, so not raised: a client must not be able to end the supervisor by asking often.
            text = "".join(traceback.format_exception(exc))
            self._service.log.multiline("error", "bug in quiesce", text, command=command, error=repr(exc))
            reply.result(
                Exit.DOWN, f"a bug in quiesce: {exc!r}; what served still serves; the log has the traceback"
            )
        finally:
            self._request, self._again = "", False  # a signal that means a command is nobody's request

    # -- requests that come again ---------------------------------------------------------

    def _end_request(
        self, request_id: str, code: int, text: str, detail: str = "", data: Mapping[str, Any] | None = None
    ) -> None:
        if self._ledger.end(request_id, code, text, detail, data):
            self._service.save()

    def _decided(self, run: RolloutRun, ended: Ended) -> None:
        """Also for commands that have lost their supervisor and have not come back yet."""
        for request_id in run.requests:
            self._end_request(request_id, ended.code, ended.text, ended.detail, self._data())

    def _rejoin(self, known: AnswerRecord, args: Args, reply: Reply) -> bool:
        """Is there nothing to be done but to tell, or to wait?"""
        run = next((run for run in self._service.runs if known.id in run.requests), None)
        if run is not None:
            watch = self._watch(args, reply)
            run.watches.append(watch)
            if known.code is not None:
                watch.decided(Ended(known.code, known.text, known.detail))
            return True
        if known.code is not None:
            reply.result(known.code, known.text, known.detail, known.data)
        return known.code is not None

    # -- changes ------------------------------------------------------------------------

    def _upgrade(self, args: Args, reply: Reply) -> None:
        if args.get("canary"):
            raise ConfigError("--canary comes with a later version of quiesce; leave it out")
        options = {key: _text(args, key) for key in ("release", "python", "app") if args.get(key)}
        plan: dict[str, object] = {
            "force": bool(args.get("force")),
            "if_changed": bool(args.get("if_changed")),
            "by_manager": bool(args.get("reload")),
        }
        if args.get("bake") is not None:
            plan["bake"] = _seconds(args["bake"])
        watch = self._watch(args, reply)
        label = _text(args, "label") if args.get("label") else None
        run = self._service.upgrade(options, label, plan, watch)
        if run is None:
            serving = self._service.serving
            assert serving is not None
            reply.result(
                Exit.OK, f"nothing has changed: {serving.release.id} ({serving.release.path}) serves on"
            )
        elif args.get("no_wait"):
            _say_begun(run, reply)

    def _rollback(self, args: Args, reply: Reply) -> None:
        which = _text(args, "which") if args.get("which") else None
        bake_s = None if args.get("bake") is None else _seconds(args["bake"])
        run = self._service.rollback(which, self._watch(args, reply), bake_s)
        if args.get("no_wait"):
            _say_begun(run, reply)

    def _watch(self, args: Args, reply: Reply) -> Watch:
        """Wait for the decision, or with ``wait_drained`` for the end of the old generation as well."""
        if args.get("no_wait"):
            return SILENT._replace(request=self._request)
        answer: list[Ended] = []

        def decided(ended: Ended) -> None:
            answer.append(ended)
            if not args.get("wait_drained") or ended.code != Exit.OK:
                self._end(reply, ended)
            else:
                reply.progress(f"{ended.text}; waiting for the old workers to drain")

        def finished() -> None:
            if args.get("wait_drained") and answer and answer[0].code == Exit.OK:
                self._end(reply, answer[0]._replace(text=answer[0].text + "; " + _drained(self._service)))

        return Watch(reply.progress, decided, finished, self._request)

    def _end(self, reply: Reply, ended: Ended) -> None:
        reply.result(ended.code, ended.text, ended.detail, self._data())

    def _data(self) -> dict[str, Any]:
        serving = self._service.serving
        return {"release": serving.release.id if serving is not None else None}

    def _promote(self, args: Args, reply: Reply) -> None:
        run = self._service.run
        if run is None or not run.promote():
            if self._again:  # it was that supervisor's last deed
                reply.result(Exit.OK, f"the bake is over; {_serving(self._service)} serves")
                return
            raise ConfigError("there is no bake to end; see `quiesce status`")
        reply.result(Exit.OK, f"{run.release.id} is promoted: the bake is over")

    def _abort(self, args: Args, reply: Reply) -> None:
        run = self._service.run
        if run is None and self._again:
            reply.result(Exit.OK, f"it is aborted; {_serving(self._service)} serves on")
            return
        if run is None:
            raise ConfigError(
                "there is no rollout to abort; `quiesce rollback` goes back to an earlier release"
            )
        run.abort("it was aborted with `quiesce abort`")
        self._service.when(
            lambda: not run.deciding,
            lambda: reply.result(
                Exit.OK, f"{run.release.id} is aborted; {_serving(self._service)} serves on"
            ),
        )

    # -- looking ------------------------------------------------------------------------

    def _status(self, args: Args, reply: Reply) -> None:
        reply.result(Exit.OK, status.one_line(self._service), data=status.document(self._service))

    def _history(self, args: Args, reply: Reply) -> None:
        limit = args.get("limit")
        entries = self._service.history.entries(limit if isinstance(limit, int) and limit > 0 else None)
        reply.result(Exit.OK, f"{len(entries)} entries", data={"entries": entries})

    # -- workers ------------------------------------------------------------------------

    def _scale(self, args: Args, reply: Reply) -> None:
        wanted = args.get("workers")
        if type(wanted) is not int or not 1 <= wanted <= 1000:
            raise ConfigError("scale wants a number of workers from 1 to 1000")
        service = self._service
        before = {worker.id for worker in (*service.crew, *service.losses)}
        service.scale(wanted)
        if args.get("no_wait"):
            reply.result(Exit.OK, f"{wanted} workers are wanted; see `quiesce status`")
            return

        lost: list[Worker] = []

        def settled() -> bool:
            if (
                service.serving is None
                or service.upkeep.wanted != wanted
                or service.stopping is not Stopping.NO
            ):
                return True
            workers = list(service.serving)
            lost.extend(worker for worker in service.losses if worker.id not in before)
            staying = [worker for worker in workers if worker.state not in GOING]
            there = WorkerState.PROVEN if service.upkeep.held else WorkerState.ACCEPTING
            quiet = (WorkerState.QUIESCED,)
            return (
                bool(lost)
                or bool(service.upkeep.cannot_spawn)
                or (len(staying) == wanted and all(w.state is there or w.state in quiet for w in staying))
            )

        def answer() -> None:
            if service.stopping is not Stopping.NO:
                reply.result(Exit.BUSY, "this instance is stopping")
            elif lost:
                reply.result(
                    Exit.DOWN, f"less than {wanted} workers serve: {lost[0].failure}", lost[0].detail
                )
            elif service.upkeep.cannot_spawn:
                reply.result(Exit.DOWN, f"less than {wanted} workers serve: {service.upkeep.cannot_spawn}")
            elif service.upkeep.wanted != wanted:
                reply.result(Exit.BUSY, f"another command wants {service.upkeep.wanted} workers now")
            else:
                reply.result(
                    Exit.OK, f"{plural(wanted, 'worker')} of {_serving(service)} serve{'s' * (wanted == 1)}"
                )

        service.when(settled, answer)

    def _chosen(self, args: Args) -> tuple[str, list[Worker]]:
        what = _text(args, "what")
        service = self._service
        if what == "all":
            return what, [w for w in service.serving or () if w.state not in GOING and w.state not in COMING]
        workers = [w for w in service.crew if what in (w.id, w.release_id) and w.state not in GOING]
        if not workers:
            have = (
                ", ".join(sorted({w.release_id for w in service.crew} | {w.id for w in service.crew}))
                or "none"
            )
            raise ConfigError(f"no worker or release {what!r}; there are: {have}")
        coming = [w.id for w in workers if w.state in COMING]
        if coming:
            raise ConfigError(f"worker {coming[0]} does not accept yet; see `quiesce status`")
        return what, workers

    def _quiesce(self, args: Args, reply: Reply) -> None:
        # A rollout quiesces and resumes by itself; a second hand would upset its table.
        self._service.admission.refuse_if_busy()
        what, workers = self._chosen(args)
        if what == "all":
            self._service.upkeep.hold()
        one = len(workers) == 1 and workers[0].id == what
        for worker in workers:
            self._service.crew.hand_over.redirect(worker, Why.SET_ASIDE if one else Why.HELD)
            worker.ask(WorkerEvent.QUIESCE_ASKED)
        self._answer_when(workers, WorkerState.QUIESCED, reply, lambda: self._quiesced(what, workers))

    def _quiesced(self, what: str, workers: list[Worker]) -> str:
        text = f"{what}: {_have(workers, 'quiesced')}"
        moved = sum(worker.lanes.said.moved for worker in workers if worker.lanes.said is not None)
        if any(worker.state is WorkerState.ACCEPTING for worker in self._service.serving or ()):
            noun = plural(moved, "connection")
            return f"{text}; {noun} went to others of its release" if moved else text
        return f"{text}; new connections wait in the kernel's queue"

    def _resume(self, args: Args, reply: Reply) -> None:
        self._service.admission.refuse_if_busy()
        what, workers = self._chosen(args)
        if what == "all":
            # Also those that an upgrade has brought meanwhile, who wait for the order to accept.
            workers += [w for w in self._service.serving or () if w.state is WorkerState.PROVEN]
            self._service.upkeep.readmit()
        for worker in workers:
            self._service.crew.hand_over.aim(worker, Why.RESUMED)
            worker.ask(WorkerEvent.RESUME_ASKED)
        text = f"{what}: {plural(len(workers), 'worker')} accept{'s' * (len(workers) == 1)}"
        self._answer_when(workers, WorkerState.ACCEPTING, reply, lambda: text)

    def _answer_when(
        self, workers: list[Worker], state: WorkerState, reply: Reply, text: Callable[[], str]
    ) -> None:
        def answer() -> None:
            lost = [worker for worker in workers if worker.state is not state]
            if lost:
                why = lost[0].failure or f"worker {lost[0].id} is {lost[0].state.value}"
                reply.result(Exit.DOWN, why)
            else:
                reply.result(Exit.OK, text())

        def settled() -> bool:
            return all((w.state is state and not w.moving) or w.state in GOING for w in workers)

        self._service.when(settled, answer)

    # -- the end ------------------------------------------------------------------------

    def _stop(self, args: Args, reply: Reply) -> None:
        self._stop_replies.append(reply)
        self._service.stop(now=bool(args.get("now")))
        if not self._service.crew.all_gone():
            reply.progress(f"stopping: waiting for {self._service.waiting_for()}")

    def tell_stopping(self) -> None:
        """Progress for those who wait for the end."""
        for reply in self._stop_replies:
            reply.progress(f"stopping: waiting for {self._service.waiting_for()}")

    def expects_more(self) -> bool:
        """Has a `stop` that was asked of the last supervisor not come back for its answer yet?"""
        open_ones = [
            known for known in self._ledger.to_state() if known.command == "stop" and known.code is None
        ]
        return len(open_ones) > len(self._stop_replies)

    def stopped(self) -> None:
        """Everything has drained: the last answers."""
        for reply in self._stop_replies:
            reply.result(Exit.OK, f"{self._service.settings.service.name} has stopped")
        self._stop_replies.clear()


def _say_begun(run: RolloutRun, reply: Reply) -> None:
    """The answer to ``--no-wait``."""
    text = f"{run.plan.command} to {run.release.id} has begun; see `quiesce status`"
    reply.result(Exit.OK, text, data={"release": run.release.id})


def _drained(service: Service) -> str:
    """How the last generation that left has ended."""
    cut = service.last_cut
    return (
        f"the old workers have drained, {plural(cut, 'request')} had to be cut at drain_timeout"
        if cut
        else "the old workers have drained"
    )


def _have(workers: list[Worker], state: str) -> str:
    return f"{plural(len(workers), 'worker')} {'is' if len(workers) == 1 else 'are'} {state}"


def _serving(service: Service) -> str:
    return service.serving.release.id if service.serving is not None else "nothing"


def _text(args: Args, key: str) -> str:
    value = args.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} wants a text")
    try:
        os.fsencode(value)  # a lone surrogate cannot be in the name of a file
    except UnicodeEncodeError:
        raise ConfigError(f"{key} is not valid text: {value!r}") from None
    if not value.isprintable():
        raise ConfigError(f"{key} must not hold control characters: {value!r}")
    return value


def _seconds(value: object) -> float:
    try:
        if type(value) in (int, float):
            value = f"{float(value)}s"  # type: ignore[arg-type]
        return parse_duration(value)
    except (ValueError, OverflowError) as exc:
        raise ConfigError(f"--bake {exc}") from exc
