"""Where an instance keeps its sockets and its memory, and which instances run.

Design: 7. Commands.  Runtime directory: ``control.sock``, ``lock``, ``pid``; state
directory: what a reboot must not lose.  Stdlib only: every command starts here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from quiesce.shared.errors import ControlError

_MAX_SUN_PATH = 107  # bytes; unix(7)
_CONNECT_TIMEOUT_S = 2.0


class Places(NamedTuple):
    """The paths of one instance.  Nothing is created by looking at them."""

    name: str
    runtime_dir: str  # absolute
    state_dir: str  # absolute
    # Nobody else may enter the runtime directory: one in a place of the user's own, or in the
    # temporary directory.  Others are 0755, for members of control_group must reach the socket.
    private: bool = False

    @property
    def control_sock(self) -> str:
        return os.path.join(self.runtime_dir, "control.sock")

    @property
    def lock(self) -> str:
        return os.path.join(self.runtime_dir, "lock")

    @property
    def pid(self) -> str:
        return os.path.join(self.runtime_dir, "pid")

    @property
    def log(self) -> str:
        """Where `start` logs when the configuration names no file."""
        return os.path.join(self.state_dir, f"{self.name}.log")

    def create(self) -> None:
        """Make both directories, and check that nobody else can write in them.

        Raises:
            ControlError: One cannot be made, or is not safe to use.
        """
        mode = 0o700 if self.private else 0o755
        parent = os.path.dirname(self.runtime_dir)
        if os.path.basename(parent) == f"quiesce-{os.geteuid()}":
            _make(parent, 0o700)
            _check_private(parent)  # before anything is made in what may be somebody's symlink
        _make(self.runtime_dir, mode)
        _make(self.state_dir, 0o700)
        for folder in (self.runtime_dir, self.state_dir):
            _check_writable_by_us_only(folder)


class Found(NamedTuple):
    """A running instance: something answers ``connect()`` on its control socket."""

    places: Places
    denied: bool = False  # it is there, and we may not connect to it


def resolve_places(
    name: str,
    runtime_dir: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
    run: str = "/run",
    var: str = "/var",
) -> Places:
    """The places of an instance that is to be started.

    Args:
        name: A checked instance name.
        runtime_dir: ``--runtime-dir``; relative to the working directory.
        run: Where root's runtime directories lie, for tests; ``var`` likewise.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    state = _pick(environ.get("STATE_DIRECTORY", ""), name)
    if runtime_dir is not None:
        runtime = os.path.abspath(runtime_dir)
        return Places(name, runtime, state or os.path.join(runtime, "state"))
    state = state or _state(name, environ, uid, var)
    runtime = _pick(environ.get("RUNTIME_DIRECTORY", ""), name)
    if runtime:
        return Places(name, runtime, state)
    if uid == 0:
        return Places(name, os.path.join(run, "quiesce", name), state)
    return Places(name, os.path.join(_own_base(environ, uid), name), state, private=True)


def _pick(listed: str, name: str) -> str:
    """systemd lists several directories with colons; ours is the one named after the instance."""
    folders = [folder for folder in listed.split(":") if folder.startswith("/")]
    named = [folder for folder in folders if os.path.basename(folder.rstrip("/")) == name]
    return (named or folders or [""])[0]


def _own_base(environ: Mapping[str, str], uid: int) -> str:
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        return os.path.join(xdg, "quiesce")
    return os.path.join(_temporary(environ), f"quiesce-{uid}")


def _state(name: str, environ: Mapping[str, str], uid: int, var: str) -> str:
    if uid == 0:
        return os.path.join(var, "lib", "quiesce", name)
    xdg = environ.get("XDG_STATE_HOME", "")
    base = xdg if xdg.startswith("/") else os.path.join(_home(environ, uid), ".local", "state")
    return os.path.join(base, "quiesce", name)


