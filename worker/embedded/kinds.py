"""The words in which a daemon is asked for, and tells of itself."""

from enum import Enum
from typing import Any, NamedTuple

from quiesce.shared.errors import QuiesceError


class Mode(Enum):
    """Who turns the daemon's loop."""

    EXTERNAL = "external"  # you: run, run_wait, run_from_select
    THREAD = "thread"  # one thread of the daemon's
    POOL = "pool"  # several, each with clients of its own
    THREAD_PER_CONNECTION = "thread per connection"


class Poller(Enum):
    """How it waits."""

    AUTO = "auto"  # epoll; poll with a thread for each connection
    SELECT = "select"
    POLL = "poll"
    EPOLL = "epoll"


class WrongMode(QuiesceError):
    """This call is for a daemon that was started in another way."""


class NotListening(QuiesceError):
    """There is no listening socket, or it is not the daemon's any more."""


class DaemonInfo(NamedTuple):
    """What is known of a daemon at this moment."""

    mode: Mode
    poller: Poller
    listener_fd: int  # -1: it never listened; the number stays after quiesce
    address: Any  # as getsockname() said, None: it never listened
    port: int  # 0: none
    epoll_fd: int  # -1: there is none, or there are several
    connections: int
    idle: int
    busy: int
    is_accepting: bool
