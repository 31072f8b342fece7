"""The pages of the little shop, the same for every interface.  Copied into each release.

Every answer's body begins with ``RELEASE NONCE PID\n``; X-Release, X-Length and X-Checksum let a client check it.
It imports little: a release may hold modules that shadow the standard library's.
"""

import os
import signal
import sys
import time
import zlib

import behaviour

_PATTERN = bytes(range(256)) * 256
_served = 0
_first = 0.0


def note(name, line):
    """Append one line to a file of the test, whole, whoever else appends to it."""
    fd = os.open(os.path.join(behaviour.NOTES, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, (line + "\n").encode())
    finally:
        os.close(fd)


def begin():
    """What happens on import of the application.  A file `poison` among the notes spoils every import from then on."""
    if behaviour.PRINTS:
        print(f"shop {behaviour.RELEASE} is being imported")
    if behaviour.IMPORT_S:
        time.sleep(behaviour.IMPORT_S)
    if os.path.exists(os.path.join(behaviour.NOTES, "poison")):
        print("the well is poisoned")
        sys.exit(7)
    if behaviour.ON_IMPORT == "exit":
        print("the shop has no configuration")
        sys.exit(7)
    if behaviour.ON_IMPORT == "exit 0":
        sys.exit(0)
    if behaviour.ON_IMPORT == "raise":
        raise RuntimeError("the shelves are empty")
    if behaviour.ON_IMPORT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour.ON_IMPORT == "hang":
        note("hanging", str(os.getpid()))
        while True:
            signal.pause()


def die():
    """Die at once, having noted when."""
    note("deaths", f"{os.getpid()} {time.monotonic()}")
    os._exit(9)


def count(nonce):
    """Count a request of the load client (probes carry no nonce), and die when the behaviour says so."""
    global _served, _first
    if nonce == "-":
        return
    _served += 1
    _first = _first or time.monotonic()
    if behaviour.DIES_AFTER_REQUESTS and _served > behaviour.DIES_AFTER_REQUESTS:
        die()
    if behaviour.DIES_AFTER_S and time.monotonic() - _first > behaviour.DIES_AFTER_S:
        die()
    if behaviour.PRINT_BYTES:
        print("x" * (behaviour.PRINT_BYTES - 1), flush=True)


class Page:
    """An answer: ``parts`` is a list of bytes; ``length`` is None when the framing is to be chunked."""

    def __init__(self, nonce, payload=b"", status=200, chunked=False):
        body = f"{behaviour.RELEASE} {nonce} {os.getpid()}\n".encode() + payload
        self.status = status
        self.chunked = chunked
        self.parts = [body[at : at + 65536] for at in range(0, len(body), 65536)] if chunked else [body]
        self.headers = [
            ("Content-Type", "application/octet-stream"),
            ("X-Release", behaviour.RELEASE),
            ("X-Length", str(len(body))),
            ("X-Checksum", f"{zlib.crc32(body):08x}"),
        ]
        if not chunked:
            self.headers.append(("Content-Length", str(len(body))))


class Upload:
    """What came up: its size and checksum, and the first bytes for /post."""

    def __init__(self):
        self.size = 0
        self.crc = 0
        self.head = b""

    def feed(self, data):
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)
        self.head = (self.head + data)[:256] if len(self.head) < 256 else self.head


def query_of(text):
    return dict(part.partition("=")[::2] for part in text.split("&") if part)


def answer(path, query, nonce, upload):
    """One request in, one Page out.  ``query`` is the raw string, ``nonce`` "-" when there is none."""
    count(nonce)
    asked = query_of(query)
    if path == "/healthz" or (path == "/" and nonce == "-"):
        note("probes", str(os.getpid()))
        ready = behaviour.HEALTH == 200
        return Page(nonce, b"well" if ready else b"the doctor is out", status=behaviour.HEALTH)
    if path == "/":
        return Page(nonce, b"welcome", status=behaviour.SERVES)
    if path == "/post":
        note("tokens", upload.head.decode())
        return Page(nonce, b"stored " + upload.head)
    if path == "/upload":
        return Page(nonce, f"{upload.size} {upload.crc:08x}".encode())
    if path == "/download":
        size = int(asked["bytes"])
        payload = (_PATTERN * (size // len(_PATTERN) + 1))[:size]
        return Page(nonce, payload, chunked=asked.get("framing") == "chunked")
    if path == "/slow":
        return Page(nonce, f"after {asked['ms']} ms".encode())
    if path == "/pid":
        return Page(nonce, str(os.getpid()).encode())
    if path == "/uid":
        return Page(nonce, f"{os.getuid()} {os.geteuid()} {os.getgid()} {os.getgroups()}".encode())
    if path == "/env":
        lines = (f"{name}={value}" for name, value in sorted(os.environ.items()))
        return Page(nonce, "\n".join(lines).encode())
    if path == "/modules":
        lines = (f"{name} {getattr(sys.modules.get(name), 'MINE', False)}" for name in behaviour.SHADOWS)
        return Page(nonce, "\n".join(lines).encode())
    if path == "/error":
        raise RuntimeError("the till is jammed")
    return Page(nonce, b"no such page", status=404)


def slow_s(path, query):
    """How long the handler shall take, for the interfaces to wait in their own way."""
    return int(query_of(query)["ms"]) / 1000 if path == "/slow" else 0.0
