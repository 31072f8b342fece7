"""The daemon's own life: serving, quiesced, draining, drained.  Pure."""

from collections.abc import Mapping
from enum import Enum

from quiesce.shared.errors import IllegalTransition


class State(Enum):
    QUIESCED = "quiesced"  # accepts nothing; answers what it has (also the beginning: ready, not accepting)
    SERVING = "serving"
    DRAINING = "draining"  # the same as quiesced, and every answer is a connection's last
    DRAINED = "drained"  # nothing is left
    CLOSED = "closed"


Event = Enum("Event", "ACCEPT QUIESCE DRAIN EMPTY DEADLINE CLOSE")
Action = Enum("Action", "LISTEN UNLISTEN ARM DISARM END SAY_DRAINED CUT")
Step = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    S.QUIESCED: {
        E.ACCEPT: (S.SERVING, (A.LISTEN,)),
        E.QUIESCE: (S.QUIESCED, ()),
        E.DRAIN: (S.DRAINING, (A.ARM,)),
        E.EMPTY: (S.QUIESCED, ()),
        E.CLOSE: (S.CLOSED, (A.CUT,)),
    },
    S.SERVING: {
        E.ACCEPT: (S.SERVING, ()),
        E.QUIESCE: (S.QUIESCED, (A.UNLISTEN,)),
        E.DRAIN: (S.DRAINING, (A.UNLISTEN, A.ARM)),
        E.EMPTY: (S.SERVING, ()),
        E.CLOSE: (S.CLOSED, (A.UNLISTEN, A.CUT)),
    },
    S.DRAINING: {
        # A rollback: connections that were told to close have been told; the others live on.
        E.ACCEPT: (S.SERVING, (A.DISARM, A.LISTEN)),
        E.QUIESCE: (S.DRAINING, ()),
        E.DRAIN: (S.DRAINING, (A.DISARM, A.ARM)),  # a new deadline
        E.EMPTY: (S.DRAINED, (A.DISARM, A.SAY_DRAINED)),
        E.DEADLINE: (S.DRAINING, (A.END,)),
        E.CLOSE: (S.CLOSED, (A.DISARM, A.CUT)),
    },
    S.DRAINED: {
        E.ACCEPT: (S.SERVING, (A.LISTEN,)),
        E.QUIESCE: (S.DRAINED, ()),
        E.DRAIN: (S.DRAINING, (A.ARM,)),
        E.EMPTY: (S.DRAINED, ()),
        E.CLOSE: (S.CLOSED, (A.CUT,)),
    },
    S.CLOSED: {E.CLOSE: (S.CLOSED, ()), E.QUIESCE: (S.CLOSED, ()), E.EMPTY: (S.CLOSED, ())},
}


def step(state: State, event: Event) -> Step:
    """Return the next state and what the shell must now do, in order."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.name} while the daemon is {state.name}") from None
