"""One change of release, from the first new worker to the last old one.  Pure.

    STARTING → PROBING → ADMITTING → HUSHING → BAKING → DRAINING → DONE
        └─────────┴──────────┴──────────┴─────────┴→ ROLLING_BACK → UNDONE

The old set serves at full strength until the new one accepts; until the end of the bake
it is only quiesced, so undoing is resuming: no process has to be started.
"""

from collections.abc import Mapping
from enum import Enum

from quiesce.shared.errors import IllegalTransition


class State(Enum):
    STARTING = "starting"  # new workers load the application
    PROBING = "probing"  # each of them answers real requests of ours
    ADMITTING = "admitting"  # told to accept, beside the old ones
    HUSHING = "hushing"  # the old ones told to quiesce
    BAKING = "baking"  # the new set accepts alone; the old one can be resumed
    DRAINING = "draining"  # decided; the old set finishes and leaves
    ROLLING_BACK = "rolling_back"  # old resumed, new sent away
    DONE = "done"
    UNDONE = "undone"


class Event(Enum):
    ALL_READY = "all ready"  # every new worker has loaded
    ALL_READY_FORCED = "all ready, no gate"  # `--force`
    ALL_PROVEN = "all proven"
    ALL_ACCEPTING = "all accepting"
    OLD_HUSHED = "old hushed"  # no old worker may accept any more
    BAKE_OVER = "bake over"  # its time, or `promote`
    NEW_LOST = "new lost"  # a new worker failed, died or hangs
    GATE_FAILED = "gate failed"  # too many errors, a probe of the bake failed
    ABORT = "abort"
    OLD_BACK = "old back"  # every old worker that lives accepts again, no new one does
    OLD_GONE = "old gone"  # the last old worker is reaped


class Action(Enum):
    SPAWN_MISSING = "spawn missing"  # only for a rollout that is taken over: see core/adoption.py
    PROBE_NEW = "probe new"
    ADMIT_NEW = "admit new"
    HUSH_OLD = "hush old"
    ARM_BAKE = "arm bake"
    DISARM = "disarm"
    COMMIT = "commit"  # the new release is the one that serves: record it
    DRAIN_OLD = "drain old"
    RESUME_OLD = "resume old"
    DISCARD_NEW = "discard new"
    REPORT_DONE = "report done"  # the command that waits may return 0
    REPORT_UNDONE = "report undone"  # ... 1
    FINISH = "finish"  # nothing of the old generation is left


Step = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action

# Before anything accepted: the old set was never touched.
_FORGET: Step = (S.ROLLING_BACK, (A.DISCARD_NEW,))
# Old first: between the two words both accept, and a moment with both is better than a
# moment with none.
_UNDO: Step = (S.ROLLING_BACK, (A.DISARM, A.RESUME_OLD, A.DISCARD_NEW))
_DECIDED: Step = (S.DRAINING, (A.DISARM, A.COMMIT, A.DRAIN_OLD, A.REPORT_DONE))
_STILL_DRAINING: Step = (S.DRAINING, ())
_STILL_BACK: Step = (S.ROLLING_BACK, ())

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    S.STARTING: {
        E.ALL_READY: (S.PROBING, (A.PROBE_NEW,)),
        E.ALL_READY_FORCED: (S.ADMITTING, (A.ADMIT_NEW,)),
        E.NEW_LOST: _FORGET,
        E.ABORT: _FORGET,
    },
    S.PROBING: {
        E.ALL_PROVEN: (S.ADMITTING, (A.ADMIT_NEW,)),
        E.NEW_LOST: _FORGET,
        E.ABORT: _FORGET,
    },
    S.ADMITTING: {
        E.ALL_ACCEPTING: (S.HUSHING, (A.HUSH_OLD,)),
        E.NEW_LOST: _UNDO,
        E.ABORT: _UNDO,
    },
    S.HUSHING: {
        E.OLD_HUSHED: (S.BAKING, (A.ARM_BAKE,)),
        E.NEW_LOST: _UNDO,
        E.ABORT: _UNDO,
    },
    S.BAKING: {
        E.BAKE_OVER: _DECIDED,
        E.NEW_LOST: _UNDO,
        E.GATE_FAILED: _UNDO,
        E.ABORT: _UNDO,
    },
    S.DRAINING: {
        E.OLD_GONE: (S.DONE, (A.FINISH,)),
        # A new worker that dies now is respawned by the fleet; the change stands.
        E.NEW_LOST: _STILL_DRAINING,
    },
    S.ROLLING_BACK: {
        E.OLD_BACK: (S.UNDONE, (A.REPORT_UNDONE,)),
        E.NEW_LOST: _STILL_BACK,  # they are leaving anyway
        E.ABORT: _STILL_BACK,
    },
    S.DONE: {},
    S.UNDONE: {},
}

#: While one of these lasts, a second change is refused.
DECIDING = frozenset((S.STARTING, S.PROBING, S.ADMITTING, S.HUSHING, S.BAKING, S.ROLLING_BACK))

_PHASE = {S.ADMITTING: "baking", S.HUSHING: "baking", S.DONE: "idle", S.UNDONE: "idle"}


def phase(state: State) -> str:
    """The word that `status` shows: starting probing baking draining rolling_back idle."""
    return _PHASE.get(state, state.value)


def step(state: State, event: Event) -> Step:
    """Return the next state and what the shell must now do, in order.

    Raises:
        IllegalTransition: The table has no such row: a bug of ours.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.value!r} while the rollout is {state.value}") from None


def expects(state: State, event: Event) -> bool:
    """May this event be given in this state?  For facts that are noticed more than once."""
    return event in TRANSITIONS[state]
