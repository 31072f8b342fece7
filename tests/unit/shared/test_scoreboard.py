"""Shared memory that no peer can pull away from under another."""

import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quiesce.shared import scoreboard as module
from quiesce.shared.errors import ProtocolError
from quiesce.shared.scoreboard import COUNTERS, SLOT_FIELDS, SLOTS, Field, Scoreboard

SEALED = module._SEALS
SIZE = module._BYTES


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    board.close()


def memfd(size: int = SIZE, seals: int = SEALED, content: bytes = b"") -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, module._F_ADD_SEALS, seals)
    return fd


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_its_size_is_sealed(board: Scoreboard) -> None:
    size = os.fstat(board.fd).st_size
    for wanted in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, wanted)
    with pytest.raises(PermissionError):  # and nobody can add the seal that would forbid writing
        fcntl.fcntl(board.fd, module._F_ADD_SEALS, 0x8)


def test_its_descriptor_is_close_on_exec(board: Scoreboard) -> None:
    assert not os.get_inheritable(board.fd)


def test_two_mappings_are_the_same_memory(board: Scoreboard) -> None:
    other = Scoreboard.attach(os.dup(board.fd))
    board.slot(3)[Field.REQUESTS] = 2**64 - 1
    assert other.slot(3)[Field.REQUESTS] == 2**64 - 1
    other.slot(1023)[Field.TURN_NS] = 5
    assert board.slot(1023)[Field.TURN_NS] == 5
    other.close()


CHILD = """
import sys
from quiesce.shared.scoreboard import Field, Scoreboard
board = Scoreboard.attach(int(sys.argv[1]))
slot = board.slot(7)
assert slot[Field.CONN_OPEN] == 41, slot[Field.CONN_OPEN]
slot[Field.CONN_OPEN] = 42
print("stored", flush=True)
sys.stdin.read()
"""


def test_two_processes_see_each_others_stores(board: Scoreboard) -> None:
    board.slot(7)[Field.CONN_OPEN] = 41
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(board.fd)],
        pass_fds=[board.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"stored\n"
        assert board.slot(7)[Field.CONN_OPEN] == 42  # while it lives
        child.kill()
    assert board.slot(7)[Field.CONN_OPEN] == 42  # and when it has been killed


def test_slots_do_not_touch_each_other_or_the_header(board: Scoreboard) -> None:
    for field in range(SLOT_FIELDS):
        board.slot(0)[field] = board.slot(2)[field] = board.slot(SLOTS - 1)[field] = 2**64 - 1
    assert set(board.slot(1)) == {0} and set(board.slot(SLOTS - 2)) == {0}
    Scoreboard.attach(os.dup(board.fd)).close()  # the header still says what it is


def test_clear_empties_one_slot(board: Scoreboard) -> None:
    for number in (4, 5, 6):
        for field in range(SLOT_FIELDS):
            board.slot(number)[field] = 9
    held = board.slot(5)
    board.clear(5)
    assert set(held) == {0}
    assert set(board.slot(4)) == set(board.slot(6)) == {9}


def test_a_column_is_one_field_of_every_slot(board: Scoreboard) -> None:
    column = board.column(Field.CONN_OPEN)
    assert len(column) == SLOTS
    for number in (0, 5, SLOTS - 1):
        board.slot(number)[Field.CONN_OPEN] = number + 1
        board.slot(number)[Field.CONN_IDLE] = 99
    assert column[:6].tolist() == [1, 0, 0, 0, 0, 6] and column[SLOTS - 1] == SLOTS
    assert sum(column.tolist()) == 1 + 6 + SLOTS
    for field in (-1, SLOT_FIELDS):
        with pytest.raises(IndexError):
            board.column(field)


@pytest.mark.parametrize("number", [-1, SLOTS, 2**31])
def test_there_are_no_other_slots(board: Scoreboard, number: int) -> None:
    for use in (board.slot, board.clear):
        with pytest.raises(ProtocolError, match=f"slot {number} is outside"):
            use(number)


def test_a_slot_has_no_other_fields(board: Scoreboard) -> None:
    with pytest.raises(IndexError):
        board.slot(0)[SLOT_FIELDS]


def test_the_layout_is_append_only() -> None:
    """Workers of two versions share the memory: an index never gets another meaning."""
    assert [field.name for field in sorted(Field)][:19] == [
        "TURN_NS", "IN_REQUEST_SINCE_NS", "CONN_OPEN", "CONN_IDLE", "CONN_BUSY", "REQUESTS", "RESP_1XX", "RESP_2XX",
        "RESP_3XX", "RESP_4XX", "RESP_5XX", "BYTES_IN", "BYTES_OUT", "ACCEPTED", "REFUSED", "TIMEOUTS", "ERRORS",
        "HANDED_OUT", "HANDED_IN",
    ]  # fmt: skip
    assert [int(field) for field in Field] == list(range(len(Field)))
    assert len(Field) <= SLOT_FIELDS
    assert (SLOTS, SLOT_FIELDS, module._HEADER_FIELDS) == (1024, 32, 512)
    assert not set(COUNTERS) & {
        Field.TURN_NS, Field.IN_REQUEST_SINCE_NS, Field.CONN_OPEN, Field.CONN_IDLE, Field.CONN_BUSY,
    }  # fmt: skip


@pytest.mark.parametrize("seals", [0x1 | 0x2, 0x1 | 0x4, 0x2 | 0x4, 0x1])
def test_attach_refuses_what_is_not_sealed_enough(seals: int, board: Scoreboard) -> None:
    fd = memfd(seals=seals, content=os.pread(board.fd, 24, 0))
    with pytest.raises(ProtocolError, match="not a sealed scoreboard"):
        Scoreboard.attach(fd)
    assert closed(fd)


@pytest.mark.parametrize("size", [0, 4096, SIZE - 8, SIZE + 8])
def test_attach_refuses_another_size(size: int, board: Scoreboard) -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, os.pread(board.fd, 24, 0), 0)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, module._F_ADD_SEALS, SEALED)
    with pytest.raises(ProtocolError, match="size"):
        Scoreboard.attach(fd)
    assert closed(fd)


