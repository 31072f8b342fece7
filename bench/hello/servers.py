"""The servers that are compared: how each is made, started, and how much CPU it has used."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from scenarios import FILE_BYTES

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / ".src"
LABELS = {
    "native": "native, inline",
    "daemon": "`quiesce.Daemon`",
    "wsgi": "WSGI, inline",
    "wsgi-pool": "WSGI, 4 threads",
    "asgi": "ASGI on uvloop",
    "asgi-asyncio": "ASGI on asyncio",
    "uvicorn": "uvicorn (uvloop, httptools)",
    "mhd": "libmicrohttpd (C, epoll)",
}
PIP = ("uvicorn", "uvloop", "httptools")
APT = "apt-get install -y gcc libc6-dev libmicrohttpd-dev"
PATIENCE_S = 20.0


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Workshop:
    """A temporary directory with what is compiled and installed for a run; nothing of it goes into the tree."""

    def __init__(self, directory: Path, environment: Path | None) -> None:
        self.directory = directory
        self.environment = environment or directory / "venv"
        self.load = directory / "load"
        self.mhd = directory / "mhd"
        self.file = directory / "file"
        self.requests = directory / "requests"

    def prepare(self, wanted: list[str]) -> list[str]:
        """Build what these servers need.  Returns those that there can be; says why one is missing."""
        if shutil.which("cc") is None:
            sys.exit(f"bench: there is no C compiler for the load client; run: {APT}")
        self._compile("load.c", self.load)
        self.requests.mkdir()
        self.file.write_bytes(bytes(range(256)) * (FILE_BYTES // 256))
        there = list(wanted)
        if not {"uvicorn", "asgi"} & set(wanted):
            self.environment = Path(sys.prefix)
        elif not self._install():
            say(f"without uvicorn and uvloop: pip cannot get them; pass --venv DIR that has {' '.join(PIP)}")
            there = [name for name in there if name not in ("uvicorn", "asgi")]
            self.environment = Path(sys.prefix)
        if subprocess.run(
            [self.python, "-c", "import httptools"], capture_output=True, check=False
        ).returncode:
            sys.exit(f"bench: {self.python} has no httptools; run this by: ./dev sh python bench/hello")
        if "mhd" in there and not self._compile("mhd.c", self.mhd, "-lmicrohttpd"):
            say(f"without libmicrohttpd: mhd.c does not compile here; run: {APT}")
            there.remove("mhd")
        return there

    def _compile(self, source: str, target: Path, *libraries: str) -> bool:
        command = ["cc", "-O2", "-Wall", "-o", str(target), str(HERE / source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not libraries:
            sys.exit(f"bench: {source} does not compile:\n{done.stderr}")
        return not done.returncode

    @property
    def python(self) -> Path:
        """One interpreter for all that is Python, so that version and httptools are the same for all."""
        return self.environment / "bin/python"

    def _install(self) -> bool:
        if not self.python.exists():
            venv.create(self.environment, with_pip=True)
        code = "import uvicorn, uvloop, httptools"
        if not subprocess.run([self.python, "-c", code], capture_output=True, check=False).returncode:
            return True
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PIP]
        return not subprocess.run(command, check=False).returncode

    def versions(self) -> dict[str, str]:
        """What was compared, for the record."""
        code = (
            "import platform, importlib.metadata as m\nprint('python', platform.python_version())\n"
            + "".join(
                f"try: print('{name}', m.version('{name}'))\nexcept m.PackageNotFoundError: pass\n"
                for name in PIP
            )
        )
        lines = subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True).stdout
        found = dict(line.split(" ") for line in lines.splitlines())
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            asked = subprocess.run(
                ["pkg-config", "--modversion", "libmicrohttpd"], check=True, capture_output=True, text=True
            )
            found["libmicrohttpd"] = asked.stdout.strip()
        return found

    def command(self, name: str, port: int) -> list[str]:
        if name == "mhd":
            return [str(self.mhd), str(port), str(self.file)]
        if name == "uvicorn":
            options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
            options += ["--loop", "uvloop", "--http", "httptools", "--app-dir", str(HERE)]
            return [str(self.python), "-m", "uvicorn", "apps:asgi", *options]
        return [str(self.python), str(HERE / "serve.py"), name, str(port)]


@dataclass
class Server:
    """A server that runs.  Owns its process."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, name: str, workshop: Workshop, core: int) -> "Server":
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        environ = os.environ | {
            "BENCH_FILE": str(workshop.file), "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"
        }  # fmt: skip
        process = subprocess.Popen(
            workshop.command(name, port), env=environ, preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
        server = cls(name, port, process)
        server._wait()
        return server

    def _wait(self) -> None:
        """Until it listens: nobody tells us."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)
        sys.exit(f"bench: {self.name} does not serve; its output is above")

    def cpu_s(self) -> float:
        """User and system time so far of the whole tree, in nanoseconds' resolution (clock_getcpuclockid(3))."""
        return sum(_cpu_s(pid) for pid in _tree(self.process.pid))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of a process, all its threads
    except OSError:
        return 0.0


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for parent in pids:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += map(int, path.read_text().split())
    return pids
