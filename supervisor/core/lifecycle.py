"""One worker's life, as the supervisor sees it.  Pure: no I/O, no clock.

Events are what was observed or asked for; actions are what the shell must do, in order.
A worker that dies without having been asked to is noticed by whoever watches the states:
every way down ends in REAPED, and the state before it says what was lost.
"""

from collections.abc import Mapping
from enum import Enum

from quiesce.shared.errors import IllegalTransition


class State(Enum):
    SPAWNED = "spawned"  # exec'd; has not said hello
    LOADING = "loading"  # knows its configuration; imports the application
    READY = "ready"  # loaded, serving loop turns, accepts nothing
    PROBING = "probing"  # answers a request of ours
    PROVEN = "proven"  # has answered; waits for the order to accept
    ADMITTED = "admitted"  # was told to accept
    ACCEPTING = "accepting"
    QUIESCING = "quiescing"  # was told to stop accepting
    QUIESCED = "quiesced"  # accepts nothing, serves what it has, can be resumed
    RESUMING = "resuming"  # was told to accept again
    DRAINING = "draining"  # finishes what it has, and then leaves
    LEAVING = "leaving"  # was told to exit, or said that it failed
    TERMINATED = "terminated"  # SIGTERM sent
    KILLED = "killed"  # SIGKILL sent; only the reaper can tell more
    REAPED = "reaped"  # nothing may follow


class Event(Enum):
    # said by the worker
    SAID_HELLO = "said hello"
    SAID_READY = "said ready"
    SAID_ACCEPTING = "said accepting"
    SAID_QUIESCED = "said quiesced"
    SAID_RESUMED = "said resumed"
    SAID_DRAINED = "said drained"
    SAID_FAILED = "said failed"
    # asked for by the fleet, a rollout or a command
    PROBE_ASKED = "probe asked"
    ACCEPT_ASKED = "accept asked"
    QUIESCE_ASKED = "quiesce asked"
    RESUME_ASKED = "resume asked"
    DRAIN_ASKED = "drain asked"  # finish politely
    LANE_ASKED = "lane asked"  # what it has shall go elsewhere than it was told before
    LEAVE_ASKED = "leave asked"  # as fast as is polite: `stop --now`, a trial that failed
    # observed by the supervisor
    PROBE_PASSED = "probe passed"
    PROBE_FAILED = "probe failed"
    CHANNEL_LOST = "channel lost"  # EOF, or nonsense on it
    DEADLINE = "deadline"
    EXITED = "exited"


class Action(Enum):
    CONFIGURE = "configure"  # listeners, scoreboard slot, configuration
    PROBE = "probe"
    SEND_ACCEPT = "send accept"
    SEND_QUIESCE = "send quiesce"
    SEND_RESUME = "send resume"
    SEND_DRAIN = "send drain"
    SEND_DRAIN_NOW = "send drain now"  # with no time at all: what is left is ended politely
    SEND_DRAIN_REST = "send drain rest"  # the drain that a dead supervisor began, with the time that is left
    SEND_SHUTDOWN = "send shutdown"
    SIGTERM = "sigterm"
    SIGKILL = "sigkill"
    # each arms the worker's one deadline anew; DISARM clears it
    ARM_START = "arm start"  # what is left of it, for a worker that is adopted
    ARM_PROBE = "arm probe"
    ARM_ANSWER = "arm answer"
    ARM_DRAIN = "arm drain"
    ARM_DRAIN_REST = "arm drain rest"
    ARM_EXIT = "arm exit"
    DISARM = "disarm"


#: What a worker hears or feels: the state is written down first, so that a successor knows what was wanted.
ORDERS = frozenset(
    (Action.CONFIGURE, Action.SEND_ACCEPT, Action.SEND_QUIESCE, Action.SEND_RESUME, Action.SEND_DRAIN,
     Action.SEND_DRAIN_NOW, Action.SEND_DRAIN_REST, Action.SEND_SHUTDOWN, Action.SIGTERM, Action.SIGKILL)
)  # fmt: skip

Step = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action

# What a worker may still say although we have told it something else meanwhile: it crossed
# our word on the wire.
_SAID = (
    E.SAID_HELLO, E.SAID_READY, E.SAID_ACCEPTING, E.SAID_QUIESCED, E.SAID_RESUMED, E.SAID_DRAINED,
    E.SAID_FAILED,
)  # fmt: skip
_ASKED = (
    E.PROBE_ASKED,
    E.ACCEPT_ASKED,
    E.QUIESCE_ASKED,
    E.RESUME_ASKED,
    E.DRAIN_ASKED,
    E.LEAVE_ASKED,
    E.LANE_ASKED,
)
_SEEN = (E.PROBE_PASSED, E.PROBE_FAILED, E.CHANNEL_LOST)


def _still(state: State, *events: Event) -> dict[Event, Step]:
    """These change nothing here."""
    return dict.fromkeys(events, (state, ()))