@pytest.mark.parametrize("word", [0, 1, 2])
def test_attach_refuses_another_header(word: int, board: Scoreboard) -> None:
    header = bytearray(os.pread(board.fd, 24, 0))
    header[8 * word] ^= 1
    fd = memfd(content=bytes(header))
    with pytest.raises(ProtocolError, match="layout"):
        Scoreboard.attach(fd)
    assert closed(fd)


def test_attach_refuses_what_forbids_writing(board: Scoreboard) -> None:
    fd = memfd(seals=SEALED | 0x8, content=os.pread(board.fd, 24, 0))
    with pytest.raises(ProtocolError, match="cannot be mapped"):
        Scoreboard.attach(fd)
    assert closed(fd)


def test_attach_refuses_what_is_no_memory() -> None:
    ours, theirs = socket.socketpair()
    for fd in (ours.detach(), theirs.detach(), os.open("/dev/null", os.O_RDWR)):
        with pytest.raises(ProtocolError, match="cannot be mapped"):
            Scoreboard.attach(fd)
        assert closed(fd)


def test_create_that_fails_half_way_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.mmap, "mmap", no_memory)
    with pytest.raises(OSError, match="Cannot allocate"):
        Scoreboard.create()  # the check after every test counts


def test_close_while_a_slot_is_in_use() -> None:
    """A worker that leaves may have its slot in its hand: no SIGSEGV, and close goes through."""
    board = Scoreboard.create()
    fd = board.fd
    slot = board.slot(1)
    board.close()
    assert closed(fd) and board.fd == -1
    slot[Field.TURN_NS] = 1
    assert slot[Field.TURN_NS] == 1


def test_close_twice_does_not_close_somebody_elses_descriptor() -> None:
    board = Scoreboard.create()
    fd = board.fd
    board.close()
    os.dup2(0, fd)  # the number is somebody else's now
    board.close()
    assert not closed(fd)
    os.close(fd)


def test_unready_is_one_flag_for_all_who_share_the_memory(board: Scoreboard) -> None:
    other = Scoreboard.attach(os.dup(board.fd))
    assert not board.unready and not other.unready
    board.unready = True
    assert board.unready and other.unready
    board.clear(0)  # a slot's business, not the header's
    assert other.unready
    third = Scoreboard.attach(os.dup(board.fd))  # it is still a scoreboard: the flag is no part of its layout
    board.unready = False
    assert not other.unready and not third.unready
    other.close()
    third.close()


def test_a_request_that_runs_in_the_loop_is_busy_before_its_turn_is_over(board: Scoreboard) -> None:
    slot = board.slot(2)
    slot[Field.CONN_OPEN], slot[Field.CONN_IDLE] = 5, 5
    figures = (Field.CONN_OPEN, Field.CONN_IDLE, Field.CONN_BUSY)
    assert [board.reading(2, field) for field in figures] == [5, 5, 0]
    slot[Field.IN_REQUEST_SINCE_NS] = 1
    assert [board.reading(2, field) for field in figures] == [5, 4, 1]
    slot[Field.CONN_IDLE], slot[Field.CONN_BUSY] = 2, 3  # it may be one of those
    assert [board.reading(2, field) for field in figures] == [5, 2, 3]
    slot[Field.CONN_OPEN] = slot[Field.CONN_IDLE] = slot[Field.CONN_BUSY] = (
        0  # a probe's: no connection at all
    )
    assert [board.reading(2, field) for field in figures] == [0, 0, 0]