def _home(environ: Mapping[str, str], uid: int) -> str:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return os.path.join(_temporary(environ), f"quiesce-{uid}")


def _temporary(environ: Mapping[str, str]) -> str:
    folder = environ.get("TMPDIR", "")
    return folder.rstrip("/") if folder.startswith("/") and folder != "/" else "/tmp"


def _make(folder: str, mode: int) -> None:
    """makedirs, with the same mode for each directory that is made, whatever the umask."""
    missing: list[str] = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o700)
            os.chmod(path, mode)
        except FileExistsError:
            pass  # somebody else made it meanwhile: the checks that follow judge it
        except OSError as exc:
            raise ControlError(
                f"cannot make the directory {path}: {exc.strerror}; choose another with --runtime-dir"
            ) from exc


def _check_private(folder: str) -> None:
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ControlError(
            f"{folder} is not a directory that only we can enter, so somebody else may have put it there; "
            "remove it, or choose another with --runtime-dir"
        )


def _check_writable_by_us_only(folder: str) -> None:
    try:
        info = os.stat(folder)
    except OSError as exc:
        raise ControlError(f"cannot use the directory {folder}: {exc.strerror}") from exc
    if not stat.S_ISDIR(info.st_mode):
        raise ControlError(f"{folder} is not a directory; choose another with --runtime-dir")
    if info.st_uid not in (0, os.geteuid()):
        raise ControlError(
            f"{folder} belongs to somebody else (uid {info.st_uid}), who could lead us astray; "
            "choose a directory of our own with --runtime-dir"
        )
    if info.st_mode & 0o002:
        raise ControlError(
            f"everybody can write in {folder}; choose a directory of our own with --runtime-dir"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise ControlError(f"we may not write in {folder}; choose another directory with --runtime-dir")


def find_instances(
    *,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
    run: str = "/run",
) -> list[Found]:
    """Every instance that runs, in all places that design.md names, by name."""
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    folders = [part for part in environ.get("RUNTIME_DIRECTORY", "").split(":") if part.startswith("/")]
    bases = [os.path.join(run, "quiesce")]
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        bases.append(os.path.join(xdg, "quiesce"))
    own = os.path.join(_temporary(environ), f"quiesce-{uid}")
    if _is_private(own):  # a socket that somebody planted there is not talked to
        bases.append(own)
    for base in bases:
        folders += [os.path.join(base, entry) for entry in _entries(base)]
    found = {folder: item for folder in folders if (item := probe(_at(folder))) is not None}
    return sorted(found.values(), key=lambda item: item.places.name)


def _is_private(folder: str) -> bool:
    try:
        _check_private(folder)
    except (OSError, ControlError):
        return False
    return True


def _entries(base: str) -> list[str]:
    try:
        return sorted(os.listdir(base))
    except OSError:
        return []


def _at(folder: str) -> Places:
    return Places(os.path.basename(folder.rstrip("/")), folder, "")


def probe(places: Places) -> Found | None:
    """Does an instance run there?  None: no."""
    try:
        with connect(places.control_sock):
            return Found(places)
    except PermissionError:
        return Found(places, denied=True)
    except OSError as exc:
        # Its accept queue is full, or it is stopped: it is there all the same.
        return Found(places) if isinstance(exc, (TimeoutError, BlockingIOError)) else None


def connect(path: str, timeout_s: float = _CONNECT_TIMEOUT_S) -> socket.socket:
    """Connect to a unix stream socket, however long its path.

    Returns:
        A blocking socket, owned by the caller.

    Raises:
        OSError: Nobody listens (ConnectionRefusedError, FileNotFoundError), we may not
            (PermissionError), or the accept queue stays full (TimeoutError).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        with short_path(path) as short:
            sock.connect(short)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address, valid inside the ``with``.

    Source: unix(7): sun_path has 108 bytes; proc(5): /proc/self/fd.
    """
    if len(os.fsencode(path)) <= _MAX_SUN_PATH:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
