"""What one worker is made of, and what it uses of the supervisor around it."""

from typing import NamedTuple, Protocol

from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel
from quiesce.shared.logs import Log
from quiesce.shared.scoreboard import Scoreboard
from quiesce.supervisor.capture import Capture
from quiesce.supervisor.fdstore import Keeping
from quiesce.supervisor.health import HealthRule
from quiesce.supervisor.lanes import Lanes, Named
from quiesce.supervisor.listeners import Listeners
from quiesce.supervisor.loop import Loop


class Terms(NamedTuple):
    """What the supervisor asks of every worker of a release."""

    configure: msg.Configure
    rule: HealthRule
    drain_timeout_s: float

    @property
    def start_timeout_s(self) -> float:
        return self.configure.start_timeout_s


class Parts(NamedTuple):
    """Our side of a worker process.  The worker's object owns all of it."""

    key: str  # 16 hex digits, never used again: the names in the descriptor store
    pid: int  # for people; signals go through the pidfd
    pidfd: int  # -1: it is gone already
    channel: Channel | None  # None: it has hung up
    capture: Capture | None  # what it writes while on trial


class House(Protocol):
    """What a worker uses of the supervisor's."""

    loop: Loop
    log: Log
    listeners: Listeners
    scoreboard: Scoreboard
    lanes: Lanes

    @property
    def store(self) -> Keeping: ...
    def named(self, key: str, writer: str) -> Named | None:
        """The lane of this key, if this worker may be told to send into it."""

    def save(self) -> None:
        """Write down what is now wanted, before it is done."""

    def save_soon(self) -> None:
        """Write down what has happened, some time in this turn."""
