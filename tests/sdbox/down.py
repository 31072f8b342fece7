"""Ends a box: SIGKILL of its PID 1, or an orderly halt first."""

from __future__ import annotations

import os
import select
import signal
import sys

from sdbox.state import BoxState

_HALT = signal.SIGRTMIN + 3  # systemd(1), "Signals": starts halt.target


def take_down(box: BoxState, *, graceful: bool = False, timeout_s: float = 10.0) -> None:
    """End the box and wait until its warden has tidied up."""
    try:
        pid1, warden = os.pidfd_open(box.pid), os.pidfd_open(box.warden)
    except ProcessLookupError:
        return
    try:
        if graceful:
            signal.pidfd_send_signal(pid1, _HALT)
            if not _ended(pid1, timeout_s):
                print("sdbox: no graceful halt in time, killing", file=sys.stderr)
        try:
            signal.pidfd_send_signal(pid1, signal.SIGKILL)  # the kernel kills the whole pid namespace
        except ProcessLookupError:
            pass
        _ended(warden, timeout_s)
    finally:
        os.close(pid1)
        os.close(warden)


def _ended(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])
