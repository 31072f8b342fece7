"""Root file systems to boot from: this machine's own, or a cached Debian release."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time

from sdbox.state import die

CACHE = os.environ.get("SDBOX_CACHE", "/var/cache/sdbox")
MIRROR = os.environ.get("SDBOX_MIRROR")  # default: where this machine's own apt fetches Debian from
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "python3",
    "python3-venv",
    "iproute2",
    "procps",
    "libseccomp2",
    "libbpf1",
    "tzdata",
)
_NO_DOCS = ("doc", "man", "locale")


def image_path(image: str) -> str:
    """The directory to put under the box's overlay: "host", a Debian release (built once), or a directory."""
    if image == "host":
        return "/"
    if os.path.isdir(image):
        return os.path.abspath(image)
    return build_image(image)


def build_image(suite: str, *, force: bool = False) -> str:
    """Build the root of a Debian release with mmdebstrap; return its directory.  A minute or two, once."""
    path = f"{CACHE}/{suite}"
    os.makedirs(CACHE, exist_ok=True)
    with open(f"{CACHE}/{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if os.path.isdir(path):
            if not force:
                return path
            shutil.rmtree(path)
        _need_mmdebstrap()
        began = time.monotonic()
        part = path + ".part"
        shutil.rmtree(part, ignore_errors=True)
        _mmdebstrap(suite, part)
        os.rename(part, path)
    print(f"sdbox: image {suite} built in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return path


def _need_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    # Progress goes to standard error: standard output is the command's own.
    subprocess.run(["apt-get", "update", "-q"], stdout=2, check=False)
    subprocess.run(
        ["apt-get", "install", "-qy", "--no-install-recommends", "mmdebstrap"], stdout=2, check=True
    )


def _mmdebstrap(suite: str, target: str) -> None:
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=" + ",".join(PACKAGES)]
    command += ['--aptopt=Acquire::Languages "none"']
    command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _NO_DOCS]
    # A plain PATH: mmdebstrap calls python3 and means the system's.
    env = dict(os.environ, PATH="/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL="C")
    subprocess.run([*command, suite, target, MIRROR or _apt_site()], check=True, stdout=2, env=env)


def _apt_site() -> str:
    """The Debian archive that this machine's apt is set up to use."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)"]
    sites = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    archives = [site for site in sites if site.rstrip("/").endswith("/debian")]
    return archives[0] if archives else die("apt names no Debian archive; set SDBOX_MIRROR")
