"""A box for a test: boots it through the command, runs things in it, ends it.

Through the command and not by calling ``boot.up``: that forks, and a test process has threads.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from sdbox.state import need, rundir

_COMMAND = (sys.executable, str(Path(__file__).with_name("sdbox")))
BUILD_S = 240  # an image is built once, in 20 s where the Debian archive is near
_IN_CI = bool(os.environ.get("CI"))


def require_boxes() -> None:
    """Skip the test where no box can be booted; on continuous integration install what is missing, or fail."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to boot a systemd in namespaces")
    if not _has_systemd() and _IN_CI:
        install_by_apt("systemd")
    if not _has_systemd():
        pytest.skip("needs systemd on this machine (apt-get install systemd)")


def require_image(image: str) -> None:
    """Build the image if it is not there; skip the test where it cannot be had (no archive, no mmdebstrap)."""
    require_boxes()
    if image == "host":
        return
    try:
        build = [*_COMMAND, "image", image]
        done = subprocess.run(build, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the image {image} was not built within {BUILD_S} s")
    if done.returncode != 0:
        pytest.skip(f"the image {image} cannot be built here: {done.stderr.strip()[-500:]}")


def install_by_apt(package: str) -> None:
    """Install a Debian package; the test fails if that fails."""
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(["apt-get", "update", "-q"], env=env, check=False, stdout=subprocess.DEVNULL, timeout=300)
    install = ["apt-get", "install", "-qy", "--no-install-recommends", package]
    subprocess.run(install, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)


def _has_systemd() -> bool:
    return Path("/usr/lib/systemd/systemd").exists() and shutil.which("systemd-analyze") is not None


_numbers = itertools.count(1)


class Box:
    """One booted box, as a context manager.

    ``binds`` are as in README.md.  Leaving kills everything in it.
    """

    def __init__(self, name: str, binds: Sequence[str] = (), image: str = "host") -> None:
        # The process's own number: tests run side by side, and two checkouts may as well.
        self.name = f"{name}-{os.getpid()}-{next(_numbers)}"
        self._binds = binds
        self._image = image

    def __enter__(self) -> Box:
        binds = [word for spec in self._binds for word in ("--bind", spec)]
        up = self._call("up", self.name, "--image", self._image, "--quiet", *binds)
        if up.returncode != 0 and not _IN_CI:
            pytest.skip(f"no box can be booted here: {up.stderr.strip()}")
        assert up.returncode == 0, up.stderr
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()
        shutil.rmtree(rundir(self.name), ignore_errors=True)  # the console's log

    def down(self, *, graceful: bool = False) -> None:
        """End it; ``graceful``: its services are stopped first, as in a shutdown."""
        self._call("down", self.name, "--quiet", *(["--graceful"] if graceful else []))

    @property
    def root(self) -> Path:
        """The box's file system, seen from this machine."""
        return Path(f"/proc/{need(self.name).pid}/root")

    def run(
        self, *command: str, stdin: str = "", timeout_s: float = 60.0, user: str = "root"
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the box; its exit status is the result's."""
        who = ("--user", user) if user != "root" else ()
        return self._call("exec", *who, self.name, "--", *command, stdin=stdin, timeout_s=timeout_s)

    def inside(self, *command: str) -> list[str]:
        """The command line of a process that enters the box."""
        return [*_COMMAND, "exec", self.name, "--", *command]

    def beside(self, *command: str) -> list[str]:
        """The command line of a process of this machine that joins the box's network."""
        return [*_COMMAND, "netexec", self.name, "--", *command]

    def journal(self, *arguments: str) -> str:
        """What journalctl says in the box."""
        return self._call("journal", self.name, *arguments).stdout

    def _call(
        self, *words: str, stdin: str = "", timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_COMMAND, *words], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
