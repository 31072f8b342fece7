"""The control socket's server: requests in, progress and results out, nobody waited for.

One client costs a bounded buffer and a timer.  A client that vanishes changes nothing of
what it asked for; one that does not read is dropped; none can block the supervisor.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from quiesce.shared.errors import ControlError, ProtocolError
from quiesce.shared.exitcodes import Exit
from quiesce.supervisor import places as where
from quiesce.supervisor.control_protocol import (
    MAX_REQUEST_BYTES,
    Peer,
    Progress,
    Request,
    Result,
    decode_request,
    encode_reply,
)
from quiesce.supervisor.places import Places

MAX_CLIENTS = 32
MAX_OUTPUT_BYTES = 4 << 20  # unsent, per client: the status of 1,000 workers is a twentieth of it
IDLE_TIMEOUT_S = 10.0  # a client that says nothing, or does not finish its line
STUCK_TIMEOUT_S = 30.0  # a client that does not take its answer
_ACCEPTS_PER_TURN = 16
_PAUSE_S = 1.0  # without descriptors left, accepting rests: the level-triggered loop would spin
_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)  # not in every Python's socket module
_IN, _OUT = 1, 4  # EPOLLIN, EPOLLOUT


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is needed of ``supervisor.loop.Loop``."""

    def now(self) -> float: ...
    def watch(self, fd: int, callback: Callable[[int], None], events: int = ...) -> None: ...
    def rewatch(self, fd: int, events: int) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Timer: ...


Handle = Callable[[Request, "Reply"], None]


def open_control_socket(places: Places, control_gid: int | None = None) -> socket.socket:
    """Bind and listen on the control socket; the instance's lock must be held.

    The file is 0600, or 0660 and of ``control_gid``, before anybody can connect: it is bound
    without any rights and without a queue, given its group and mode, and only then listens.

    Returns:
        The listener, non-blocking and close-on-exec, owned by the caller.

    Raises:
        ControlError: Something else lies there, another supervisor answers there, or the
            folder cannot be written.
    """
    path = places.control_sock
    remove_stale_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0)  # what bind() gives the file; the umask of a process is everybody's
        with where.short_path(path) as short:
            sock.bind(short)
            if control_gid is not None:
                os.chown(short, -1, control_gid, follow_symlinks=False)
            os.chmod(short, 0o600 if control_gid is None else 0o660)
        sock.listen(MAX_CLIENTS)
    except OSError as exc:
        sock.close()
        raise ControlError(f"cannot make the control socket {path}: {exc.strerror}") from exc
    return sock


def remove_stale_socket(path: str) -> None:
    """Remove what a dead supervisor left behind, and nothing else.

    Raises:
        ControlError: It is not a socket, not ours, or somebody answers on it.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ControlError(f"cannot look at {path}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(info.st_mode):
        raise ControlError(f"{path} is not a socket; move it away, or choose another --runtime-dir")
    if info.st_uid != os.geteuid() and os.geteuid() != 0:
        raise ControlError(
            f"{path} belongs to somebody else (uid {info.st_uid}); choose another --runtime-dir"
        )
    try:
        where.connect(path).close()
    except (ConnectionRefusedError, FileNotFoundError, PermissionError):
        pass  # nobody listens; ours without rights was never listened on
    except OSError as exc:
        raise ControlError(f"cannot tell whether a supervisor answers on {path}: {exc}") from exc
    else:
        raise ControlError(f"another supervisor answers on {path}; stop it first with `quiesce stop`")
    try:
        again = os.lstat(path)
        if (again.st_dev, again.st_ino) == (info.st_dev, info.st_ino):
            os.unlink(path)
    except FileNotFoundError:
        pass


def remove_own_socket(path: str) -> None:
    """Unlink the socket file on the way out; the instance's lock must be held still."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # gone, or not ours to remove


