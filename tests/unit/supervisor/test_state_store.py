"""The state's memfd: one half is whole, whatever moment its writer dies in."""

import os
import random
import signal
import subprocess
import sys

import pytest

from quiesce.shared.errors import QuiesceError
from quiesce.supervisor.state_store import HALF_BYTES, MAX_BYTES, StateStore


def test_the_last_state_is_found_by_the_next_supervisor() -> None:
    store = StateStore.create()
    for text in (b"one", b"two", b"three"):
        store.write(text)
    again, payload = StateStore.adopt(os.dup(store.fd))
    assert payload == b"three"
    again.write(b"four")
    store.close()
    last, payload = StateStore.adopt(os.dup(again.fd))
    assert payload == b"four"
    again.close()
    last.close()


def test_a_torn_half_gives_way_to_the_one_before() -> None:
    store = StateStore.create()
    store.write(b"whole")
    store.write(b"torn, as by a signal in the middle")
    os.pwrite(store.fd, b"XXXX", 0 + 40)  # the second one stands in the first half
    again, payload = StateStore.adopt(store.fd)
    assert payload == b"whole"
    os.pwrite(store.fd, b"\0" * 8, HALF_BYTES)
    again, payload = StateStore.adopt(store.fd)
    assert payload is None
    again.close()


def test_a_state_that_is_too_long_leaves_the_last_one() -> None:
    store = StateStore.create()
    store.write(b"good")
    with pytest.raises(QuiesceError, match="longer than"):
        store.write(b"x" * (MAX_BYTES + 1))
    again, payload = StateStore.adopt(store.fd)
    assert payload == b"good"
    again.close()


def test_what_is_no_state_is_none() -> None:
    fd = os.memfd_create("x")
    os.write(fd, b"something else entirely")
    store, payload = StateStore.adopt(fd)
    assert payload is None
    store.close()


WRITER = """
import os, sys
from quiesce.supervisor.state_store import StateStore
store = StateStore(int(sys.argv[1]))
number = 0
store.write(b"0 " * 20000)
print("begun", flush=True)
while True:
    number += 1
    store.write(b"%d " % number * 20000)
"""


def test_sigkill_at_any_moment_leaves_a_whole_state() -> None:
    fd = os.memfd_create("state")
    rng = random.Random(7)
    seen = []
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        for _ in range(rng.randrange(2000)):
            os.fstat(fd)  # some moment or other
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store, payload = StateStore.adopt(os.dup(fd))
        if payload is not None:
            assert len(set(payload.split())) == 1, "half of one state and half of another"
            seen.append(payload)
        store.close()
    assert seen
    os.close(fd)
