"""Keep a supervisor running where no systemd does: restart it with the descriptors that it stored.

    PYTHON -I -S keeper.py [--keep NAME=FD]... [--watchdog SECONDS] -- SUPERVISOR ARGUMENT...
    PYTHON -I -S keeper.py --watch PID [--pidfd FD] --socket FD ... -- SUPERVISOR ARGUMENT...

It speaks systemd's protocol downwards (sd_notify(3), sd_listen_fds(3)), so a supervisor has one
way of surviving its own death.  It is the process that must not die: one file, no package, four
modules of the standard library, 5 to 9 MB.  It decides nothing about the service.

The second form takes over a supervisor that runs already, after its keeper was killed; it is no
child of this process, so its end is seen by pidfd and its exit status is what it said itself.

Rules:

1. One wait, one deadline; nothing blocks.  A reader of stderr that is behind loses lines, and is
   told how many: O_NONBLOCK would be set for everybody who shares the terminal.
2. Messages are the supervisor's only (SCM_CREDENTIALS); what others send is closed unread.
3. What is stored lives here under its name, in the order of arrival, until it is removed by name
   or its other end is gone (POLLHUP, POLLERR; not with FDPOLL=0).  The same name twice is two
   descriptors, but the same socket, file or process under the same name is kept once: systemd drops
   what kcmp(2) says is the same, and here st_ino and the pid must do.
4. A supervisor that has served is never given up: workers run on without one, and wait.
5. Who was asked to stop stays stopped.
"""

import _socket
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # without the enums of `signal`, which are a tenth of this process

WATCHDOG_S = 30.0
ABORT_S = 5.0  # from the watchdog's SIGABRT to its SIGKILL
DRAIN_S = 60.0  # how long the last workers are waited for when no supervisor is left to do it
FORGIVEN_S = 30.0  # who lived so long begins again at no delay
MOST_S, MOST_READY_S = 30.0, 2.0  # longest delay; the second for one that had come to READY
HOPELESS = 5  # deaths by signal, none of them ever READY: then it is given up
HANGUP_S = 0.1  # the kernel sends SIGHUP just before it takes the terminal away
RESERVED = 64  # descriptors that are not for the store
MOST_STORED = 65536
MAX_FDS = 253  # unix(7) SCM_MAX_FD
MAX_MESSAGE = 1 << 16
MESSAGES_A_TURN = 100
LEFT_BEHIND = 4096  # messages of a dead supervisor that are read at most: the queue holds fewer
SAID_AGAIN_S = 60.0  # what strangers can provoke is logged as often as that

NEVER = float("inf")
LOG = "quiesce.log"  # stored under this name, it becomes our own output as well
FORWARDED = (
    _signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2,
    _signal.SIGTTIN, _signal.SIGTTOU, _signal.SIGWINCH,
)  # fmt: skip
STOP = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT)


# -- decisions: pure ---------------------------------------------------------------------


def judge(exit_code: int | None, served: bool, leaving: bool, deaths: int) -> int | None:
    """The supervisor is gone: the status to leave with, or None if it must come back.

    Args:
        exit_code: As in subprocess: negative is a signal; None: it was no child of ours and said nothing.
        served: Some supervisor of this instance has been READY.
        leaving: It was asked to stop, or said STOPPING.
        deaths: By signal and in a row, this one included.
    """
    if exit_code is None:
        return 0 if leaving else None
    if exit_code >= 0:
        return exit_code if leaving or not served or exit_code == 0 else None
    if leaving or (not served and deaths >= HOPELESS):
        return 128 - exit_code  # as a shell says it
    return None


def delay_s(deaths: int, ready: bool) -> float:
    """How long the next one waits after so many deaths in a row; ``ready``: this one had come to READY.

    The first death is an accident.  One that comes to READY each time repairs something; it costs less
    to have it back than to be without.
    """
    if deaths <= 1:
        return 0.0
    return min(MOST_READY_S if ready else MOST_S, 0.5 * 2.0 ** min(deaths - 2, 16))


def parse_message(data: bytes) -> dict[str, str]:
    """The NAME=value lines of one datagram."""
    fields = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            fields[name] = value
    return fields


def valid_name(name: str) -> str:
    """FDNAME as systemd takes it: what cannot stand in LISTEN_FDNAMES is "stored"."""
    good = 0 < len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name
    return name if good else "stored"


