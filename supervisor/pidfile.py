"""The lock that makes an instance unique, and the file that tells people its pid.

The lock is flock(2) on a descriptor that is kept: it dies with its last holder, so there is
no stale lock, and it survives exec.
"""

from __future__ import annotations

import fcntl
import os
import time

from quiesce.shared.errors import ControlError

_ASKING_S = 0.05


class LockedError(ControlError):
    """Another supervisor has the lock."""

    def __init__(self, path: str, pid: int | None, name: str) -> None:
        self.pid = pid
        holder = f"pid {pid}" if pid else "another process"
        super().__init__(
            f"instance {name!r} runs already ({holder} holds {path}); to change what it serves use "
            "`quiesce upgrade`, to run a second one give it another --name"
        )


class InstanceLock:
    """A lock that is held.  Owns ``fd`` (close-on-exec), until :meth:`release`."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def write_pid(self, pid: int) -> None:
        """Say who holds it, to people.  On a full disk they are not told; the lock holds all the same."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"{pid}\n".encode(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Let go.  The file stays: unlinking it would let two processes hold "the" lock."""
        os.close(self.fd)


def take_lock(path: str, name: str) -> InstanceLock:
    """Take the lock of the instance ``name``, now or never, and write our pid into it.

    Raises:
        LockedError: Somebody has it; ``.pid`` says who.
        ControlError: The file cannot be opened.

    Source: flock(2).
    """
    try:
        # O_NOFOLLOW: the folder may be in a temporary directory.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as exc:
        raise ControlError(f"cannot open the lock {path}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A command that asks whether anybody has it takes it shared, for microseconds.
            time.sleep(_ASKING_S)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        pid = _read_pid(fd)
        os.close(fd)
        raise LockedError(path, pid, name) from exc
    except OSError as exc:
        os.close(fd)
        raise ControlError(f"cannot lock {path}: {exc.strerror}") from exc
    lock = InstanceLock(fd, path)
    lock.write_pid(os.getpid())
    return lock


def adopt_lock(fd: int, path: str) -> InstanceLock | None:
    """Go on with the lock that another supervisor has left in the descriptor store; takes ``fd``.

    The lock lies on the description, so it was never free in between.  None: the file at ``path`` is
    another one by now (its folder was removed), so this lock keeps nobody away.
    """
    try:
        ours, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock = InstanceLock(fd, path)
            lock.write_pid(os.getpid())
            return lock
    except OSError:
        pass
    os.close(fd)
    return None


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def write_pidfile(path: str, pid: int) -> None:
    """Write ``pid`` for people and init systems; readers see the old file or the new one.

    Raises:
        ControlError: The folder cannot be written.
    """
    temporary = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, f"{pid}\n".encode())
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as exc:
        raise ControlError(f"cannot write the pid file {path}: {exc.strerror}") from exc


def remove_pidfile(path: str, pid: int) -> None:
    """Remove it if it still speaks of ``pid``: a successor's file is not ours to remove."""
    try:
        with open(path, encoding="ascii") as file:
            if file.read().strip() != str(pid):
                return
        os.unlink(path)
    except (OSError, ValueError):
        pass  # gone already
