"""The supervisor's state as the next supervisor finds it: versioned JSON.  Pure.

Written before each action (`state_store.py`), read after a crash or a `reexec` (`core/adoption.py`).
The next supervisor may be of another version: unknown keys are ignored, missing ones have a default,
and nothing here is renamed or gets another meaning.  Times are CLOCK_MONOTONIC, which goes on
across processes.  No value of a worker's environment is in here.
"""

import json
from typing import Any

import msgspec

from quiesce.shared.errors import QuiesceError

SCHEMA = 1
OLDEST_SCHEMA = 1  # the oldest that is still understood


class SnapshotError(QuiesceError):
    """These bytes are no state that this version understands."""


class WorkerRecord(msgspec.Struct, omit_defaults=True):
    """One worker process."""

    key: str  # in the names of its descriptors
    number: int  # the N of r42/N
    pid: int
    slot: int
    state: str  # lifecycle.State
    since: float
    waited_since: float = 0.0
    deadline: float | None = None
    accepting_since: float | None = None
    threads: int = 0
    interface: str = ""
    protocol: int = 1  # what it speaks, the newest and the oldest
    oldest_protocol: int = 1
    on_trial: bool = True
    asked_to_leave: bool = False
    failure: str = ""
    detail: str = ""
    cut: int = 0
    lane_version: int = 0  # newest record of a connection that it reads; 0: it knows no lanes
    lanes: list[str] = []  # keys of those that it was given to read
    target: str = ""  # key of the one that it was told to hand over to
    restarts: int = 0


class GenerationRecord(msgspec.Struct, omit_defaults=True):
    """The workers that one rollout brought."""

    release: dict[str, str]
    settings: int  # index into Snapshot.settings: what its workers were made with
    born: float
    workers: list[WorkerRecord] = []
    backoff: tuple[int, float, bool] = (0, 0.0, False)
    dead: dict[str, int] = {}  # counters of those that are gone, by name of the field
    cut: int = 0
    lane: str = ""  # its key
    lane_ended: bool = False
    lost: int = 0  # connections that went with workers of it that died
    vacancies: list[int] = []  # the restarts of workers to come


class RunRecord(msgspec.Struct, omit_defaults=True):
    """A rollout that is not over."""

    uid: str  # in the history: written once
    command: str
    new: int  # index into Snapshot.generations
    old: int | None
    state: str  # rollout.State
    settings: int  # in force once it is committed
    wanted: int
    bake_s: float
    max_error_rate: float
    gate: bool = True
    by_manager: bool = False
    since: float = 0.0
    state_since: float = 0.0
    begun: bool = True
    committed: bool = False
    reported: bool = False
    aborted: bool = False
    reason: str = ""
    detail: str = ""
    hushed: list[int] = []  # numbers of old workers that it told to quiesce
    bake_until: float | None = None
    baseline: tuple[int, int] = (0, 0)
    old_sample: tuple[int, int] = (0, 0)
    requests: list[str] = []  # ids of the commands that wait for it
    moved_before: int = 0  # connections that the old set had handed over, and lost, before it was hushed
    lost_before: int = 0


class AnswerRecord(msgspec.Struct, omit_defaults=True):
    """A request of the control socket, and how it ended."""

    id: str
    command: str
    code: int | None = None  # None: not ended
    text: str = ""
    detail: str = ""
    data: dict[str, Any] = {}


class Snapshot(msgspec.Struct):
    """Everything.  Nothing is left out: the defaults of who reads it may be others."""

    name: str
    schema: int = SCHEMA
    oldest: int = OLDEST_SCHEMA  # who understands this one at least, understands it
    version: str = ""  # of quiesce, for people
    runtime_dir: str = ""
    state_dir: str = ""
    started_at: float = 0.0
    attempts: int = 0  # supervisors that began to go on from here, and did not get to their first state
    accepts: bool = False  # READY was said
    stopped: bool = (
        False  # it left by itself: its listeners may be used again, there is nothing else to adopt
    )
    stopping: int = 0
    settings: list[dict[str, Any]] = []
    in_force: int = 0
    config_file: str | None = None
    cwd: str = "/"
    wanted: int = 0
    held: bool = False
    quiesce_at: float | None = None  # when a `quiesce drain` becomes `held`
    replaced: list[str] = []
    notices: list[str] = []
    generations: list[GenerationRecord] = []
    serving: int | None = None
    runs: list[RunRecord] = []
    candidates: list[dict[str, str]] = []  # of a cold start: what is tried next
    buried: dict[str, int] = {}
    next_numbers: dict[str, int] = {}
    ids: list[str] = []  # of releases that are in no history yet
    last_cut: int = 0
    answers: list[AnswerRecord] = []
    listeners: list[dict[str, Any]] = []
    leaving: list[str] = []  # names of listeners that workers are being told to let go
    log: dict[str, Any] = {}
    control_inode: tuple[int, int] | None = None
    missing: list[str] = []  # descriptors that the manager does not have: a new process of ours does
    reexec_from: str = ""  # the version that replaced itself, until the next one has said so


_ENCODER = msgspec.json.Encoder()


def encode(snapshot: Snapshot) -> bytes:
    """As bytes."""
    try:
        return _ENCODER.encode(snapshot)  # ten times as fast, which counts with hundreds of workers
    except UnicodeEncodeError:
        pass
    # File names that are no UTF-8 hold lone surrogates, which only \u can carry.
    return json.dumps(msgspec.to_builtins(snapshot), separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(data: bytes) -> Snapshot:
    """From bytes.

    Raises:
        SnapshotError: They make no sense, or a version wrote them that is too old or too new.
    """
    try:
        snapshot = msgspec.convert(json.loads(data), Snapshot)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise SnapshotError(f"the state that the last supervisor left cannot be read: {exc}") from exc
    if snapshot.schema < OLDEST_SCHEMA or snapshot.oldest > SCHEMA:
        raise SnapshotError(
            f"quiesce {snapshot.version} left a state of version {snapshot.schema}, and this one understands "
            f"{OLDEST_SCHEMA} to {SCHEMA}; use a version of quiesce that is nearer to it"
        )
    return snapshot
