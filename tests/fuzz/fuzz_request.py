"""Any bytes at all, sent to a connection: it answers in HTTP, says the same however they are cut, and never breaks.

    python tests/fuzz/fuzz_request.py [--seed N] [--count N]                  mutations of the corpus
    python tests/fuzz/fuzz_request.py tests/fuzz/corpus [libFuzzer's options]   led by coverage, with atheris

What a run finds goes into ``corpus/`` as a file, under the name of what was wrong.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quiesce import Request, Response
from quiesce.worker.apps.base import App
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.core.http1 import HeadParser
from quiesce.worker.core.limits import Limits
from quiesce.worker.net.exchange import Exchange
from wire.serving import bench, steps_outside_the_table, watched_connections

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(header_bytes=600, line_bytes=200, header_count=8, body_bytes=40, body_memory=8)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_HEAD = re.compile(
    rb"HTTP/1\.1 (\d\d\d) [\t -~]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*\r\n)*)\r\n"
)
_LENGTH = re.compile(rb"^Content-Length: (\d+)\r$", re.M)

_seen: list[Request] = []
_bodies: list[bytes] = []


def _handler(request: Request) -> Response:
    _seen.append(request)
    _bodies.append(request.body)
    return Response(b"<" + request.body + b">")


class _Streaming:
    """The same, called at the head: it reads the body itself."""

    interface, streams_body, blocking = "asgi", True, False

    def handle(self, exchange: Exchange) -> None:
        parts: list[bytes] = []

        def on_body(data: bytes, more: bool) -> None:
            parts.append(data)
            if not more:
                body = b"".join(parts)
                _seen.append(exchange.request)
                _bodies.append(body)
                exchange.respond(Response(b"<" + body + b">"))

        exchange.read_body(on_body)


_APP = NativeApp(_handler)
_STREAMING = _Streaming()


def one_input(data: bytes) -> None:
    """Raises AssertionError, or whatever came out of the engine, where something is wrong with ``data``'s treatment."""
    cut = sum(data) % (len(data) + 1)
    verdicts = []
    parser = HeadParser(LIMITS)  # at first it knows nothing, then names, then lines, then whole heads
    for app, pieces in (
        (_APP, [data]),
        (_STREAMING, [data[:cut], data[cut:]]),
        (_APP, [data[i : i + 1] for i in range(len(data))]),
        (_APP, [data]),
    ):
        reply = _send(pieces, app, parser)
        answers = list(_answers(reply))
        for request in _seen:
            _check_request(request)
        assert max(map(len, _bodies), default=0) <= LIMITS.body_bytes
        asked = [(request.method, request.target, request.headers) for request in _seen]
        verdicts.append((asked, _bodies.copy(), answers, reply.endswith(b"EOF")))
    assert verdicts[0] == verdicts[1] == verdicts[2], f"the cut decides: {verdicts}"
    assert verdicts[0] == verdicts[3], f"what came before decides: {verdicts}"


def _send(pieces: list[bytes], app: App, parser: HeadParser) -> bytes:
    _seen.clear()
    _bodies.clear()
    with watched_connections(), bench(app, LIMITS) as one:
        one.daemon.parser = parser
        for piece in pieces:
            one.send(piece)
        reply = one.read()
    assert steps_outside_the_table() == []
    assert b"RESET" not in reply
    return reply


def _answers(reply: bytes) -> Iterator[int]:
    """The statuses; one for each request that was served, and at most one of our own, which is the last."""
    methods = [request.method for request in _seen]
    rest = reply
    while rest not in (b"", b"EOF"):
        head = _HEAD.match(rest)
        assert head, f"no answer: {rest!r}"
        status, rest = int(head[1]), rest[head.end() :]
        if status == 100:
            continue
        length = _LENGTH.search(head[2])
        assert length and head[2].count(b"\nDate: ") + head[2].startswith(b"Date: ") == 1
        ours = not methods
        if ours:
            assert status >= 400 and b"Connection: close\r\n" in head[2] and reply.endswith(b"EOF")
        method = "" if ours else methods.pop(0)
        if method != "HEAD" and not (ours and rest == b"EOF"):
            body, rest = rest[: int(length[1])], rest[int(length[1]) :]
            assert len(body) == int(length[1])
        if b"Connection: close" in head[2]:
            assert rest == b"EOF"
        yield status
    assert not methods, "a request without an answer"


def _check_request(request: Request) -> None:
    assert _TOKEN.fullmatch(request.method.encode())
    assert re.fullmatch(rb'[!"$-~]+', request.target)
    assert request.version in ("1.0", "1.1")
    assert len(request.headers) <= LIMITS.header_count
    for name, value in request.headers:
        assert _TOKEN.fullmatch(name) and name == name.lower()
        assert _VALUE.fullmatch(value)
    names = [name for name, _ in request.headers]
    assert names.count(b"host") == 1 or (request.version == "1.0" and b"host" not in names)
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1


_PIECES = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"#", b"%", b"@", b"[", b"\x7f", b"\xff", b"0", b"1",
    b"HTTP/1.1", b"HTTP/1.0", b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"0\r\n\r\n", b"\r\n ",
)  # fmt: skip


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, changed a little."""
    data = chance.choice(seeds)
    for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(data) + 1)
        until = min(len(data), at + chance.choice((0, 0, 1, 1, 2, 8)))
        kind = chance.randrange(5)
        if kind == 0:
            data = data[:at] + chance.choice(_PIECES) + data[until:]
        elif kind == 1:
            data = data[:at] + data[until:]
        elif kind == 2:
            data = data[:at] + bytes((chance.randrange(256),)) + data[until:]
        elif kind == 3:  # the beginning of one and the end of another
            other = chance.choice(seeds)
            data = data[:at] + other[chance.randrange(len(other) + 1) :]
        else:  # a line twice, somewhere else
            lines = data.split(b"\r\n")
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            data = b"\r\n".join(lines)
    return data[:2000]


def run(seed: int, count: int) -> None:
    """Mutate the corpus ``count`` times, always the same way for the same seed."""
    seeds = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    for data in seeds:
        _try(data)
    chance = random.Random(seed)
    for _ in range(count):
        _try(mutated(chance, seeds))


def _try(data: bytes) -> None:
    try:
        one_input(data)
    except BaseException as exc:
        exc.add_note(f"the input was {data!r}")
        raise


def main() -> None:
    arguments = sys.argv[1:]
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if not arguments or options.keys() & {"--seed", "--count"}:
        seed = int(options.get("--seed", random.randrange(1 << 32)))
        count = int(options.get("--count", 20_000))
        print(f"{count} mutations of the corpus, --seed {seed}")
        run(seed, count)
        return
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
