"""What a new supervisor does with a worker that the last one left.  Pure.

Two facts are there: the state that was written down before the last action, and what the worker says
of itself (`identify` is answered by a full `hello`; what it said before that answer is stale).  The
worker knows best how it stands, the record knows what was wanted of it.  Every order may be given
again: a worker answers each, and the second changes nothing.
"""

from collections.abc import Mapping

from quiesce.supervisor.core.lifecycle import Action, State, Step
from quiesce.supervisor.core.rollout import Action as RolloutAction
from quiesce.supervisor.core.rollout import State as RolloutState

S, A = State, Action

#: What is done for a recorded state at once, before the worker has said anything: its deadline, and
#: the ways out that no answer can change.  A state that is not named needs nothing.
AT_ONCE: Mapping[State, Step] = {
    S.SPAWNED: (S.SPAWNED, (A.ARM_START,)),
    S.LOADING: (S.LOADING, (A.ARM_START,)),
    # The probe's other end went with the supervisor: it is asked again.
    S.PROBING: (S.READY, ()),
    S.ADMITTED: (S.ADMITTED, (A.ARM_ANSWER,)),
    S.QUIESCING: (S.QUIESCING, (A.ARM_ANSWER,)),
    S.RESUMING: (S.RESUMING, (A.ARM_ANSWER,)),
    S.DRAINING: (S.DRAINING, (A.ARM_DRAIN_REST,)),
    S.LEAVING: (S.LEAVING, (A.SEND_SHUTDOWN, A.ARM_EXIT)),
    S.TERMINATED: (S.TERMINATED, (A.SIGTERM, A.ARM_EXIT)),
    S.KILLED: (S.KILLED, (A.SIGKILL,)),
}

_LOADS: Step = (S.LOADING, ())
_KILL: Step = (S.KILLED, (A.DISARM, A.SIGKILL))
_ACCEPT: Step = (S.ADMITTED, (A.SEND_ACCEPT, A.ARM_ANSWER))
_QUIESCE: Step = (S.QUIESCING, (A.SEND_QUIESCE, A.ARM_ANSWER))
_RESUME: Step = (S.RESUMING, (A.SEND_RESUME, A.ARM_ANSWER))
_DRAIN: Step = (S.DRAINING, (A.SEND_DRAIN_REST, A.ARM_DRAIN_REST))
_DRAIN_ANEW: Step = (S.DRAINING, (A.SEND_DRAIN, A.ARM_DRAIN))
_LEAVE: Step = (S.LEAVING, (A.SEND_SHUTDOWN, A.ARM_EXIT))
_ACCEPTS: Step = (S.ACCEPTING, (A.DISARM,))

#: By what the worker says (the words of `hello`), then by what is wanted of it.
IDENTIFIED: Mapping[str, Mapping[State, Step]] = {
    "starting": {
        S.SPAWNED: _LOADS,
        S.LOADING: _LOADS,
        # It says that it never loaded, and the record says that it did: it is not the one we know.
        **dict.fromkeys((S.READY, S.PROBING, S.PROVEN, S.ADMITTED, S.ACCEPTING), _KILL),
        **dict.fromkeys((S.QUIESCING, S.QUIESCED, S.RESUMING), _KILL),
        S.DRAINING: _KILL,
    },
    "ready": {
        S.SPAWNED: (S.READY, (A.DISARM,)),
        S.LOADING: (S.READY, (A.DISARM,)),
        S.READY: (S.READY, ()),
        S.PROBING: (S.PROBING, ()),  # asked again already
        S.PROVEN: (S.PROVEN, ()),
        S.ADMITTED: _ACCEPT,
        S.ACCEPTING: _ACCEPT,
        S.QUIESCING: _QUIESCE,
        S.QUIESCED: (S.QUIESCED, ()),
        S.RESUMING: _RESUME,
        S.DRAINING: _DRAIN,
    },
    "accepting": {
        # It was told to before that was written down: it cannot be, and it has clients, who are owed a drain.
        **dict.fromkeys((S.SPAWNED, S.LOADING, S.READY, S.PROBING, S.PROVEN), _DRAIN_ANEW),
        **dict.fromkeys((S.ADMITTED, S.ACCEPTING, S.RESUMING), _ACCEPTS),
        **dict.fromkeys((S.QUIESCING, S.QUIESCED), _QUIESCE),
        S.DRAINING: _DRAIN,
    },
    "quiesced": {
        **dict.fromkeys((S.SPAWNED, S.LOADING, S.READY, S.PROBING, S.PROVEN), _DRAIN_ANEW),
        **dict.fromkeys((S.ADMITTED, S.ACCEPTING, S.RESUMING), _RESUME),
        # The order again: with the lane, which may be another one by now, and to be told what has moved.
        **dict.fromkeys((S.QUIESCING, S.QUIESCED), (S.QUIESCED, (A.DISARM, A.SEND_QUIESCE))),
        S.DRAINING: _DRAIN,
    },
    "draining": {
        **dict.fromkeys((S.SPAWNED, S.LOADING, S.READY, S.PROBING, S.PROVEN), _DRAIN_ANEW),
        **dict.fromkeys((S.ADMITTED, S.ACCEPTING, S.QUIESCING, S.QUIESCED), _DRAIN_ANEW),
        S.RESUMING: _RESUME,
        S.DRAINING: _DRAIN,
    },
    "drained": {
        **dict.fromkeys((S.SPAWNED, S.LOADING, S.READY, S.PROBING, S.PROVEN), _LEAVE),
        **dict.fromkeys((S.ADMITTED, S.ACCEPTING, S.QUIESCING, S.QUIESCED), _LEAVE),
        S.RESUMING: _RESUME,
        S.DRAINING: _LEAVE,
    },
}


def at_once(recorded: State) -> Step:
    """The state to begin with, and what to do before the worker has answered."""
    return AT_ONCE.get(recorded, (recorded, ()))


def identified(wanted: State, said: str, *, configured: bool) -> Step:
    """What the worker's answer to `identify` makes of it.

    Args:
        wanted: Its state in our books, when the answer comes.
        said: The word of its ``hello``.
        configured: It knows its name, so `configure` has reached it.
    """
    if wanted not in IDENTIFIED["ready"]:
        return wanted, ()  # on its way out, whatever it says
    rows = IDENTIFIED.get(said)
    if rows is None:
        # A word of another version's.  It is adopted as far as it is understood, and retired politely.
        return _DRAIN_ANEW
    state, actions = rows[wanted]
    if said == "starting" and state is S.LOADING and not configured:
        return state, (A.CONFIGURE,)
    return state, actions


#: What a rollout does again when another supervisor takes it over, by its recorded state.
AGAIN: Mapping[RolloutState, tuple[RolloutAction, ...]] = {
    RolloutState.STARTING: (RolloutAction.SPAWN_MISSING,),
    RolloutState.PROBING: (RolloutAction.PROBE_NEW,),
    RolloutState.ADMITTING: (RolloutAction.ADMIT_NEW,),
    RolloutState.HUSHING: (RolloutAction.HUSH_OLD,),
    RolloutState.BAKING: (RolloutAction.ARM_BAKE,),
    RolloutState.DRAINING: (RolloutAction.COMMIT, RolloutAction.DRAIN_OLD, RolloutAction.REPORT_DONE),
    RolloutState.ROLLING_BACK: (RolloutAction.RESUME_OLD, RolloutAction.DISCARD_NEW),
    RolloutState.DONE: (RolloutAction.FINISH,),
    RolloutState.UNDONE: (RolloutAction.REPORT_UNDONE,),
}
