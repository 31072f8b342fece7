"""How a worker stands towards its supervisor: what each order does, and what is answered.  Pure.

The daemon has a table of its own (drain.py) for its connections; this one is about orders and the end.
"""

from collections.abc import Mapping
from enum import Enum

from quiesce.shared.errors import IllegalTransition


class State(Enum):
    """The values are the ``state`` of a ``hello``."""

    STARTING = "starting"  # not configured, or the application is being loaded
    READY = "ready"  # loaded, has never accepted
    ACCEPTING = "accepting"
    QUIESCED = "quiesced"
    DRAINING = "draining"
    DRAINED = "drained"
    FAREWELL = "farewell"  # draining, and leaves by itself: nobody will tell it to
    LEAVING = "leaving"  # nothing may follow


Event = Enum("Event", "LOADED ACCEPT QUIESCE RESUME DRAIN EMPTY SHUTDOWN TOLD_TO_GO ORPHANED")
Action = Enum(
    "Action",
    "ACCEPT QUIESCE HAND_OVER KEEP DRAIN SAY_READY SAY_ACCEPTING SAY_QUIESCED SAY_RESUMED SAY_DRAINED "
    "SAY_REPLACE_ME LEAVE",
)
Step = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action

_LEAVE: Step = (S.LEAVING, (A.LEAVE,))
_ACCEPT: Step = (S.ACCEPTING, (A.ACCEPT, A.SAY_ACCEPTING))
_RESUME: Step = (S.ACCEPTING, (A.ACCEPT, A.SAY_RESUMED))
# A quiesce and a drain each name the lane to hand over to from now on, or none; that is always obeyed and answered.
_QUIESCE: Step = (S.QUIESCED, (A.QUIESCE, A.SAY_QUIESCED, A.HAND_OVER))
_DRAIN: Step = (S.DRAINING, (A.HAND_OVER, A.DRAIN))
# It goes when another one is there: what it has can move then, and nobody is closed.
_ASK = (A.SAY_REPLACE_ME,)
# Nobody keeps the lane any more: what is sent into it now may be read by nobody.
_FAREWELL: Step = (S.FAREWELL, (A.KEEP, A.DRAIN))

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    S.STARTING: {
        E.LOADED: (S.READY, (A.SAY_READY,)),
        E.SHUTDOWN: _LEAVE,
        # It has accepted nothing, so it owes nobody a drain.
        E.TOLD_TO_GO: _LEAVE,
        E.ORPHANED: _LEAVE,
    },
    S.READY: {
        E.ACCEPT: _ACCEPT,
        E.QUIESCE: _QUIESCE,
        E.RESUME: _RESUME,
        E.DRAIN: _DRAIN,
        E.EMPTY: (S.READY, ()),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: (S.READY, _ASK),
        E.ORPHANED: _FAREWELL,
    },
    S.ACCEPTING: {
        E.ACCEPT: (S.ACCEPTING, (A.SAY_ACCEPTING,)),  # every order is answered, also the needless one
        E.QUIESCE: _QUIESCE,
        E.RESUME: (S.ACCEPTING, (A.SAY_RESUMED,)),
        E.DRAIN: _DRAIN,
        E.EMPTY: (S.ACCEPTING, ()),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: (S.ACCEPTING, _ASK),
        E.ORPHANED: _FAREWELL,
    },
    S.QUIESCED: {
        E.ACCEPT: _ACCEPT,
        E.QUIESCE: (S.QUIESCED, (A.SAY_QUIESCED, A.HAND_OVER)),
        E.RESUME: _RESUME,
        E.DRAIN: _DRAIN,
        E.EMPTY: (S.QUIESCED, ()),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: (S.QUIESCED, _ASK),
        E.ORPHANED: _FAREWELL,
    },
    S.DRAINING: {
        E.ACCEPT: _ACCEPT,
        E.QUIESCE: (S.DRAINING, (A.SAY_QUIESCED, A.HAND_OVER)),
        E.RESUME: _RESUME,  # a rollback: what has not been told to close lives on
        E.DRAIN: _DRAIN,  # a new deadline
        E.EMPTY: (S.DRAINED, (A.SAY_DRAINED,)),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: (S.DRAINING, ()),  # it goes
        E.ORPHANED: (S.FAREWELL, (A.KEEP,)),  # the deadline that it has stays
    },
    S.DRAINED: {
        E.ACCEPT: _ACCEPT,
        E.QUIESCE: (S.DRAINED, (A.SAY_QUIESCED, A.HAND_OVER)),
        E.RESUME: _RESUME,
        E.DRAIN: (S.DRAINED, (A.HAND_OVER, A.SAY_DRAINED)),
        E.EMPTY: (S.DRAINED, ()),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: (S.DRAINED, ()),
        E.ORPHANED: _LEAVE,
    },
    S.FAREWELL: {
        # Its channel may be open still; whoever is there can hurry this worker, not keep it.
        E.ACCEPT: (S.FAREWELL, ()),
        E.QUIESCE: (S.FAREWELL, (A.SAY_QUIESCED, A.KEEP)),
        E.RESUME: (S.FAREWELL, ()),
        E.DRAIN: (S.FAREWELL, (A.KEEP, A.DRAIN)),
        E.EMPTY: (S.LEAVING, (A.SAY_DRAINED, A.LEAVE)),
        E.SHUTDOWN: _LEAVE,
        E.TOLD_TO_GO: _LEAVE,  # it was told already
        E.ORPHANED: (S.FAREWELL, ()),
    },
    S.LEAVING: {event: (S.LEAVING, ()) for event in Event if event is not Event.LOADED},
}


def step(state: State, event: Event) -> Step:
    """Return the next state and what the shell must now do, in order."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.name} while the worker is {state.name}") from None
