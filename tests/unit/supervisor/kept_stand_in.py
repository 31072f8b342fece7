"""A program that stands in for a supervisor below a keeper: it does, line by line, what a test tells it.

It connects to the test's socket (its first argument), says how it found the world, and evaluates one
expression after another in this module; each answer is one line of JSON.
"""

import json
import os
import signal
import socket
import sys
import time

MASK = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
DEFAULTS = all(
    signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    for number in signal.valid_signals()
    if number not in IGNORED_BY_PYTHON
)
names = [name for name in os.environ.get("LISTEN_FDNAMES", "").split(":") if name]
fds: dict[str, list[int]] = {}
for at, given in enumerate(names):
    fds.setdefault(given, []).append(3 + at)
OPEN = {
    int(fd): os.readlink(f"/proc/self/fd/{fd}")
    for fd in os.listdir("/proc/self/fd")
    if os.path.exists(f"/proc/self/fd/{fd}")  # not that of the listing
}

conn = socket.socket(socket.AF_UNIX)
conn.connect(sys.argv[1])
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
got: list[int] = []
kept: list[int] = []


def say(text: str, *carried: int) -> None:
    """One datagram."""
    socket.send_fds(manager, [text.encode()], list(carried))


def barrier() -> bool:
    """Returns when everything said so far has been read."""
    read, write = os.pipe()
    say("BARRIER=1", write)
    os.close(write)
    ended = os.read(read, 1) == b""
    os.close(read)
    return ended


def keep(name: str, fd: int, more: str = "") -> bool:
    """Store a descriptor; it stays open here."""
    say(f"FDSTORE=1\nFDNAME={name}{more}", fd)
    return barrier()


def signals(count: int) -> list[int]:
    """Those that came, once there are so many."""
    while len(got) < count:
        signal.sigtimedwait([], 0.05)
    return got


def memfd(text: str) -> int:
    """A file with this content."""
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd


def content(fd: int) -> str:
    return os.pread(fd, 100, 0).decode()


def pipe() -> int:
    """The write end; the read end goes to ``kept``."""
    read, write = os.pipe()
    kept.append(read)
    return write


def child(seconds: float) -> int:
    """A process that ends after a while, and that nobody here waits for."""
    pid = os.fork()
    if pid == 0:
        conn.close()
        time.sleep(seconds)
        os._exit(0)
    return pid


def grandchild() -> int:
    """An orphan that ends at once: its parent, a child of ours, is gone before it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"%d" % child(0.1))
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(read, 9))


def worker(name: str, lingers_s: float) -> int:
    """A child that lives until its channel ends, and a little longer.  The other end is stored only."""
    ours, theirs = socket.socketpair()
    keep(name, ours.fileno())
    ours.close()
    pid = os.fork()
    if pid == 0:
        conn.close()
        theirs.recv(1)
        time.sleep(lingers_s)
        os._exit(0)
    theirs.close()
    return pid


def main() -> None:
    for number in (1, 2, 3, 10, 12, 15, 21, 22, 28):
        signal.signal(number, lambda number, frame: got.append(number))
    stream = conn.makefile("rw")
    hello = {"pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0), "argv": sys.argv[2:]}
    hello |= {"names": names, "fds": OPEN, "env": dict(os.environ), "mask": MASK, "defaults": DEFAULTS}
    print(json.dumps(hello), file=stream, flush=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for line in stream:
        print(json.dumps(eval(line)), file=stream, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
