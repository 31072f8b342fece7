"""Who is above us, and what it has told us in the environment: systemd, a keeper, or nobody."""

import errno
import os
from collections.abc import MutableMapping
from typing import NamedTuple

from quiesce.supervisor.loop import Loop
from quiesce.supervisor.notify import Notifier

_TAKEN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE", "QUIESCE_KEEPER")


class Manager(NamedTuple):
    """What a service manager says to its main process, and to nobody else.

    Source: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5) $FDSTORE.
    """

    notify_socket: str | None = None
    watchdog_s: float = 0.0  # 0: nobody watches us
    store_limit: int | None = None  # how many descriptors it keeps; None: it does not say
    keeper: int | None = None  # our keeper's pid; None: it is systemd, or nobody
    environment: tuple[tuple[str, str], ...] = ()  # as it was, for `reexec`

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> "Manager":
        """Read it, and take it out of the environment: workers must not speak in our name."""
        found = {name: environ.pop(name) for name in _TAKEN if name in environ}
        usec, whose = _number(found.get("WATCHDOG_USEC")), found.get("WATCHDOG_PID")
        watched = usec is not None and whose in (None, str(os.getpid()))
        return cls(
            found.get("NOTIFY_SOCKET"),
            usec / 1e6 if usec is not None and watched else 0.0,
            _number(found.get("FDSTORE")),
            _number(found.get("QUIESCE_KEEPER")),
            tuple(found.items()),
        )

    def say_failed(self, exc: BaseException) -> None:
        """ERRNO= and STATUS= of a start that failed before there was a supervisor to say it."""
        loop = Loop()
        notifier = Notifier(self.notify_socket, loop)
        notifier.errno(_errno_of(exc), str(exc))
        notifier.close()
        loop.close()


def _errno_of(exc: BaseException | None) -> int:
    """The system's reason, if there is one behind ours."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno:
            return exc.errno
        exc = exc.__cause__
    return errno.EINVAL


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None
