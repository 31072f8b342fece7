"""The file that the supervisor and its workers write to, and how it is opened anew.

Symbolic links are followed only if root or we ourselves made them: /var/log/shop.log may well lead to a
bigger disk, but where the workers' user may write to the folder, a link of his would make a supervisor
that is root append to any file of the host.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from quiesce.shared.errors import ConfigError

MODE = 0o640  # of a new file, less the umask; its owner is who we are: workers only hold the descriptor
STANDARD_ERROR = 2
_MAX_LINKS = 8
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Not to wait for the reader of a named pipe, and not to get a terminal.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/\d+")  # /dev/stderr leads there


class LogFile:
    """Where our lines go.  Owns :attr:`fd` unless it is standard error.

    :attr:`fd` is one number for as long as we live: a reopened file takes its place, so whoever has noted
    it writes to the right file.

    Attributes:
        path: Of the file, as it was named, which logrotate does not change; None where the log is no file
            (the journal, a terminal, a pipe).
        problem: What went wrong when a successor took over; "" otherwise.
    """

    def __init__(self, fd: int, path: str | None, problem: str = "") -> None:
        self.fd = fd
        self.path = path
        self.problem = problem

    @classmethod
    def open(cls, file: str) -> LogFile:
        """``log.file``; empty: standard error, and the file behind it if there is one (`start`, `2>>shop.log`).

        Raises:
            ConfigError: It cannot be opened.
        """
        return cls(_open(file), file) if file else cls(STANDARD_ERROR, _file_behind(STANDARD_ERROR))

    def to_state(self) -> dict[str, Any]:
        """For :meth:`from_state`, as JSON."""
        return {"path": self.path, "standard_error": self.fd == STANDARD_ERROR}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], stored: int | None = None) -> LogFile:
        """What the last supervisor had.  Never fails: a successor without its log still serves.

        Args:
            stored: The descriptor ``fdnames.LOG`` of the store; it is ours afterwards.  The file behind it may
                have been renamed meanwhile, and workers write to that one until they are told.
        """
        path = state.get("path")
        path = path if isinstance(path, str) and path else None
        if stored is not None:
            return cls(stored, path)
        if path is None or state.get("standard_error") is True:
            return cls(STANDARD_ERROR, path)
        try:
            return cls(_open(path), path)
        except ConfigError as exc:
            return cls(STANDARD_ERROR, path, f"{exc}; writing to standard error instead")

    @property
    def is_standard(self) -> bool:
        """Are 1 and 2 the log as well?  Only then a keeper is to have it as its own 1 and 2."""
        return self._standard() == [1, 2]

    def is_at(self, file: str) -> bool:
        """Do we write there already?  As for :meth:`move`: empty is standard error."""
        return self.path == file if file else self.fd == STANDARD_ERROR

    def reopen(self) -> int:
        """Open the path anew (logrotate has renamed the file), then put it in the place of the old one.

        Returns:
            :attr:`fd`, which is another file now: for the workers, and for the store.

        Raises:
            ConfigError: It cannot be opened; the old file stays in use.
        """
        if self.path is not None:
            self._replace(_open(self.path))
        return self.fd

    def move(self, file: str) -> int:
        """The same for a ``log.file`` that has changed.

        Empty: back to standard error, for an instance whose standard error is something else; one in
        the background names its default file instead.

        Raises:
            ConfigError: It cannot be opened; the old file stays in use.
        """
        if self.is_at(file):
            return self.fd
        if file:
            new = _open(file)
            if self.fd == STANDARD_ERROR and not self.is_standard:
                self.fd = new  # in the foreground standard error stays what it is
            else:
                self._replace(new)
        else:
            os.close(self.fd)
            self.fd = STANDARD_ERROR
        self.path = file or _file_behind(STANDARD_ERROR)
        return self.fd

    def close(self) -> None:
        if self.fd != STANDARD_ERROR:
            os.close(self.fd)

    def _replace(self, new: int) -> None:
        """``new`` becomes :attr:`fd`, and standard output and error where they were the log."""
        for number in self._standard():
            os.dup2(new, number)  # inheritable: it is what they are
        if self.fd != STANDARD_ERROR:
            os.dup2(new, self.fd, inheritable=False)
        os.close(new)

    def _standard(self) -> list[int]:
        """Which of 1 and 2 are the log: by the file, for each was opened by somebody else."""
        ours = _identity(self.fd)
        if ours is None or self.path is None:
            return []
        return [number for number in (1, 2) if number == self.fd or _identity(number) == ours]


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        info = os.fstat(fd)
    except OSError:
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def _file_behind(fd: int) -> str | None:
    return os.readlink(f"/proc/self/fd/{fd}") if _identity(fd) is not None else None


def _open(path: str) -> int:
    """Open for append, so that all who hold it write behind each other; made if it is not there."""
    try:
        fd = _open_following(path)
        os.set_blocking(fd, True)
    except OSError as exc:
        raise ConfigError(f"cannot open log.file {path}: {(exc.strerror or str(exc)).lower()}") from exc
    return fd


def _open_following(path: str) -> int:
    """As open(2), but each link on the way is looked at before it is followed, and none can be put there meanwhile."""
    if _DESCRIPTOR.fullmatch(path):
        return os.open(path, _FLAGS)
    links = 0
    rest = _parts(path)
    folder = os.open("/", _FOLDER)
    try:
        while rest:
            part = rest.pop()
            target = _behind(part, folder, path)
            if target is None and not rest:
                return os.open(part, _FLAGS | os.O_NOFOLLOW, MODE, dir_fd=folder)
            if target is None:
                folder = _enter(folder, os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder))
                continue
            links += 1
            if links > _MAX_LINKS:
                raise ConfigError(f"cannot open log.file {path}: too many symbolic links")
            if _DESCRIPTOR.fullmatch(target) and not rest:
                return os.open(target, _FLAGS)  # a link of the kernel's, whose text is no path
            if target.startswith("/"):
                folder = _enter(folder, os.open("/", _FOLDER))
            rest += _parts(target)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        os.close(folder)


def _parts(path: str) -> list[str]:
    """Its components, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _enter(old: int, new: int) -> int:
    os.close(old)
    return new


def _behind(name: str, folder: int, path: str) -> str | None:
    """Where a link leads; None if ``name`` is none.

    Looked at through a descriptor: between a look and a use by name it could be exchanged.

    Raises:
        ConfigError: Somebody else has made it, or could have put it there.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        info, holder = os.fstat(fd), os.fstat(folder)
        if not stat.S_ISLNK(info.st_mode):
            return None
        trusted = (0, os.geteuid())
        anybody = holder.st_mode & 0o022 and not holder.st_mode & stat.S_ISVTX
        for owner in (info.st_uid, holder.st_uid):
            if owner not in trusted or anybody:
                raise ConfigError(
                    f"cannot open log.file {path}: {name} is a symbolic link that somebody else (uid {owner}) has made "
                    "or could change, and who could lead us to any file; remove it, or name the file itself"
                )
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)
