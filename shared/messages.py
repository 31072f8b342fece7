"""What supervisor and worker say to each other.

One message is one packet (``encoding.py``) with the descriptors it announces
(``channel.py``).  During every rollout an old worker talks to a new supervisor, so:
a message is never renamed, a field is only ever added, with a default; unknown fields
are dropped and unknown messages are skipped by whoever does not know them.

Plain named tuples, because a worker pays for every import: ``dataclasses`` alone would
cost it more than the rest of this module.  Tell them apart by type and by nothing else:
``Accept() == Resume()``, and both are false.
"""

from typing import Any, NamedTuple

PROTOCOL = 1  # raised when a message changes its meaning
OLDEST_PROTOCOL = 1  # the oldest that we still understand: N and N-1

LANE_VERSION = 2  # the newest record of a connection (worker/core/lane_record.py) that we write and read
OLDEST_LANE_VERSION = 1  # rollback means that N-1 reads what N wrote

MAX_DETAIL_BYTES = 16 * 1024  # of a traceback that travels in `failed`, as it stands in the packet
MAX_REASON_BYTES = 4 * 1024  # likewise, of the sentence


# -- worker -> supervisor ---------------------------------------------------------------


class Hello(NamedTuple):
    """First word of a worker, and its answer to ``identify``: who it is and how it stands."""

    protocol: int
    oldest_protocol: int
    version: str  # of quiesce in the worker's interpreter
    python: str  # "3.11.7"
    pid: int  # for people only; the supervisor holds a pidfd
    worker: str = ""  # "r42/1", empty before `configure`
    release: str = ""
    state: str = "starting"  # starting ready accepting quiesced draining drained
    interface: str = ""  # what was found, as in `ready`; empty before that
    threads: int = 0  # in force, as in `ready`; 0 before that
    lane_version: int = 0  # newest record of a connection that it reads; 0: it knows no lanes


class Ready(NamedTuple):
    """The application is loaded and the serving loop runs; nothing is accepted yet."""

    interface: str  # wsgi, asgi or native: what was found
    after_s: float = 0.0  # since `configure`
    threads: int = 1  # in force (an interface may not use them)


class Accepting(NamedTuple):
    """Answer to ``accept``."""


class Quiesced(NamedTuple):
    """Answer to ``quiesce``: every accepting thread has left accept()."""

    connections: int = 0  # still open


class Resumed(NamedTuple):
    """Answer to ``resume``: accepting again."""


class Drained(NamedTuple):
    """Nothing is open any more; ``shutdown`` would lose nothing."""

    cut: int = 0  # connections that had to be ended at the drain deadline


class HandedOver(NamedTuple):
    """After ``quiesce`` or ``drain`` with a lane: each connection that could move by then has moved.

    Said once for each of those orders, without a lane at once; ``re`` names it, for one that another one overtakes is
    answered then.  Busy ones follow when they fall idle.
    """

    moved: int = 0  # since the order
    left: int = 0  # connections that are still here


class ReplaceMe(NamedTuple):
    """Somebody wants this worker to leave: put another one in its place.  It serves on, and is told when to drain.

    Answered by ``replacing``.  Without that answer nobody may be there, or one who does not know the word: then it
    leaves by itself.
    """

    why: str = "SIGTERM"  # the signal that it was sent


class Failed(NamedTuple):
    """The worker cannot serve.  It exits after this."""

    reason: str  # one sentence
    detail: str = ""  # traceback; `encode` keeps the end of a long one


# -- supervisor -> worker ---------------------------------------------------------------


class Identify(NamedTuple):
    """Answer with a full ``hello``; what was read before that answer is stale.

    While the application is imported there is no answer; it comes after ``ready``, or the worker ends.
    """


class Configure(NamedTuple):
    """Everything a worker must know before it may import the application.  A second one is skipped."""

    name: str  # instance
    release: str  # "r42"
    label: str
    worker: str  # "r42/1"
    app: str  # "module:attribute", "module", or "module:factory()"
    interface: str  # auto wsgi asgi native
    app_dir: str  # absolute; becomes sys.path[0]; already the working directory
    threads: int
    start_timeout_s: float
    exit_timeout_s: float
    request_timeout_s: float = 0.0  # 0: none
    limits: dict[str, float] = {}  # keys of [limits]; nobody may mutate it
    log_level: str = "info"
    drain_timeout_s: float = 30.0  # for a worker that has to leave without being told how
    ready_path: str = ""  # answered by the daemon itself; empty: no such path


class Listen(NamedTuple):
    """One descriptor for each name, in order: listening sockets.  The worker owns its copies."""

    names: list[str]


class Unlisten(NamedTuple):
    """Close these listeners, they go for good; nothing happens to the sockets of others.

    A worker that accepts takes what waits in their queues first.  By then nobody new may come (the supervisor
    sees to that): who came between the last accept and the last close would be reset by the kernel.
    """

    names: list[str]