def peer_of(sock: socket.socket) -> Peer:
    """Who connected, as the kernel knows it.

    Source: unix(7) SO_PEERCRED; SO_PEERGROUPS (Linux 4.13).
    """
    pid, uid, gid = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, frozenset((gid, *_groups_of(sock, uid, gid))))


def _groups_of(sock: socket.socket, uid: int, gid: int) -> list[int]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python's longest: 256 groups
        return [item for (item,) in struct.iter_unpack("=I", raw)]
    except OSError:  # more of them, or an older kernel
        import pwd

        try:
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:
            return []


def allow_owner_and_group(owner_uid: int, control_gid: int | None) -> Callable[[Peer], bool]:
    """The rule of design.md: the owner, root, and members of ``control_group``."""

    def allowed(peer: Peer) -> bool:
        return peer.uid in (0, owner_uid) or (control_gid is not None and control_gid in peer.groups)

    return allowed


def runs_as_us(request: Request) -> bool:
    """Would it run a program of the client's choice as the supervisor's user?  No group may: that user is often root.

    What `upgrade` runs, it runs as the workers' user.
    """
    return request.command == "reexec" and request.args.get("python") is not None


class Reply:
    """The way back to one waiting client.  Both methods do nothing once it has gone."""

    def __init__(self, client: _Client, request_id: str) -> None:
        self._client: _Client | None = client
        self._id = request_id

    @property
    def waiting(self) -> bool:
        """Somebody still listens."""
        return self._client is not None and self._client.open

    def progress(self, text: str, **data: Any) -> None:
        if self._client is not None:
            self._client.send(encode_reply(self._id, Progress(text, data)))

    def result(self, code: int, text: str, detail: str = "", data: Mapping[str, Any] | None = None) -> None:
        """End the command.  A second result is a bug of the caller's, and ignored."""
        client, self._client = self._client, None
        if client is not None:
            client.finish(encode_reply(self._id, Result(code, text, detail, data or {})))