def parse_strings(text: str) -> list[str]:
    """A JSON list of strings, without the json module.

    Raises:
        ValueError: It is none.
    """
    text = text.strip()
    if text[:1] != "[" or text[-1:] != "]":
        raise ValueError("no list")
    found: list[str] = []
    rest = text[1:-1].strip()
    while rest:
        if found:
            if rest[0] != ",":
                raise ValueError("no comma")
            rest = rest[1:].lstrip()
        word, rest = _parse_string(rest)
        found.append(word)
        rest = rest.lstrip()
    return found


def _parse_string(text: str) -> tuple[str, str]:
    """One JSON string at the beginning of the text, and the rest."""
    if text[:1] != '"':
        raise ValueError("no string")
    parts: list[str] = []
    at = 1
    while text[at : at + 1] != '"':
        if at >= len(text):
            raise ValueError("a string without end")
        char = text[at]
        at += 1
        if char == "\\":
            char = text[at : at + 1]
            at += 1
            if char == "u":
                char = chr(int(text[at : at + 4], 16))
                at += 4
            else:
                char = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(char, char)
        parts.append(char)
    word = "".join(parts)
    if any("\ud800" <= char <= "\udbff" for char in word):  # a pair of \u for one character
        word = word.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return word, text[at + 1 :]


# -- descriptors -------------------------------------------------------------------------


def open_notify_socket() -> _socket.socket:
    """A datagram socket in the abstract namespace, on an address that the kernel chooses."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    sock.bind("")
    return sock


def receive(sock: _socket.socket) -> tuple[int, dict[str, str], list[int], bool] | None:
    """One message: (sender's pid, fields, descriptors, were some lost); None if there is none.

    The caller owns the descriptors, which are close-on-exec.
    """
    room = _socket.CMSG_SPACE(12) + _socket.CMSG_SPACE(MAX_FDS * 4)
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            MAX_MESSAGE, room, _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
        )
    except OSError:  # EAGAIN, or a hiccup that the next turn sees again
        return None
    pid, fds = 0, []
    for level, kind, payload in ancillary:
        if level != _socket.SOL_SOCKET:
            continue
        numbers = [
            int.from_bytes(payload[at : at + 4], sys.byteorder) for at in range(0, len(payload) - 3, 4)
        ]
        if kind == _socket.SCM_CREDENTIALS:
            pid = numbers[0]
        elif kind == _socket.SCM_RIGHTS:
            fds += numbers
    lost = bool(flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC))
    return pid, {} if lost else parse_message(data), fds, lost


def close_at_once(fd: int) -> None:
    """Close what a stranger may have sent.  With SO_LINGER close(2) would wait for that socket's peer, for hours."""
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:  # no socket, and still open
        os.close(fd)
        return
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, bytes(8))
    except OSError:
        pass
    sock.close()


def place(fds: list[int], first: int = 3) -> None:
    """Make ``fds`` inheritable under the numbers ``first``, ``first + 1``, ...  What was there is closed.

    For a child that is about to exec: nothing else that it has open can be relied on afterwards.
    """
    where = list(fds)
    for index in range(len(where)):
        target, source = first + index, where[index]
        if source == target:
            os.set_inheritable(target, True)
            continue
        for later in range(index + 1, len(where)):
            if where[later] == target:  # somebody who comes later still lies here
                where[later] = os.dup(target)
                break
        os.dup2(source, target)
        os.close(source)


