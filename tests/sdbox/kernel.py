"""The system calls that Python does not wrap: namespaces, mounts, pivot_root.

Every function raises OSError with the call's name when the kernel says no.
"""

from __future__ import annotations

import ctypes
import os
import signal

NEWNS = 0x20000
NEWCGROUP = 0x2000000
NEWUTS = 0x4000000
NEWIPC = 0x8000000
NEWPID = 0x20000000
NEWNET = 0x40000000

RDONLY = 1
NOSUID = 2
NODEV = 4
NOEXEC = 8
_REMOUNT = 32
_BIND = 4096
_REC = 16384
_PRIVATE = 1 << 18
_SHARED = 1 << 20
_MNT_DETACH = 2

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24

# Python < 3.12 has no os.unshare() and os.setns(), and no version has mount().
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Move this process (for NEWPID: its future children) into new namespaces.  unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(pidfd: int, flags: int) -> None:
    """Join the namespaces ``flags`` of the process behind ``pidfd``.  setns(2), Linux 5.8."""
    _check(_libc.setns(pidfd, flags), "setns")


def mount(
    source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2); what the kernel ignores may be None."""

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    result = _libc.mount(
        encoded(source), encoded(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data)
    )
    _check(result, f"mount {fstype or 'bind'} {source} on {target} ({data})")


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Make the tree ``source`` visible at ``target`` as well."""
    mount(source, target, None, _BIND | _REC)
    if read_only:
        # A new bind mount ignores RDONLY: that takes a second call (mount(2), "Creating a bind mount").
        mount(None, target, None, _BIND | _REMOUNT | RDONLY)


def make_writable(target: str) -> None:
    """Give ``target``, which lies in a read-only mount, a writable mount of its own."""
    mount(target, target, None, _BIND)
    mount(None, target, None, _BIND | _REMOUNT)


def make_private() -> None:
    """From here on, no mount of ours is seen outside this namespace."""
    mount(None, "/", None, _REC | _PRIVATE)


def make_shared() -> None:
    """What systemd expects of ``/``: its services' mount namespaces get later mounts."""
    mount(None, "/", None, _REC | _SHARED)


def pivot_root(new_root: str) -> None:
    """Make ``new_root`` (a mount point) the root, and let go of the old one.  pivot_root(2)."""
    os.chdir(new_root)
    os.makedirs(".old", exist_ok=True)
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b".old"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/.old", _MNT_DETACH), "umount old root")
    os.rmdir("/.old")


def drop_capability(number: int) -> None:
    """Take a capability out of the bounding set, for this process and all that it execs."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
