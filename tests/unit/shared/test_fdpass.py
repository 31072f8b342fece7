"""Descriptors over a Unix socket: nothing is lost silently, inherited by accident, or leaked."""

import array
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from quiesce.shared.channel import make_pair
from quiesce.shared.errors import FdPassingError
from quiesce.shared.fdpass import MAX_FDS, close_all, recv_fds, send_fds

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = make_pair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    close_all(ends)


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_packet_brings_its_descriptors_in_order(pair: Pair, pipe: tuple[int, int]) -> None:
    send_fds(pair[0], b"two", pipe)
    data, fds = recv_fds(pair[1], 100, 10)
    assert data == b"two"
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in pipe]
    os.write(fds[1], b"through")
    assert os.read(pipe[0], 100) == b"through"
    close_all(fds)


def test_packets_are_framed_by_the_kernel(pair: Pair, pipe: tuple[int, int]) -> None:
    send_fds(pair[0], b"one", [])
    send_fds(pair[0], b"two", pipe[:1])
    send_fds(pair[0], b"three", [])
    seen = []
    for _ in range(3):
        data, fds = recv_fds(pair[1], 100, 10)
        seen.append((data, len(fds)))
        close_all(fds)
    assert seen == [(b"one", 0), (b"two", 1), (b"three", 0)]


def test_received_descriptors_are_close_on_exec(pair: Pair, pipe: tuple[int, int]) -> None:
    os.set_inheritable(pipe[0], True)
    send_fds(pair[0], b"x", pipe)
    _, fds = recv_fds(pair[1], 100, 10)
    assert [fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds] == [fcntl.FD_CLOEXEC] * 2
    close_all(fds)


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="later bug-fix releases pass the flags on (gh-107898)"
)
def test_why_not_recv_fds_of_the_standard_library(pair: Pair, pipe: tuple[int, int]) -> None:
    """It drops its flags: what it brings would leak into whatever the application starts."""
    socket.send_fds(pair[0], [b"x"], pipe[:1])
    _, fds, _, _ = socket.recv_fds(pair[1], 100, 10, socket.MSG_CMSG_CLOEXEC)
    assert os.get_inheritable(fds[0])
    close_all(fds)


def test_why_the_buffer_is_sized_with_cmsg_len(pair: Pair, pipe: tuple[int, int]) -> None:
    """CMSG_SPACE for one descriptor takes two, and nobody is told."""
    arrived = {}
    for size in (socket.CMSG_SPACE, socket.CMSG_LEN):
        socket.send_fds(pair[0], [b"x"], pipe)
        _, ancillary, flags, _ = pair[1].recvmsg(100, size(4), socket.MSG_CMSG_CLOEXEC)
        numbers = array.array("i", ancillary[0][2])
        arrived[size] = (len(numbers), bool(flags & socket.MSG_CTRUNC))
        close_all(numbers)
    assert arrived == {socket.CMSG_SPACE: (2, False), socket.CMSG_LEN: (1, True)}


def test_one_more_than_expected_is_an_error_and_all_are_closed(pair: Pair, pipe: tuple[int, int]) -> None:
    before = count_fds()
    send_fds(pair[0], b"x", pipe)
    with pytest.raises(FdPassingError, match=r"1 arrived.*the 1 expected"):
        recv_fds(pair[1], 100, 1)
    assert count_fds() == before
    send_fds(pair[0], b"next", [])
    assert recv_fds(pair[1], 100, 1) == (b"next", [])


def test_a_socket_that_takes_none_gets_none(pair: Pair, pipe: tuple[int, int]) -> None:
    before = count_fds()
    send_fds(pair[0], b"x", pipe)
    with pytest.raises(FdPassingError, match="takes none"):
        recv_fds(pair[1], 100, 0)
    assert count_fds() == before


def test_253_descriptors_pass(pair: Pair, pipe: tuple[int, int]) -> None:
    assert MAX_FDS == 253
    send_fds(pair[0], b"x", [pipe[0]] * 253)
    data, fds = recv_fds(pair[1], 100, 253)
    assert (data, len(set(fds))) == (b"x", 253)
    close_all(fds)


