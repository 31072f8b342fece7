"""Exit codes: those of the commands, which are an API, and those of a worker."""

from enum import IntEnum


class Exit(IntEnum):
    """What a ``quiesce`` command's exit code means (design: 7. Commands)."""

    OK = 0  # done
    FAILED = 1  # failed and rolled back (or `check`: bad application); what served still serves
    USAGE = 2  # usage or configuration; nothing changed
    DOWN = 3  # failed, and less than asked serves, or nothing
    NO_INSTANCE = 4
    BUSY = 5
    INTERRUPTED = 130  # Ctrl-C in a command; the rollout goes on


class WorkerExit(IntEnum):
    """A worker's exit status.

    Only a hint: the supervisor knows why it let a worker go, and an application may
    call ``os._exit`` with anything.  The values lie in the range of sysexits.h(3).
    """

    OK = 0  # drained, or told to leave
    SOFTWARE = 70  # our own bug, with a traceback on stderr
    APP_FAILED = 71  # the application could not be loaded; `failed` said why
    PROTOCOL = 76  # the supervisor's messages made no sense
    NO_EXEC = 77  # the stub could not drop rights or exec the interpreter
    CONFIG = 78  # this interpreter cannot run quiesce; stderr says what to install
