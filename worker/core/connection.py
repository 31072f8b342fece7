"""One HTTP/1 connection's life.  Pure: no I/O, no clock.

Events are what was read, sent, answered or timed out; actions are what the shell (net/stream.py) must do,
in order.  The shell takes short cuts: for a request without a body, its answer sent at once, and a hand-over; the
tests hold every step that it takes against this table.
"""

from collections.abc import Mapping
from enum import Enum

from quiesce.shared.errors import IllegalTransition


class State(Enum):
    FRESH = "fresh"  # accepted; not a byte yet
    IDLE = "idle"  # kept alive; not a byte of the next request yet
    HEAD = "head"  # some bytes of a head
    BODY = "body"  # the body is collected; the application has not been called
    WORKING = "working"  # the application has the whole request
    STREAMING = "streaming"  # the application was called, the body still arrives
    SKIPPING = "skipping"  # answered; what the application did not read is read away
    SENDING = "sending"  # answered; what the client has not taken is queued; the connection will be kept
    FLUSHING = "flushing"  # the last answer is queued; input is thrown away
    LINGERING = "lingering"  # our FIN is out: we read until theirs comes, or our close would be a reset
    CLOSED = "closed"

    __hash__ = object.__hash__  # Enum's own is written in Python, and each step looks twice into a table


class Event(Enum):
    BYTES = "bytes of a head that is not complete"
    BLANK = "what had begun was an empty line, and no head"
    REQUEST = "a request without a body"
    REQUEST_BODY = "a head whose body is to be collected"
    REQUEST_STREAM = "a head whose body the application reads itself"
    BODY_DONE = "the body is complete"
    REFUSED = "a request that we answer ourselves, and the last one"
    ANSWERED = "answered and sent; the connection may be kept"
    ANSWERED_QUEUED = "the same, but something is still queued, or the body is not complete"
    ANSWERED_LAST = "answered; the connection is not to be kept"
    SENT = "nothing is queued any more"
    OVER = "the same, and the client has said itself that nothing follows the request that was answered"
    PEER_DONE = "the client's FIN"
    DEADLINE = "the time for this state is over"
    END = "the drain's time is over: finish politely"
    LOST = "reset by the client, or cut by us"
    HANDED_OVER = "another process has it: it lies in a lane"
    CAME_IDLE = "it came by a lane, from a process that has answered on it"

    __hash__ = object.__hash__


class Action(Enum):
    CALL = "call the application"
    SAY = "give our own answer in the application's place"
    TELL = "tell the application that nobody listens"
    SAY_408 = "answer Request Timeout, unless an answer has begun"
    SAY_503 = "answer Service Unavailable, unless an answer has begun"
    FIN = "SHUT_WR, then read away"
    CLOSE = "close the socket"
    RELEASE = "close our copy of the socket, which lives on elsewhere: no shutdown, no reset"


Step = tuple[State, tuple[Action, ...]]
S, E, A = State, Event, Action