class UseScoreboard(NamedTuple):
    """One descriptor: the scoreboard memfd; the slot is the worker's to write."""

    slot: int


class UseLog(NamedTuple):
    """One descriptor, opened for append: dup2 it over 1 and 2."""


class Probe(NamedTuple):
    """One descriptor: a connected stream socket that is to be served like a client's."""

    peer: list[Any] | None = None  # [host, port] that the application shall see
    local: list[Any] | None = None
    scheme: str = "http"


class Accept(NamedTuple):
    """Start accepting on every listener."""


class UseLane(NamedTuple):
    """One descriptor for each name, in order: ends to read live connections from, as from a listener.

    The worker owns its copies, and closes one when its end has come (EOF): the supervisor shuts a lane down
    for writing when nobody is to use it any more, and what was sent before that is still read.  One of a name that the
    worker has already takes its place.  A worker reads each lane that it holds, but for the one that it hands over to.
    """

    names: list[str]  # of a lane: its release, "r42"


class Quiesce(NamedTuple):
    """Stop accepting.  With a lane: hand over to it what is idle, and what becomes so; without one keep everything.

    A lane brings two descriptors: its write end, and its read end, of which the writer only asks how many
    descriptors lie in it (``scm_fds`` in /proc/self/fdinfo).  Both become the worker's.
    """

    lane: str = ""  # name, as in `lane`
    lane_version: int = 0  # write records of this version: the oldest among the lane's readers
    readers: int = 0  # how many there are, so that none gets more than its share


class Shed(NamedTuple):
    """Hand over so many idle connections at once, at most; nothing else changes and nothing is answered."""

    most: int
    lane: str = ""  # and its two descriptors, as with `quiesce`
    lane_version: int = 0
    readers: int = 0


class Resume(NamedTuple):
    """Undo ``quiesce`` (and a drain that has not finished).  Nothing is handed over any more."""


class Drain(NamedTuple):
    """Finish what was accepted, then say ``drained``.  Said again, it sets a new deadline, and the one
    ``drained`` answers the last."""

    timeout_s: float  # from now on: who repeats it says what remains
    lane: str = ""  # as with `quiesce`; without one nothing is handed over any more
    lane_version: int = 0
    readers: int = 0
    idle_s: float = (
        0.0  # connections without a request are ended after so long; 0: they have ``timeout_s`` as well
    )


class Replacing(NamedTuple):
    """Answer to ``replace-me``: it is written down, and a supervisor that takes over will know.  `drain` follows when
    the other worker accepts."""


class Shutdown(NamedTuple):
    """Leave: a normal interpreter exit, bounded by ``exit_timeout_s``."""


class Unknown(NamedTuple):
    """A message that this version does not know; it is logged and skipped."""

    type: str


Message = (
    Hello | Ready | Accepting | Quiesced | Resumed | HandedOver | Drained | ReplaceMe | Failed
    | Identify | Configure | Listen | Unlisten | UseScoreboard | UseLog | UseLane | Probe
    | Accept | Quiesce | Shed | Resume | Drain | Replacing | Shutdown | Unknown
)  # fmt: skip

# The word on the wire.  A table and not the class's name: a class may be renamed, a word may not.
WORDS: dict[str, type[Any]] = {
    "hello": Hello,
    "ready": Ready,
    "accepting": Accepting,
    "quiesced": Quiesced,
    "resumed": Resumed,
    "handed-over": HandedOver,
    "drained": Drained,
    "replace-me": ReplaceMe,
    "failed": Failed,
    "identify": Identify,
    "configure": Configure,
    "listen": Listen,
    "unlisten": Unlisten,
    "scoreboard": UseScoreboard,
    "log": UseLog,
    "lane": UseLane,
    "probe": Probe,
    "accept": Accept,
    "quiesce": Quiesce,
    "shed": Shed,
    "resume": Resume,
    "drain": Drain,
    "replacing": Replacing,
    "shutdown": Shutdown,
}
WORD_OF: dict[type[Any], str] = {cls: word for word, cls in WORDS.items()}

# How many descriptors a message brings.  Later versions only ever add some, at the end, and a
# receiver that does not know them closes them (`channel.py`).
_ONE_DESCRIPTOR = (UseScoreboard, UseLog, Probe)


def descriptors(message: Message) -> int | None:
    """How many descriptors this message brings; None if it is not for us to say."""
    if isinstance(message, Unknown):
        return None
    if isinstance(message, (Listen, UseLane)):
        return len(message.names)
    if isinstance(message, (Quiesce, Drain, Shed)):
        return 2 if message.lane else 0
    return 1 if isinstance(message, _ONE_DESCRIPTOR) else 0
