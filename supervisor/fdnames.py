"""Names of our descriptors in the descriptor store.  Pure.

A supervisor that takes over finds everything by name: the order in which a manager passes
descriptors back means nothing.  Names of workers hold a key that is never used again, or a
descriptor of a dead worker could be taken for that of its successor.
"""

STATE = "quiesce.state"  # the memfd that holds what the supervisor knows
LOCK = "quiesce.lock"  # flock of the instance
CONTROL = "quiesce.control"  # the listener of the control socket
SCOREBOARD = "quiesce.scoreboard"
LOG = "quiesce.log"  # where our own lines go
REPORT = "quiesce.report"  # the pipe on which `start` waits for the outcome; there: we are in the background
CHECK = "quiesce.check"  # pipes that show how much a manager really keeps; there only for a moment

_PREFIX = "quiesce."
_UNIT = ".socket"  # without FileDescriptorName= systemd names sockets after their unit: "quiesce.socket"


def channel(key: str) -> str:
    """The supervisor's end of a worker's channel; ``key`` is 16 hex digits."""
    return f"{_PREFIX}w.{key}"


def pidfd(key: str) -> str:
    """A worker's pidfd."""
    return f"{_PREFIX}p.{key}"


def output(key: str) -> str:
    """The read end of what a worker prints."""
    return f"{_PREFIX}o.{key}"


def listener(key: str) -> str:
    """A listening socket that we bound ourselves."""
    return f"{_PREFIX}l.{key}"


def lane_read(key: str) -> str:
    """The read end of a generation's lane (`lanes.py`)."""
    return f"{_PREFIX}r.{key}"


def lane_write(key: str) -> str:
    """Its write end: to send."""
    return f"{_PREFIX}s.{key}"


def is_worker(name: str) -> bool:
    """Does it belong to a worker process?"""
    return name.startswith((channel(""), pidfd("")))


def is_ours(name: str) -> bool:
    """False: a socket that the user's units pass, to be found as fd://NAME.

    A name of ours that this version does not know is ours too: a newer one may have stored it.
    """
    return name.startswith(_PREFIX) and not name.endswith(_UNIT)