_KILL: Step = (S.KILLED, (A.DISARM, A.SIGKILL))
_LEAVE: Step = (S.LEAVING, (A.SEND_SHUTDOWN, A.ARM_EXIT))
_DRAIN: Step = (S.DRAINING, (A.SEND_DRAIN, A.ARM_DRAIN))
_DRAIN_NOW: Step = (S.DRAINING, (A.SEND_DRAIN_NOW, A.ARM_EXIT))
# While `quiesce all` is in force: it serves what is handed over to it, and accepts nothing.
_HELD: Step = (S.QUIESCING, (A.SEND_QUIESCE, A.ARM_ANSWER))
_FAILED: Step = (S.LEAVING, (A.ARM_EXIT,))  # it exits by itself
# EOF tells the worker that nobody can adopt it: it drains by itself, and we wait for that.
_ORPHAN: Step = (S.DRAINING, (A.ARM_DRAIN,))
_REAPED: Step = (S.REAPED, (A.DISARM,))

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    S.SPAWNED: {
        E.SAID_HELLO: (S.LOADING, (A.CONFIGURE,)),  # the deadline of the start goes on
        E.SAID_FAILED: _FAILED,
        # It has accepted nothing, so it owes nobody a drain.
        E.DRAIN_ASKED: _KILL,
        E.LEAVE_ASKED: _KILL,
        E.CHANNEL_LOST: _FAILED,  # usually it is dying; the exit status says more than we could
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.EXITED: _REAPED,
    },
    S.LOADING: {
        E.SAID_READY: (S.READY, (A.DISARM,)),
        E.SAID_FAILED: _FAILED,
        E.DRAIN_ASKED: _KILL,  # it may hang in an import and would not hear us
        E.LEAVE_ASKED: _KILL,
        E.CHANNEL_LOST: _FAILED,
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.EXITED: _REAPED,
    },
    S.READY: {
        E.PROBE_ASKED: (S.PROBING, (A.ARM_PROBE, A.PROBE)),
        E.ACCEPT_ASKED: (S.ADMITTED, (A.SEND_ACCEPT, A.ARM_ANSWER)),  # `upgrade --force`
        E.QUIESCE_ASKED: _HELD,
        E.SAID_FAILED: _FAILED,
        E.DRAIN_ASKED: _LEAVE,
        E.LEAVE_ASKED: _LEAVE,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
    },
    S.PROBING: {
        E.PROBE_PASSED: (S.PROVEN, (A.DISARM,)),
        E.PROBE_FAILED: _LEAVE,
        E.SAID_FAILED: _FAILED,
        E.DRAIN_ASKED: _LEAVE,
        E.LEAVE_ASKED: _LEAVE,
        E.CHANNEL_LOST: _ORPHAN,
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),  # a loop that does not turn would not hear `shutdown`
        E.EXITED: _REAPED,
    },
    S.PROVEN: {
        E.ACCEPT_ASKED: (S.ADMITTED, (A.SEND_ACCEPT, A.ARM_ANSWER)),
        E.QUIESCE_ASKED: _HELD,
        E.PROBE_ASKED: (S.PROBING, (A.ARM_PROBE, A.PROBE)),
        E.SAID_FAILED: _FAILED,
        E.DRAIN_ASKED: _LEAVE,
        E.LEAVE_ASKED: _LEAVE,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
    },
    S.ADMITTED: {
        E.SAID_ACCEPTING: (S.ACCEPTING, (A.DISARM,)),
        # `resume`, or an undo that resumes the whole old set, finds one that was just respawned.
        E.RESUME_ASKED: (S.ADMITTED, ()),
        E.ACCEPT_ASKED: (S.ADMITTED, ()),
        E.QUIESCE_ASKED: (S.QUIESCING, (A.SEND_QUIESCE, A.ARM_ANSWER)),
        E.DRAIN_ASKED: _DRAIN,  # it may have accepted already
        E.LEAVE_ASKED: _DRAIN_NOW,
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: _ORPHAN,
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.EXITED: _REAPED,
    },
    S.ACCEPTING: {
        E.QUIESCE_ASKED: (S.QUIESCING, (A.SEND_QUIESCE, A.ARM_ANSWER)),
        E.RESUME_ASKED: (S.ACCEPTING, ()),  # asking twice is not an error
        E.ACCEPT_ASKED: (S.ACCEPTING, ()),
        E.DRAIN_ASKED: _DRAIN,
        E.LEAVE_ASKED: _DRAIN_NOW,
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
        # Resume, quiesce, resume in one breath: the answers to the last two come after the first.  And an
        # adopted worker may have been told to accept twice.
        **_still(S.ACCEPTING, E.SAID_QUIESCED, E.SAID_RESUMED, E.SAID_ACCEPTING),
    },
    S.QUIESCING: {
        E.SAID_QUIESCED: (S.QUIESCED, (A.DISARM,)),
        E.QUIESCE_ASKED: (S.QUIESCING, ()),
        E.LANE_ASKED: (S.QUIESCING, (A.SEND_QUIESCE,)),
        E.RESUME_ASKED: (S.RESUMING, (A.SEND_RESUME, A.ARM_ANSWER)),
        E.DRAIN_ASKED: _DRAIN,
        E.LEAVE_ASKED: _DRAIN_NOW,
        # It would take connections for the old version: nobody can wait for that.
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
        **_still(S.QUIESCING, E.SAID_ACCEPTING, E.SAID_RESUMED),  # crossed our `quiesce`
    },
    S.QUIESCED: {
        E.QUIESCE_ASKED: (S.QUIESCED, ()),
        E.LANE_ASKED: (S.QUIESCED, (A.SEND_QUIESCE,)),  # it answers again, which changes nothing
        E.RESUME_ASKED: (S.RESUMING, (A.SEND_RESUME, A.ARM_ANSWER)),
        E.DRAIN_ASKED: _DRAIN,
        E.LEAVE_ASKED: _DRAIN_NOW,
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
        # Quiesce, resume, quiesce in one breath.  It reads its channel before each accept(), so with
        # our last word in there it accepts nothing, although the answer to it is still to come.
        **_still(S.QUIESCED, E.SAID_RESUMED, E.SAID_QUIESCED),
    },
    S.RESUMING: {
        E.SAID_RESUMED: (S.ACCEPTING, (A.DISARM,)),
        E.QUIESCE_ASKED: (S.QUIESCING, (A.SEND_QUIESCE, A.ARM_ANSWER)),
        E.RESUME_ASKED: (S.RESUMING, ()),
        E.DRAIN_ASKED: _DRAIN,
        E.LEAVE_ASKED: _DRAIN_NOW,
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: _ORPHAN,
        E.EXITED: _REAPED,
        # They crossed our `resume`; the latter if it was told to accept, to quiesce and to resume at once.
        **_still(S.RESUMING, E.SAID_QUIESCED, E.SAID_ACCEPTING),
    },
    S.DRAINING: {
        E.SAID_DRAINED: _LEAVE,
        E.DRAIN_ASKED: (S.DRAINING, ()),
        E.LEAVE_ASKED: _DRAIN_NOW,  # the second Ctrl-C; a generation too many
        E.QUIESCE_ASKED: (S.DRAINING, ()),
        E.LANE_ASKED: (S.DRAINING, (A.SEND_DRAIN_REST,)),
        E.SAID_FAILED: _FAILED,
        E.CHANNEL_LOST: (S.DRAINING, ()),  # it goes on by itself
        E.DEADLINE: (S.TERMINATED, (A.SIGTERM, A.ARM_EXIT)),
        E.EXITED: _REAPED,
        # The answers crossed our `drain`; the verdict, the end of the channel.
        **_still(S.DRAINING, E.SAID_ACCEPTING, E.SAID_QUIESCED, E.SAID_RESUMED),
        **_still(S.DRAINING, E.PROBE_PASSED, E.PROBE_FAILED),
    },
    S.LEAVING: {
        E.DEADLINE: (S.TERMINATED, (A.SIGTERM, A.ARM_EXIT)),
        E.EXITED: _REAPED,
        **_still(S.LEAVING, *_SAID, *_ASKED, *_SEEN),
    },
    S.TERMINATED: {
        E.DEADLINE: (S.KILLED, (A.SIGKILL,)),
        E.EXITED: _REAPED,
        **_still(S.TERMINATED, *_SAID, *_ASKED, *_SEEN),
    },
    S.KILLED: {
        E.EXITED: (S.REAPED, ()),
        **_still(S.KILLED, *_SAID, *_ASKED, *_SEEN),  # crossed our SIGKILL
    },
    S.REAPED: {},
}

#: States in which a worker may hold client connections, or is about to.
SERVING = frozenset((S.ADMITTED, S.ACCEPTING, S.QUIESCING, S.QUIESCED, S.RESUMING, S.DRAINING))
#: States before the order to accept: such a worker owes nobody anything.
COMING = frozenset((S.SPAWNED, S.LOADING, S.READY, S.PROBING, S.PROVEN))
#: States from which there is no way back.
GOING = frozenset((S.DRAINING, S.LEAVING, S.TERMINATED, S.KILLED, S.REAPED))
#: States in which it may be handing over what it has.
MOVING = frozenset((S.QUIESCING, S.QUIESCED, S.DRAINING))
#: States in which it may take new connections.
MAY_ACCEPT = frozenset((S.ADMITTED, S.ACCEPTING, S.QUIESCING, S.RESUMING))


def step(state: State, event: Event) -> Step:
    """Return the next state and what the shell must now do, in order.

    Raises:
        IllegalTransition: The table has no such row.  For an event that the worker said
            this is the worker's fault, else ours.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.value!r} while the worker is {state.value}") from None


def said_by_worker(event: Event) -> bool:
    """Is this a word of the worker's, so that it is not our fault if it comes out of turn?"""
    return event in _SAID