def test_254_descriptors_are_refused_by_us_and_by_the_kernel(pair: Pair, pipe: tuple[int, int]) -> None:
    with pytest.raises(FdPassingError, match=r"254.*253"):
        send_fds(pair[0], b"x", [pipe[0]] * 254)
    with pytest.raises(OSError, match="Invalid argument"):
        socket.send_fds(pair[0], [b"x"], [pipe[0]] * 254)
    with pytest.raises(BlockingIOError):
        recv_fds(pair[1], 100, 253)


def test_a_packet_that_does_not_fit_is_dropped_with_its_descriptors(
    pair: Pair, pipe: tuple[int, int]
) -> None:
    before = count_fds()
    send_fds(pair[0], b"123456", pipe)
    with pytest.raises(FdPassingError, match="larger than 5 bytes"):
        recv_fds(pair[1], 5, 10)
    assert count_fds() == before
    with pytest.raises(BlockingIOError):  # the rest of it does not come as another packet
        recv_fds(pair[1], 5, 10)


def test_near_the_descriptor_limit_a_lost_descriptor_is_noticed(
    in_child: Callable[[Callable[[], None]], None],
) -> None:
    def child() -> None:
        import os
        import resource

        from quiesce.shared.channel import Channel, make_pair
        from quiesce.shared.errors import FdPassingError
        from quiesce.shared.fdpass import recv_fds, send_fds
        from quiesce.shared.messages import Accept, Listen

        ours, theirs = make_pair()
        names = [str(number) for number in range(10)]
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, highest + 4))  # room for three or so
        before = os.listdir("/proc/self/fd")
        for channel in (False, True):
            try:
                if channel:
                    sender, receiver = Channel(ours), Channel(theirs)
                    sender.send(Listen(names), [0] * 10)
                    sender.send(Accept())
                    receiver.receive()
                else:
                    send_fds(ours, b"x", [0] * 10)
                    recv_fds(theirs, 100, 253)
            except FdPassingError as exc:
                assert "RLIMIT_NOFILE" in str(exc) and "(0 arrived)" not in str(exc), exc
            else:
                raise AssertionError("seven descriptors were lost, and nobody said so")
            assert os.listdir("/proc/self/fd") == before, "those that did arrive were not closed"
        assert receiver.receive().message == Accept()  # the next packet can be read

    in_child(child)


@pytest.mark.timeout(10)
def test_nothing_blocks_on_a_blocking_socket(pair: Pair) -> None:
    for sock in pair:
        sock.setblocking(True)
    with pytest.raises(BlockingIOError):
        recv_fds(pair[1], 100, 1)
    with pytest.raises(BlockingIOError):
        for _ in range(10_000):
            send_fds(pair[0], b"x" * 1000, [])


def test_a_peer_that_is_gone_does_not_kill_us_with_sigpipe(
    in_child: Callable[[Callable[[], None]], None],
) -> None:
    def child() -> None:
        import signal

        from quiesce.shared.channel import make_pair
        from quiesce.shared.fdpass import send_fds

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as some applications do
        ours, theirs = make_pair()
        theirs.close()
        try:
            send_fds(ours, b"x", [])
        except BrokenPipeError:
            return
        raise AssertionError("sent to nobody")

    in_child(child)


def test_the_caller_keeps_what_it_sent_also_on_failure(pair: Pair, pipe: tuple[int, int]) -> None:
    pair[1].close()
    with pytest.raises(BrokenPipeError):
        send_fds(pair[0], b"x", pipe)
    assert [os.fstat(fd).st_nlink for fd in pipe] == [1, 1]


def test_the_end_of_the_peer_is_an_empty_packet(pair: Pair) -> None:
    pair[1].close()
    assert recv_fds(pair[0], 100, 10) == (b"", [])
    with pytest.raises(AssertionError):
        send_fds(pair[0], b"", [])


def test_close_all_goes_on_after_a_descriptor_that_is_closed() -> None:
    first, second = os.pipe()
    os.close(first)
    close_all([first, second])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)
