"""Boots a box: a warden process, and under it systemd as PID 1 of new namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import socket
import struct
import sys
import time
from typing import NoReturn

from sdbox import cgroups, kernel
from sdbox.down import take_down
from sdbox.images import image_path
from sdbox.options import UpOptions
from sdbox.rootfs import make_root
from sdbox.state import BoxState, die, find, need, rundir, save, start_time

# Capabilities that could reach the host's kernel for good: SYS_MODULE, SYS_RAWIO, SYS_TIME, WAKE_ALARM.
_DROPPED = (16, 17, 25, 35)
_INITS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def up(options: UpOptions) -> None:
    """Boot the box and return when its systemd says READY=1; leaves with exit code 1 if it cannot."""
    _refuse_or_replace(options)
    began = time.monotonic()
    lower = image_path(options.image)
    image_s = time.monotonic() - began
    place = rundir(options.name)
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("host", "mnt"):
        os.makedirs(f"{place}/{folder}")
    began = time.monotonic()
    errors, news = _start_warden(options, lower, place)
    # EOF means that PID 1 has exec'ed systemd (the pipe is close-on-exec), or that it failed and said why.
    if error := _read_all(errors):
        die("start failed: " + error)
    status = _wait_ready(options, news)
    if not options.quiet:
        image = f" (image {image_s:.0f} s)" if image_s > 1 else ""
        took_ms = (time.monotonic() - began) * 1000
        pid = need(options.name).pid
        print(f"sdbox: {options.name} up in {took_ms:.0f} ms{image}, pid {pid}; {status}", file=sys.stderr)


def _refuse_or_replace(options: UpOptions) -> None:
    if os.geteuid() != 0:
        die("must be root")
    box = find(options.name)
    if box and not options.replace:
        die(f"box {options.name!r} is already up (use --replace)")
    if box:
        take_down(box)


def _start_warden(options: UpOptions, lower: str, place: str) -> tuple[int, int]:
    """Fork the warden as a daemon.

    Returns:
        Read ends, the caller's to close: its error text, and what PID 1 says to its NOTIFY_SOCKET.
    """
    cgroup = f"{cgroups.mount_point()}/sdbox-{options.name}"
    os.makedirs(cgroup, exist_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(f"{place}/host/notify")
    errors_r, errors_w = os.pipe()
    news_r, news_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(errors_r)
        os.close(news_r)
        _Warden(options, place, cgroup, notify, errors_w, news_w).live(lower)
    os.waitpid(child, 0)
    os.close(errors_w)
    os.close(news_w)
    notify.close()
    return errors_r, news_r


def _read_all(fd: int) -> str:
    with open(fd, "rb") as file:
        return file.read().decode(errors="replace")


def _wait_ready(options: UpOptions, news: int) -> str:
    """Read what PID 1 reports until READY=1; return its last STATUS."""
    end = time.monotonic() + options.timeout
    heard = b""
    while b"READY=1" not in heard.split(b"\n"):
        if not select.select([news], [], [], max(0.0, end - time.monotonic()))[0]:
            _give_up(options, heard)
        packet = os.read(news, 8192)
        if not packet:  # the box died
            _give_up(options, heard)
        heard += packet
    os.close(news)
    return _last_status(heard)


def _last_status(heard: bytes) -> str:
    lines = heard.decode(errors="replace").splitlines()
    return next((line[7:] for line in reversed(lines) if line.startswith("STATUS=")), "")


def _give_up(options: UpOptions, heard: bytes) -> NoReturn:
    with contextlib.suppress(OSError), open(f"{rundir(options.name)}/console.log") as console:
        sys.stderr.write(console.read()[-4000:])
    if box := find(options.name):
        take_down(box)
    die(f"box {options.name!r} not ready after {options.timeout} s; last status: {_last_status(heard)}")


class _Warden:
    """The parent of a box's PID 1: keeps its console, drains its notify socket, tidies up after it.

    Owns every descriptor it was given; never returns.
    """

    def __init__(
        self, options: UpOptions, place: str, cgroup: str, notify: socket.socket, errors: int, news: int
    ) -> None:
        self._options = options
        self._place = place
        self._cgroup = cgroup
        self._notify = notify
        self._errors = errors
        self._news: int | None = news

    def live(self, lower: str) -> NoReturn:
        try:
            os.chdir("/")
            console, terminal = pty.openpty()
            pid = self._start_pid1(lower, os.ttyname(terminal))
            os.close(self._errors)
            self._watch(console, os.pidfd_open(pid))
            os.waitpid(pid, 0)
        except BaseException as exc:
            with contextlib.suppress(OSError):
                os.write(self._errors, f"{type(exc).__name__}: {exc}".encode())
        self._tidy_up()
        os._exit(0)

    def _start_pid1(self, lower: str, tty: str) -> int:
        home = cgroups.own()
        # The cgroup namespace's root is the cgroup that unshare() finds us in; we go home before PID 1 runs.
        cgroups.enter(self._cgroup)
        net = kernel.NEWNET if self._options.net == "private" else 0
        kernel.unshare(kernel.NEWPID | kernel.NEWCGROUP | kernel.NEWUTS | kernel.NEWIPC | net)
        gate_r, gate_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate_w)
            kernel.die_with_parent()
            os.read(gate_r, 1)  # until the warden has left the box's cgroup
            _become_pid1(self._options, lower, self._place, tty, self._errors)
        cgroups.enter(home)
        options = self._options
        save(
            BoxState(
                name=options.name,
                pid=pid,
                starttime=start_time(pid),
                warden=os.getpid(),
                cgroup=self._cgroup,
                image=options.image,
                net=options.net,
                target=options.target,
            )
        )
        os.close(gate_r)
        os.close(gate_w)
        return pid

    def _watch(self, console: int, pid1: int) -> None:
        """Pump console and notify socket until PID 1 is gone.

        The notify socket must be drained for ever: after about ten unread messages PID 1 blocks in sendmsg(),
        and the whole box freezes.
        """
        log = os.open(f"{self._place}/console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        poll = select.poll()
        for fd in (console, pid1, self._notify.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._notify.fileno() in ready:
                self._pass_on(self._notify.recv(8192))
            if console in ready:
                try:
                    os.write(log, os.read(console, 65536))
                except OSError:  # EIO: nobody has the terminal open
                    poll.unregister(console)
            if pid1 in ready:
                return

    def _pass_on(self, message: bytes) -> None:
        if self._news is None:
            return
        try:
            os.write(self._news, message + b"\n")
            done = b"READY=1" in message.split(b"\n")
        except BrokenPipeError:  # `sdbox up` was interrupted
            done = True
        if done:
            os.close(self._news)
            self._news = None

    def _tidy_up(self) -> None:
        cgroups.end(self._cgroup)
        shutil.rmtree(f"{self._place}/host", ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._place}/mnt")
        with contextlib.suppress(OSError):
            os.unlink(f"{self._place}/state.json")


def _become_pid1(options: UpOptions, lower: str, place: str, tty: str, errors: int) -> NoReturn:
    """Assemble the box around this process and exec systemd.  ``errors`` gets the reason if that fails."""
    try:
        kernel.unshare(kernel.NEWNS)
        root = make_root(lower, options, place, tty)
        socket.sethostname(options.name)
        if options.net == "private":
            _raise_loopback()
        kernel.pivot_root(root)
        kernel.make_shared()
        for capability in _DROPPED:
            kernel.drop_capability(capability)
        _forget_origins(errors)
        init = next(path for path in _INITS if os.path.exists(path))
        os.execve(init, _init_arguments(init, options), _init_environment(options))
    except BaseException as exc:
        os.write(errors, f"{type(exc).__name__}: {exc}".encode())
        os._exit(1)


def _raise_loopback() -> None:
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def _forget_origins(keep: int) -> None:
    """Default signals, own session, no descriptor of ours but ``keep``, which closes at exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)


def _init_arguments(init: str, options: UpOptions) -> list[str]:
    return [
        init,
        "--system",
        "--unit=" + options.target,
        "--log-target=" + options.log_target,
        "--show-status=1",
        "--log-location=0",
    ]


def _init_environment(options: UpOptions) -> dict[str, str]:
    env = {
        "container": "sdbox",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": "dumb",
        "NOTIFY_SOCKET": "/run/host/notify",
        "SYSTEMD_COLORS": "0",
        "LANG": "C.UTF-8",
    }
    for pair in options.setenv:
        name, _, value = pair.partition("=")
        env[name] = value
    return env