_NEXT_REQUEST: dict[Event, Step] = {
    E.BYTES: (S.HEAD, ()),
    E.REQUEST: (S.WORKING, (A.CALL,)),
    E.REQUEST_BODY: (S.BODY, ()),
    E.REQUEST_STREAM: (S.STREAMING, (A.CALL,)),
    E.REFUSED: (S.FLUSHING, (A.SAY,)),
    E.PEER_DONE: (S.CLOSED, (A.CLOSE,)),
    E.LOST: (S.CLOSED, (A.CLOSE,)),
    # Between two requests all there is to a connection is its socket and the bytes of the next head.
    E.HANDED_OVER: (S.CLOSED, (A.RELEASE,)),
}

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    # Nobody has said anything, so there is nothing to answer: silence.
    S.FRESH: {
        **_NEXT_REQUEST,
        E.CAME_IDLE: (S.IDLE, ()),
        E.DEADLINE: (S.CLOSED, (A.CLOSE,)),
        E.END: (S.LINGERING, (A.FIN,)),
    },
    S.IDLE: {**_NEXT_REQUEST, E.DEADLINE: (S.CLOSED, (A.CLOSE,)), E.END: (S.LINGERING, (A.FIN,))},
    S.HEAD: {
        **_NEXT_REQUEST,
        E.BLANK: (S.IDLE, ()),  # CR, then LF: nothing has begun, and nobody is owed a 408
        E.DEADLINE: (S.FLUSHING, (A.SAY_408,)),
        E.END: (S.FLUSHING, (A.SAY_503,)),
    },
    S.BODY: {
        E.BODY_DONE: (S.WORKING, (A.CALL,)),
        E.REFUSED: (S.FLUSHING, (A.SAY,)),
        E.PEER_DONE: (S.CLOSED, (A.CLOSE,)),  # half a body is no request
        E.DEADLINE: (S.FLUSHING, (A.SAY_408,)),
        E.END: (S.FLUSHING, (A.SAY_503,)),
        E.LOST: (S.CLOSED, (A.CLOSE,)),
    },
    S.WORKING: {
        E.REFUSED: (S.FLUSHING, (A.SAY, A.TELL)),
        E.ANSWERED: (S.IDLE, ()),
        E.ANSWERED_QUEUED: (S.SENDING, ()),
        E.ANSWERED_LAST: (S.FLUSHING, ()),
        E.PEER_DONE: (S.WORKING, (A.TELL,)),  # it may have shut down one direction only: the answer is sent
        E.DEADLINE: (S.CLOSED, (A.TELL, A.CLOSE)),  # it takes nothing of its answer
        E.END: (S.FLUSHING, (A.SAY_503, A.TELL)),
        E.LOST: (S.CLOSED, (A.TELL, A.CLOSE)),
    },
    S.STREAMING: {
        E.BODY_DONE: (S.WORKING, ()),
        E.REFUSED: (S.FLUSHING, (A.SAY, A.TELL)),
        E.ANSWERED_QUEUED: (S.SKIPPING, ()),
        E.ANSWERED_LAST: (S.FLUSHING, ()),
        E.PEER_DONE: (S.CLOSED, (A.TELL, A.CLOSE)),
        E.DEADLINE: (S.FLUSHING, (A.SAY_408, A.TELL)),
        E.END: (S.FLUSHING, (A.SAY_503, A.TELL)),
        E.LOST: (S.CLOSED, (A.TELL, A.CLOSE)),
    },
    S.SKIPPING: {
        E.BODY_DONE: (S.SENDING, ()),
        E.REFUSED: (S.FLUSHING, ()),  # the rest of the body is malformed: the answer stands, and is the last
        E.SENT: (S.SKIPPING, ()),
        E.PEER_DONE: (S.FLUSHING, ()),
        E.DEADLINE: (S.FLUSHING, ()),
        E.END: (S.FLUSHING, ()),
        E.LOST: (S.CLOSED, (A.CLOSE,)),
    },
    S.SENDING: {
        E.SENT: (S.IDLE, ()),
        E.PEER_DONE: (S.SENDING, ()),  # what it sent before is still to be answered
        E.DEADLINE: (S.CLOSED, (A.CLOSE,)),
        E.END: (S.FLUSHING, ()),
        E.LOST: (S.CLOSED, (A.CLOSE,)),
    },
    S.FLUSHING: {
        E.SENT: (S.LINGERING, (A.FIN,)),
        E.OVER: (S.CLOSED, (A.CLOSE,)),  # RFC 9112 §9.6: it must send no more, so nothing can be unread
        E.PEER_DONE: (S.FLUSHING, ()),
        E.DEADLINE: (S.CLOSED, (A.CLOSE,)),
        E.END: (S.FLUSHING, ()),
        E.LOST: (S.CLOSED, (A.CLOSE,)),
    },
    S.LINGERING: {
        E.PEER_DONE: (S.CLOSED, (A.CLOSE,)),
        E.DEADLINE: (S.CLOSED, (A.CLOSE,)),
        E.END: (S.LINGERING, ()),
        E.LOST: (S.CLOSED, (A.CLOSE,)),
    },
    S.CLOSED: {},
}


def step(state: State, event: Event) -> Step:
    """Return the next state and what the shell must now do, in order."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.name} while a connection is {state.name}") from None