def same_file(fd: int, other: int) -> bool:
    """Are both the same socket, file, memfd or process?  Pipes cannot be told apart by their inode."""
    one, two = os.fstat(fd), os.fstat(other)
    kind = one.st_mode & 0o170000
    if kind == 0:  # a pidfd, and before Linux 6.9 all of them have one inode
        process = _process_behind(fd)
        return process is not None and process == _process_behind(other)
    return kind in (0o140000, 0o100000) and (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


def _process_behind(pidfd: int) -> bytes | None:
    """A line that names the process; None if this is no pidfd, or /proc is closed to us.  proc_pid_fdinfo(5)."""
    try:
        fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    lines = os.read(fd, 4096).split(b"\n")
    os.close(fd)
    return next((line for line in lines if line.startswith(b"Pid:")), None)


def has_terminal() -> bool:
    """Is there a controlling terminal?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Store:
    """Descriptors by name.  Owns them all."""

    def __init__(self, poll: "select.poll") -> None:
        self._poll = poll
        self._held: dict[int, str] = {}  # by descriptor, in the order of arrival
        # glibc asks getrlimit(2); -1 is "no limit".
        soft = os.sysconf("SC_OPEN_MAX")
        self.limit = max(0, min(soft - RESERVED, MOST_STORED) if soft >= 0 else MOST_STORED)

    def put(self, name: str, fd: int, polled: bool = True) -> bool:
        """Take ``fd``; False: there is no room, and it has been closed."""
        if any(held == name and same_file(fd, other) for other, held in self._held.items()):
            os.close(fd)
            return True
        if len(self._held) >= self.limit:
            os.close(fd)
            return False
        self._held[fd] = name
        if polled:
            self._poll.register(fd, 0)  # 0: only POLLHUP, POLLERR and POLLNVAL are told
        return True

    def remove(self, name: str) -> None:
        for fd in [fd for fd, held in self._held.items() if held == name]:
            self.close(fd)

    def close(self, fd: int) -> None:
        """Forget one; nothing if it is not ours."""
        if self._held.pop(fd, None) is not None:
            try:
                self._poll.unregister(fd)
            except KeyError:
                pass  # FDPOLL=0
            os.close(fd)

    def clear(self) -> None:
        for fd in list(self._held):
            self.close(fd)

    def names(self) -> list[str]:
        return list(self._held.values())

    def fds(self) -> list[int]:
        return list(self._held)

    def __contains__(self, fd: int) -> bool:
        return fd in self._held


def _shown(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' "='):
        return text
    return '"' + ascii(text)[1:-1].replace('"', '\\"') + '"'


class Log:
    """Lines on stderr as quiesce writes them (shared/logs.py); never waits."""

    def __init__(self) -> None:
        self._lost = 0
        self._next: dict[str, float] = {}

    def line(self, event: str, level: str = "WARNING", /, **fields: object) -> None:
        shown = (f"{key}={_shown(value)}" for key, value in fields.items() if value is not None)
        head = self._head(level)
        text = " ".join((head, event, *shown)) + "\n"
        if self._lost:
            text = f"{head} log lines lost count={self._lost}\n{text}"
        self._lost = 0 if self._written(text.encode("utf-8", "backslashreplace")) else self._lost + 1

    def seldom(self, event: str, **fields: object) -> None:
        """The same, for what may come a thousand times."""
        now = time.monotonic()
        if now >= self._next.get(event, 0.0):
            self._next[event] = now + SAID_AGAIN_S
            self.line(event, **fields)

    def _head(self, level: str) -> str:
        try:
            status = os.fstat(2)
            if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
                return f"<{4 if level == 'WARNING' else 6}>{level}"
        except OSError:
            pass
        seconds, thousandths = divmod(time.time_ns() // 1_000_000, 1000)
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{thousandths:03}Z {level}"

    def _written(self, data: bytes) -> bool:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        # Blocked, SIGTTOU lets a background process write to its terminal whatever `stty tostop` says.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTTOU,))
        try:
            # A pipe that polls writable takes PIPE_BUF bytes without blocking, and lines are shorter.
            return bool(poll.poll(0)) and os.write(2, data[:4096]) == len(data)
        except OSError:
            return False
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


# -- the keeper --------------------------------------------------------------------------


class Keeper:
    """One supervisor after another."""

    def __init__(self, argv: list[str], sock: _socket.socket, watchdog_s: float) -> None:
        self._argv = argv
        self._sock = sock
        self._address = "@" + os.fsdecode(sock.getsockname()[1:])
        self._watchdog_default_s = watchdog_s
        self._log = Log()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self.store = Store(self._poll)
        self._wake = self._open_signals()
        self._terminal = has_terminal()
        self._me = os.getpid()
        self._code: int | None = None  # of this process, once it is known
        self._code_then = 0  # the same, once the last child has gone
        self._served = False
        self._deaths = 0
        self._unheard: list[int] = []  # signals that came while there was no supervisor
        self._restart_at = NEVER
        self._leave_at = NEVER  # the store is dropped; only children are waited for
        self._hangup_at = NEVER
        self._forget()

    def _forget(self) -> None:
        """There is no supervisor: what was known of the last one is void."""
        self._pid = 0
        self._pidfd = -1
        self._is_child = True
        self._started_at = 0.0
        self._ready = False
        self._leaving = False  # it said STOPPING, or was sent a signal that ends it
        self._stops = 0  # how many of these
        self._said: int | None = None  # EXIT_STATUS
        self._watchdog_s = self._watchdog_default_s
        self._watchdog_at = NEVER
        self._kill_at = NEVER

    def _open_signals(self) -> int:
        """Handlers that only write their number to a pipe; returns its read end.  The mask stays as it is."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._nohup = _signal.getsignal(_signal.SIGHUP) == _signal.SIG_IGN
        for number in (*FORWARDED, _signal.SIGCHLD):
            _signal.signal(number, _nothing)
        self._poll.register(read, select.POLLIN)
        return read

    def run(self) -> int:
        """Until the supervisor has left for good; returns our exit status."""
        if not self._pid:
            self._start()
        self._bury()  # the one that we took over may be dead already
        while self._code is None:
            self._turn()
        return self._code

    def _turn(self) -> None:
        first = min(self._restart_at, self._leave_at, self._hangup_at, self._watchdog_at, self._kill_at)
        # Rounded up: a deadline that is not reached yet would be waited for again and again.
        wait = None if first == NEVER else max(0, int((first - time.monotonic()) * 1000) + 1)
        ready = self._poll.poll(wait)
        for fd, _ in ready:
            self.store.close(fd)  # its other end has gone; the number may come back with the next message
        # Messages before signals: a STOPPING was said before the death that SIGCHLD tells of.  Both
        # before deadlines: after a pause of this process the ping that is there must win.
        self._read_messages(MESSAGES_A_TURN)
        self._read_signals()
        self._bury()
        self._look_at_clock(time.monotonic())

    # -- messages ------------------------------------------------------------------------

    def _read_messages(self, most: int) -> None:
        for _ in range(most):
            message = receive(self._sock)
            if message is None:
                return
            pid, fields, fds, lost = message
            try:
                if pid == 0 or pid != self._pid:
                    self._log.seldom("message of another process rejected", pid=pid)
                elif lost:
                    self._log.seldom("message lost: too long, or no descriptor is free", pid=pid)
                else:
                    self._take(fields, fds)
            except (ValueError, OSError) as exc:
                self._log.seldom("message not understood", error=exc)
            finally:
                for fd in fds:  # what the store took is not in it any more; BARRIER's and strangers' are
                    close_at_once(fd)

    def _take(self, fields: dict[str, str], fds: list[int]) -> None:
        name = valid_name(fields.get("FDNAME", ""))
        if fields.get("FDSTOREREMOVE") == "1":
            self.store.remove(name)
        elif fields.get("FDSTORE") == "1":
            if name == LOG and fds:
                os.dup2(fds[0], 1)
                os.dup2(fds[0], 2)
            while fds:
                if not self.store.put(name, fds.pop(0), fields.get("FDPOLL") != "0"):
                    self._log.seldom("descriptor not stored: the store is full", limit=self.store.limit)
        now = time.monotonic()
        if fields.get("READY") == "1":
            self._served = True
            if not self._ready:
                self._ready = True
                self._arm(now)
        if fields.get("STOPPING") == "1":
            self._leaving = True
        if "EXIT_STATUS" in fields:
            self._said = int(fields["EXIT_STATUS"]) & 0xFF
        if "QUIESCE_ARGV" in fields:
            self._argv = parse_strings(fields["QUIESCE_ARGV"]) or self._argv
        if "WATCHDOG_USEC" in fields:
            self._watchdog_s = int(fields["WATCHDOG_USEC"]) / 1e6
            if self._ready:
                self._arm(now)
        if fields.get("WATCHDOG") == "1" and self._ready:
            self._arm(now)
        elif fields.get("WATCHDOG") == "trigger":
            self._watchdog_at = now

    def _arm(self, now: float) -> None:
        self._watchdog_at = now + self._watchdog_s if self._watchdog_s > 0 else NEVER

    # -- signals -------------------------------------------------------------------------

    def _read_signals(self) -> None:
        try:
            numbers = os.read(self._wake, 512)
        except BlockingIOError:
            return
        for number in numbers:
            if number == _signal.SIGHUP and self._terminal:
                self._hangup_at = min(self._hangup_at, time.monotonic() + HANGUP_S)
            elif number == _signal.SIGWINCH and has_terminal():
                pass  # the window's size has changed
            elif number != _signal.SIGCHLD:
                self._forward(number)

    def _hung_up(self) -> None:
        """SIGHUP came to a process that has a terminal, or had one until now."""
        self._hangup_at = NEVER
        self._terminal = has_terminal()
        if self._terminal:
            self._forward(_signal.SIGHUP)
        elif not self._nohup:  # else `nohup quiesce run`: that is what it is for
            self._log.line("the terminal is gone: stopping")
            self._forward(_signal.SIGTERM)

    def _forward(self, number: int) -> None:
        if self._pid:
            if number in STOP:
                self._leaving = True
                self._stops += 1
                if self._stops >= 3 and not self._served:
                    number = _signal.SIGKILL  # it hangs in its start, where it hears no signal
            self._send(number)
        elif number in STOP:
            if self._leave_at < NEVER:
                self._code = self._code_then  # the second one: at once
            else:
                self._log.line("stopping: there is no supervisor, its workers drain and leave", "INFO")
                self._leave(0)
        elif number not in self._unheard:
            self._unheard.append(number)

    def _send(self, number: int) -> None:
        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # it has just died

    # -- one supervisor ------------------------------------------------------------------

    def _start(self) -> None:
        """Fork and exec.  A failure is the child's, with exit status 3."""
        self._forget()
        self._started_at = time.monotonic()
        self._restart_at = NEVER
        everything = _signal.valid_signals()
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, everything)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_supervisor()  # never returns
        except OSError as exc:
            self._log.line("no process for the supervisor", error=exc)
            self._gone(3)
            return
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        self.watch(pid, os.pidfd_open(pid), is_child=True)
        unheard, self._unheard = self._unheard, []
        for number in unheard:
            self._send(number)

    def watch(self, pid: int, pidfd: int, is_child: bool) -> None:
        """This process is the supervisor from now on.  Takes ``pidfd``; -1: it is dead already."""
        self._pid, self._pidfd, self._is_child = pid, pidfd, is_child
        self._started_at = time.monotonic()
        if not is_child:
            self._served = self._ready = True
            self._arm(self._started_at)
            if pidfd >= 0:
                self._poll.register(pidfd, select.POLLIN)

    def _become_supervisor(self) -> None:
        """In the child, with all signals blocked: the supervisor unblocks them once its handlers stand."""
        try:
            os.setsid()
            for number in _signal.valid_signals():  # exec resets what is handled, not what is ignored
                if number not in (_signal.SIGKILL, _signal.SIGSTOP):
                    _signal.signal(number, _signal.SIG_DFL)
            names, fds = self.store.names(), self.store.fds()
            place(fds)
            os.execve(self._argv[0], self._argv, self._environment(names))
        except BaseException as exc:
            self._log.line("the supervisor cannot be started", program=self._argv[0], error=exc)
        finally:
            os._exit(3)

    def _environment(self, names: list[str]) -> dict[str, str]:
        pid = str(os.getpid())
        env = {
            **os.environ,
            "NOTIFY_SOCKET": self._address,
            "LISTEN_PID": pid,
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
            "FDSTORE": str(self.store.limit),
            "QUIESCE_KEEPER": str(self._me),
            "WATCHDOG_PID": pid,
            "WATCHDOG_USEC": str(int(self._watchdog_default_s * 1e6)),
        }
        if not self._watchdog_default_s:
            del env["WATCHDOG_PID"], env["WATCHDOG_USEC"]
        return env

    # -- ends ----------------------------------------------------------------------------

    def _bury(self) -> None:
        """Reap every child that has ended, and see the end of a supervisor that is none."""
        if self._pid and not self._is_child and (self._pidfd < 0 or _is_readable(self._pidfd)):
            self._read_messages(LEFT_BEHIND)
            self._gone(self._said)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self._leave_at < NEVER:
                    self._code = self._code_then
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._read_messages(LEFT_BEHIND)
                self._gone(os.waitstatus_to_exitcode(status))

    def _gone(self, exit_code: int | None) -> None:
        """The supervisor has ended, and its last message was read."""
        pid, ready, leaving = self._pid, self._ready, self._leaving
        now = time.monotonic()
        self._deaths = 1 if now - self._started_at >= FORGIVEN_S else self._deaths + 1
        status = judge(exit_code, self._served, leaving, self._deaths)
        if self._pidfd >= 0:
            if not self._is_child:
                self._poll.unregister(self._pidfd)
            os.close(self._pidfd)
        self._forget()
        signal = _signal_name(exit_code)
        if status is None:
            delay = delay_s(self._deaths, ready)
            told = {"pid": pid, "signal": signal, "status": None if signal else exit_code}
            self._log.line("supervisor died; starting it again", **told, delay_s=delay)
            self._restart_at = now + delay
            if not delay:
                self._start()
            return
        if signal:
            self._log.line("supervisor died; not starting it again", pid=pid, signal=signal)
        if exit_code == 0 or (exit_code is not None and exit_code > 0 and not self._served):
            self.store.clear()
            self._code = status  # it has seen to its workers itself
        else:
            self._leave(status)

    def _leave(self, code: int) -> None:
        """Workers read EOF, drain and leave; they are waited for."""
        self.store.clear()
        self._restart_at = NEVER
        self._code_then = code
        self._leave_at = time.monotonic() + DRAIN_S

    def _look_at_clock(self, now: float) -> None:
        if now >= self._hangup_at:
            self._hung_up()
        if now >= self._kill_at:
            self._kill_at = NEVER
            self._log.line("supervisor is killed", pid=self._pid, after_s=ABORT_S)
            self._send(_signal.SIGKILL)
        if now >= self._watchdog_at:
            if now >= self._watchdog_at + 1.0:
                self._arm(now)  # we were stopped ourselves (Ctrl-Z), and have not listened
            else:
                self._watchdog_at, self._kill_at = NEVER, now + ABORT_S
                self._log.line(
                    "supervisor does not answer: SIGABRT", pid=self._pid, watchdog_s=self._watchdog_s
                )
                self._send(_signal.SIGABRT)
        if now >= self._restart_at:
            self._start()
        if now >= self._leave_at and self._code is None:
            self._log.line("leaving before the last process has ended", after_s=DRAIN_S)
            self._code = self._code_then