class ControlServer:
    """Serves one listener.  Owns it, and every client, until :meth:`close`."""

    def __init__(
        self, loop: Loop, listener: socket.socket, allowed: Callable[[Peer], bool], handle: Handle
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._allowed = allowed
        self.handle = handle
        self._clients: set[_Client] = set()
        self._pause: Timer | None = None
        self._loop.watch(listener.fileno(), self._accept, _IN)

    def __len__(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """Hang up on everybody; what the kernel took of our answers it still delivers."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients):
            client.flush()
            client.drop()

    def forget(self, client: _Client) -> None:
        self._clients.discard(client)

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # EMFILE, ENFILE, ENOMEM
                self._loop.unwatch(self._listener.fileno())
                self._pause = self._loop.call_at(self._loop.now() + _PAUSE_S, self._accept_again)
                return
            self._admit(sock)

    def _accept_again(self) -> None:
        self._pause = None
        self._loop.watch(self._listener.fileno(), self._accept, _IN)

    def _admit(self, sock: socket.socket) -> None:
        try:
            peer = peer_of(sock)
        except OSError:
            sock.close()
            return
        client = _Client(self, self._loop, sock, peer)
        self._clients.add(client)
        if not self._allowed(peer):
            client.refuse(
                Exit.USAGE,
                f"permission denied: user id {peer.uid} may not command this instance; "
                "its owner, root and the members of control_group may",
            )
        elif len(self._clients) > MAX_CLIENTS:
            client.refuse(
                Exit.BUSY, f"{MAX_CLIENTS} commands are waiting already; try again when one has ended"
            )


class _Client:
    """One connection: waits for a request, then for its result, then for the next request."""

    def __init__(self, server: ControlServer, loop: Loop, sock: socket.socket, peer: Peer) -> None:
        self._server = server
        self._loop = loop
        self._sock = sock
        self._peer = peer
        self._in = bytearray()
        self._out = bytearray()
        self._busy = False  # a request is with the handler
        self._hung_up = False  # it will send nothing more
        self._closing = False  # close when everything is sent
        self.open = True
        self._timer: Timer | None = None
        self._events = _IN
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._ready, _IN)
        self._arm(IDLE_TIMEOUT_S)

    def _arm(self, seconds: float | None, action: Callable[[], None] | None = None) -> None:
        """Set the one timer; without an action it drops the client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._loop.call_at(self._loop.now() + seconds, action or self.drop)

    def drop(self) -> None:
        """Close, whatever is under way."""
        if not self.open:
            return
        self.open = False
        self._arm(None)
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._server.forget(self)

    def refuse(self, code: int, text: str, request_id: str = "") -> None:
        """Answer what has not been understood, and hang up."""
        self._closing = True
        self.send(encode_reply(request_id, Result(code, text)))

    def finish(self, line: bytes) -> None:
        """Send the result; then the client may ask again."""
        if not self.open:
            return
        self._busy = False
        self._closing = self._closing or self._hung_up
        self.send(line)
        if not self.open or self._out:
            return
        self._await_request()

    def _await_request(self) -> None:
        if b"\n" in self._in:
            self._arm(0.0, self._next_request)  # not from here: a handler may be our caller
        else:
            self._arm(IDLE_TIMEOUT_S)

    def send(self, line: bytes) -> None:
        if not self.open:
            return
        if len(self._out) + len(line) > MAX_OUTPUT_BYTES:
            self.drop()
            return
        self._out += line
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes now."""
        if not self.open:
            return
        before = len(self._out)
        try:
            while self._out:
                sent = self._sock.send(
                    memoryview(self._out)[: 1 << 16], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:  # it has gone: an event, not an error
            self.drop()
            return
        self._after_flush(progressed=len(self._out) < before)

    def _after_flush(self, progressed: bool) -> None:
        if not self._out and self._closing:
            self.drop()
            return
        if self._out and (progressed or not self._events & _OUT):
            self._arm(STUCK_TIMEOUT_S)
        elif not self._out and self._events & _OUT:
            self._arm(None) if self._busy else self._await_request()
        self._watch_for((0 if self._hung_up or self._closing else _IN) | (_OUT if self._out else 0))

    def _watch_for(self, events: int) -> None:
        # With no event at all epoll still says EPOLLHUP, which is how a waiting client's end is seen.
        if self.open and events != self._events:
            self._events = events
            self._loop.rewatch(self._sock.fileno(), events)

    def _ready(self, events: int) -> None:
        if events & _OUT:
            self.flush()
        if self.open and events & ~(_IN | _OUT):  # HUP or ERR: both directions are gone
            self._read() if events & _IN and not self._busy else self.drop()
        elif self.open and events & _IN:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(MAX_REQUEST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if not data:
            self._end_of_input()
            return
        self._in += data
        if len(self._in) > MAX_REQUEST_BYTES and (self._busy or b"\n" not in self._in[:MAX_REQUEST_BYTES]):
            self._in.clear()
            self.refuse(Exit.USAGE, f"a request is one line of at most {MAX_REQUEST_BYTES} bytes")
            return
        self._next_request()

    def _end_of_input(self) -> None:
        """`printf … | socat` shuts its side and waits; one that left altogether shows as EPOLLHUP."""
        self._hung_up = True
        if self._busy or self._out:
            self._closing = not self._busy
            self._watch_for(_OUT if self._out else 0)
        else:
            self.drop()

    def _next_request(self) -> None:
        if not self.open or self._busy or self._closing or b"\n" not in self._in:
            return
        line, _, rest = bytes(self._in).partition(b"\n")
        self._in = bytearray(rest)
        try:
            request = decode_request(line)
        except ProtocolError as exc:
            self.refuse(Exit.USAGE, str(exc))
            return
        self._busy = True
        self._arm(None)
        known = Request(request.id, request.command, request.args, self._peer)
        self._server.handle(known, Reply(self, request.id))
