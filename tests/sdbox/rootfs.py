"""Assembles a box's root file system: an overlay and what a systemd wants to find in it.

Runs in the box's own mount namespace, before pivot_root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from sdbox import kernel
from sdbox.options import UpOptions
from sdbox.state import die

_UNITS = "/etc/systemd/system/"

# Units that are useless or harmful where the kernel is shared with the host, or that slow the boot down.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "cron.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty@.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "logrotate.timer",
    "man-db.timer",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "tmp.mount",
)

_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_DEVICE_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_TIGHT = kernel.NOSUID | kernel.NODEV | kernel.NOEXEC


def make_root(lower: str, options: UpOptions, rundir: str, tty: str) -> str:
    """Mount and fill the box's root; return its path.

    Args:
        lower: Directory below the overlay; it is never written to.
        options: What was asked for on the command line.
        rundir: The box's directory; ``mnt`` and ``host`` in it exist.
        tty: Path of the terminal that becomes /dev/console.
    """
    kernel.make_private()
    root = _mount_overlay(lower, rundir + "/mnt", options.size)
    for folder in ("proc", "sys", "dev", "run", "tmp"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    _mount_kernel_views(root, private_net=options.net == "private")
    kernel.mount("tmpfs", root + "/run", "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=755")
    kernel.mount("tmpfs", root + "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=1777")
    _make_devices(root, tty)
    os.makedirs(root + "/run/host")
    kernel.bind(rundir + "/host", root + "/run/host")
    _configure(root, options)
    _add_binds(root, options.bind)
    for unit in options.unit:
        target = root + _UNITS + os.path.basename(unit)
        shutil.copyfile(unit, target)
        os.chmod(target, 0o644)
    return root


def parse_bind(spec: str) -> tuple[str, str, bool]:
    """``SRC[:DST][:ro|:rw]`` as (source, target, read-only)."""
    parts = spec.split(":")
    read_only = parts[-1] == "ro"
    if parts[-1] in ("ro", "rw"):
        parts.pop()
    source = os.path.abspath(parts[0])
    if not os.path.exists(source):
        die(f"bind source {source} does not exist")
    return source, parts[1] if len(parts) > 1 else source, read_only


def _mount_overlay(lower: str, place: str, size: str) -> str:
    kernel.mount("tmpfs", place, "tmpfs", 0, f"size={size},mode=755")
    for folder in ("up", "work", "root"):
        os.mkdir(f"{place}/{folder}")
    root = f"{place}/root"
    kernel.mount("overlay", root, "overlay", 0, f"lowerdir={lower},upperdir={place}/up,workdir={place}/work")
    return root


def _mount_kernel_views(root: str, *, private_net: bool) -> None:
    kernel.mount("proc", root + "/proc", "proc", _TIGHT)
    kernel.bind(root + "/proc/sys", root + "/proc/sys", read_only=True)
    if private_net:
        kernel.make_writable(root + "/proc/sys/net")  # these are the box's own
    trigger = root + "/proc/sysrq-trigger"
    if os.path.exists(trigger):
        kernel.bind(trigger, trigger, read_only=True)
    kernel.mount("sysfs", root + "/sys", "sysfs", kernel.RDONLY | _TIGHT)
    # A fresh mount in a cgroup namespace is all that systemd needs, whatever hierarchy the host uses.
    kernel.mount("cgroup2", root + "/sys/fs/cgroup", "cgroup2", _TIGHT)


def _make_devices(root: str, tty: str) -> None:
    dev = root + "/dev"
    kernel.mount("tmpfs", dev, "tmpfs", kernel.NOSUID, "mode=755")
    for folder in ("pts", "shm", "mqueue", "net"):
        os.mkdir(f"{dev}/{folder}")
    old = os.umask(0)
    for name, major, minor in _DEVICES:
        os.mknod(f"{dev}/{name}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    os.umask(old)
    pts_options = "newinstance,ptmxmode=0666,mode=620,gid=5"
    kernel.mount("devpts", dev + "/pts", "devpts", kernel.NOSUID | kernel.NOEXEC, pts_options)
    kernel.mount("tmpfs", dev + "/shm", "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=1777")
    kernel.mount("mqueue", dev + "/mqueue", "mqueue", _TIGHT)
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{dev}/{name}")
    open(dev + "/console", "w").close()
    kernel.bind(tty, dev + "/console")


def _configure(root: str, options: UpOptions) -> None:
    """A quiet, quick boot."""
    os.makedirs(root + _UNITS, exist_ok=True)
    for unit in _MASKED:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + _UNITS + unit)
        with contextlib.suppress(IsADirectoryError, FileExistsError):
            os.symlink("/dev/null", root + _UNITS + unit)
    _write(root + "/etc/fstab", "")
    _write(root + "/etc/hostname", options.name + "\n")
    machine_id = root + "/etc/machine-id"
    if not os.path.exists(machine_id) or os.path.getsize(machine_id) < 32:
        _write(machine_id, os.urandom(16).hex() + "\n")
    shutil.rmtree(root + "/var/log/journal", ignore_errors=True)
    _write(
        root + "/etc/systemd/journald.conf.d/zz-sdbox.conf",
        "[Journal]\nStorage=volatile\nRuntimeMaxUse=256M\nRateLimitIntervalSec=0\n"
        "ForwardToConsole=no\nReadKMsg=no\n",
    )
    _write(
        root + "/etc/systemd/system.conf.d/zz-sdbox.conf",
        f"[Manager]\nDefaultTimeoutStopSec={options.stop_timeout}\nLogLevel={options.log_level}\n",
    )


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # it may be a link out of the box
    with open(path, "w") as file:
        file.write(text)


def _add_binds(root: str, binds: tuple[str, ...]) -> None:
    for spec in binds:
        source, place, read_only = parse_bind(spec)
        target = root + place
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif not os.path.exists(target):  # it may lie in an earlier bind, and that be read-only
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "a").close()
        kernel.bind(source, target, read_only=read_only)