def _nothing(_number: int, _frame: object) -> None:
    """Only so that the signal neither kills nor is ignored; the wakeup descriptor says it all."""


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _signal_name(exit_code: int | None) -> str | None:
    """The signal that ended it, if one did."""
    if exit_code is None or exit_code >= 0:
        return None
    names = (name for name, value in vars(_signal).items() if value == -exit_code and name[:3] == "SIG")
    return min((name for name in names if "_" not in name), default=str(-exit_code))  # SIGABRT, not SIGIOT


def main(argv: list[str]) -> int:
    """The command line above, until the supervisor has left for good.

    Signals must be blocked when this begins (launch.py): they are unblocked once handlers stand.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    pairs, command = list(zip(argv[:at:2], argv[1:at:2])), argv[at + 1 :]  # noqa: B905 checked below
    given = dict(pairs)
    if at % 2 or not command or set(given) - {"--keep", "--watch", "--pidfd", "--socket", "--watchdog"}:
        os.write(
            2, b"usage: keeper.py [--keep NAME=FD] [--watch PID --socket FD] -- SUPERVISOR ARGUMENT...\n"
        )
        return 2
    sock = _socket.socket(fileno=int(given["--socket"])) if "--socket" in given else open_notify_socket()
    os.set_inheritable(sock.fileno(), False)
    keeper = Keeper(command, sock, float(given.get("--watchdog", WATCHDOG_S)))
    for option, value in pairs:
        if option == "--keep":
            name, _, number = value.rpartition("=")
            os.set_inheritable(int(number), False)
            # Not polled: a socket that does not listen yet looks like one whose other end has gone.
            keeper.store.put(valid_name(name), int(number), polled=False)
    if "--watch" in given:
        pid = int(given["--watch"])
        keeper.watch(pid, _pidfd_of(pid, given.get("--pidfd")), is_child=False)
    _show_name()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    return keeper.run()


def _pidfd_of(pid: int, given: str | None) -> int:
    """The pidfd that was handed to us, or a new one; -1 if there is no such process any more."""
    if given is not None:
        os.set_inheritable(int(given), False)
        return int(given)
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _show_name() -> None:
    """For `ps -o comm`, `top` and `pstree`; the command line shows the rest."""
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    os.write(fd, b"quiesce-keeper")
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
