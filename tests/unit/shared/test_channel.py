"""A channel never blocks, never reorders, never leaks, and says what happened to its peer."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from quiesce.shared import channel as channel_module
from quiesce.shared.channel import MAX_QUEUED, Channel, make_pair
from quiesce.shared.encoding import MAX_PACKET_BYTES, Packet, encode
from quiesce.shared.errors import FdPassingError, PeerClosed, ProtocolError
from quiesce.shared.fdpass import close_all, send_fds
from quiesce.shared.messages import (
    PROTOCOL,
    Accept,
    Drain,
    Drained,
    Failed,
    Hello,
    Listen,
    Message,
    Probe,
    Quiesce,
    Ready,
    Unknown,
    Unlisten,
    UseLog,
)

BULKY = Unlisten(["x" * 50_000])


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = map(Channel, make_pair())
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """A peer that can say anything, and the channel that must bear it."""
    ours, theirs = make_pair()
    channel = Channel(theirs)
    with ours:
        yield ours, channel
    channel.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    fds = os.pipe()
    yield fds
    close_all(fds)


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def leads_to(fd: str, target: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == target
    except FileNotFoundError:
        return False


def drain(channel: Channel) -> list[Message]:
    messages = []
    while (incoming := channel.receive()) is not None:
        close_all(incoming.fds)
        messages.append(incoming.message)
    return messages


def fill(channel: Channel) -> int:
    """Send until the peer has no room; how many went out or are queued (one)."""
    sent = 0
    while not channel.wants_write:
        channel.send(BULKY)
        sent += 1
        assert sent < 1000
    return sent


# -- what arrives -----------------------------------------------------------------------


def test_a_message_arrives_with_its_descriptors_and_numbers(
    ends: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    ours, theirs = ends
    assert ours.send(Drain(2.5)) == 1
    assert ours.send(Listen(["a", "b"]), pipe, re=41) == 2
    first, second = theirs.receive(), theirs.receive()
    assert first is not None and second is not None
    assert first == (Drain(2.5), [], 1, None)
    assert (second.message, second.seq, second.re) == (Listen(["a", "b"]), 2, 41)
    assert [os.fstat(fd).st_ino for fd in second.fds] == [os.fstat(fd).st_ino for fd in pipe]
    close_all(second.fds)
    assert theirs.receive() is None


def test_253_listeners_go_in_one_message_and_254_do_not(
    ends: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    ours, theirs = ends
    ours.send(Listen(["n"] * 253), [pipe[0]] * 253)
    incoming = theirs.receive()
    assert incoming is not None and len(incoming.fds) == 253
    close_all(incoming.fds)
    with pytest.raises(ProtocolError, match=r"254 descriptors.*253"):
        ours.send(Listen(["n"] * 254), [pipe[0]] * 254)
    assert theirs.receive() is None


@pytest.mark.parametrize("announced", [0, 1, 3, 253])
def test_another_number_of_descriptors_than_announced(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int], announced: int
) -> None:
    peer, channel = raw
    before = count_fds()
    send_fds(peer, encode(Packet(Listen(["a", "b"]), 1, None, announced)), pipe)
    with pytest.raises(ProtocolError, match=f"announced {announced} descriptors and brought 2"):
        channel.receive()
    assert count_fds() == before


def test_fewer_descriptors_than_the_message_needs(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int]
) -> None:
    peer, channel = raw
    before = count_fds()
    send_fds(peer, encode(Packet(Listen(["a", "b", "c"]), 1, None, 2)), pipe)
    with pytest.raises(ProtocolError, match="goes with 3 descriptors and brought 2"):
        channel.receive()
    send_fds(peer, encode(Packet(Probe(), 1, None, 0)), [])
    with pytest.raises(ProtocolError, match="goes with 1 descriptors and brought 0"):
        channel.receive()
    assert count_fds() == before


def test_descriptors_that_only_a_newer_peer_sends_are_closed(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int]
) -> None:
    """As unknown fields are dropped: `quiesce` may bring a lane one day."""
    peer, channel = raw
    before = count_fds()
    send_fds(peer, encode(Packet(Quiesce(), 1, None, 2)), pipe)
    incoming = channel.receive()
    assert incoming == (Quiesce(), [], 1, None)
    send_fds(peer, encode(Packet(UseLog(), 2, None, 2)), pipe)
    incoming = channel.receive()
    assert incoming is not None and count_fds() == before + 1
    assert os.fstat(incoming.fds[0]).st_ino == os.fstat(pipe[0]).st_ino
    close_all(incoming.fds)


def test_the_wrong_number_of_descriptors_is_not_sent(
    ends: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    ours, theirs = ends
    for message, fds in ((Listen(["a"]), pipe), (Probe(), ()), (Accept(), pipe)):
        with pytest.raises(ProtocolError, match=f"and there are {len(fds)}"):
            ours.send(message, fds)
    assert theirs.receive() is None
    assert ours.send(Accept()) == 1  # no number was used up


def test_an_unknown_message_is_handed_on_with_its_descriptors(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int]
) -> None:
    peer, channel = raw
    body = {"v": PROTOCOL, "type": "teleport", "seq": 3, "fds": 2, "where": "there"}
    send_fds(peer, json.dumps(body).encode(), pipe)
    incoming = channel.receive()
    assert incoming is not None and incoming.message == Unknown("teleport")
    assert len(incoming.fds) == 2  # the receiver's to close
    close_all(incoming.fds)


def test_nonsense_is_refused_with_its_descriptors_closed_and_the_next_packet_is_read(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int]
) -> None:
    peer, channel = raw
    before = count_fds()
    for nonsense in (b"GET / HTTP/1.1", b"[]", b'{"v":1,"type":"drain","seq":1,"fds":2}', b'{"v":0}'):
        send_fds(peer, nonsense, pipe)
        with pytest.raises(ProtocolError):
            channel.receive()
    assert count_fds() == before
    send_fds(peer, encode(Packet(Accept(), 9)), [])
    assert drain(channel) == [Accept()]


def test_a_packet_that_is_too_large_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    with pytest.raises(ProtocolError, match=f"a packet holds {MAX_PACKET_BYTES}"):
        ours.send(Unlisten(["x" * MAX_PACKET_BYTES]))
    assert theirs.receive() is None and not ours.wants_write
    ours.send(Accept())
    assert drain(theirs) == [Accept()]


def test_a_packet_that_is_too_large_is_dropped_by_the_receiver(
    raw: tuple[socket.socket, Channel], pipe: tuple[int, int]
) -> None:
    peer, channel = raw
    before = count_fds()
    largest = Unlisten(["x" * (MAX_PACKET_BYTES - len(encode(Packet(Unlisten([""])))))])
    data = encode(Packet(largest))
    assert len(data) == MAX_PACKET_BYTES
    send_fds(peer, data, [])
    send_fds(peer, data + b" ", pipe)
    send_fds(peer, encode(Packet(Accept())), [])
    assert channel.receive() is not None
    with pytest.raises(FdPassingError, match=f"larger than {MAX_PACKET_BYTES}"):
        channel.receive()
    assert count_fds() == before
    assert drain(channel) == [Accept()]


def test_a_channel_that_takes_no_descriptors(pipe: tuple[int, int]) -> None:
    """The supervisor's end: a worker has nothing to give it."""
    worker, theirs = make_pair()
    supervisor = Channel(theirs, max_fds=0)
    before = count_fds()
    send_fds(worker, b'{"v":1,"type":"news","seq":1,"fds":2}', pipe)
    send_fds(worker, encode(Packet(Drained(), 2)), [])
    with pytest.raises(FdPassingError, match="takes none"):
        supervisor.receive()
    assert count_fds() == before
    assert drain(supervisor) == [Drained()]
    worker.close()
    supervisor.close()


# -- the queue --------------------------------------------------------------------------


def test_what_the_peer_has_no_room_for_waits_in_order(
    ends: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    ours, theirs = ends
    sent: list[Message] = [BULKY] * fill(ours)
    for number in range(40):
        message: Message = UseLog() if number % 2 else Drain(float(number))
        ours.send(message, pipe[:1] if number % 2 else ())
        sent.append(message)
    received: list[Message] = []
    for _ in range(100):
        received += drain(theirs)
        if not ours.wants_write:
            break
        ours.flush()
    assert received + drain(theirs) == sent


def test_a_small_message_does_not_overtake_a_queued_one(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    sent = fill(ours)
    assert theirs.receive() is not None  # room again, and nobody has flushed
    ours.send(Accept())
    for _ in range(sent):
        ours.flush()
        incoming = theirs.receive()
        assert incoming is not None
    assert incoming.message == Accept() and not ours.wants_write


def test_a_queued_descriptor_is_a_duplicate(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    sent = fill(ours)
    before = count_fds()
    reader, writer = os.pipe()
    ours.send(UseLog(), [writer])
    assert count_fds() == before + 3
    os.close(writer)  # at once; the number may be somebody else's by the time it is sent
    other = os.dup(0)
    for _ in range(sent):
        theirs.receive()
        ours.flush()
    incoming = theirs.receive()
    assert incoming is not None and incoming.message == UseLog()
    os.write(incoming.fds[0], b"still the pipe")
    assert os.read(reader, 100) == b"still the pipe"
    close_all([*incoming.fds, reader, other])
    assert count_fds() == before  # the duplicate is closed


def test_queued_duplicates_are_close_on_exec(ends: tuple[Channel, Channel], pipe: tuple[int, int]) -> None:
    ours, _ = ends
    fill(ours)
    os.set_inheritable(pipe[0], True)
    target = os.readlink(f"/proc/self/fd/{pipe[0]}")
    ours.send(UseLog(), pipe[:1])
    copies = [int(fd) for fd in os.listdir("/proc/self/fd") if leads_to(fd, target) and int(fd) not in pipe]
    assert [fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in copies] == [fcntl.FD_CLOEXEC]


def test_the_queue_is_bounded(ends: tuple[Channel, Channel], pipe: tuple[int, int]) -> None:
    ours, theirs = ends
    fill(ours)
    for _ in range(MAX_QUEUED - 1):
        ours.send(UseLog(), pipe[:1])
    before = count_fds()
    with pytest.raises(ProtocolError, match=f"{MAX_QUEUED} messages unread"):
        ours.send(UseLog(), pipe[:1])
    assert count_fds() == before
    ours.close()
    assert count_fds() == before - (MAX_QUEUED - 1) - 1
    theirs.close()


def test_descriptors_that_cannot_be_kept_do_not_leak(
    ends: tuple[Channel, Channel], pipe: tuple[int, int]
) -> None:
    """The second one of three is closed: the duplicate of the first must go as well."""
    ours, _ = ends
    fill(ours)
    before = count_fds()
    with pytest.raises(FdPassingError, match="cannot keep descriptors"):
        ours.send(Listen(["a", "b", "c"]), [pipe[0], 9999, pipe[1]])
    assert count_fds() == before


def test_flush_with_nothing_to_do(ends: tuple[Channel, Channel]) -> None:
    ends[0].flush()
    assert not ends[0].wants_write


# -- the peer is gone -------------------------------------------------------------------


def test_a_peer_that_closed(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(PeerClosed, match="closed"):
        ours.receive()
    with pytest.raises(PeerClosed) as caught:
        ours.send(Accept())
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_a_peer_that_died_with_messages_unread(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send(Accept())
    theirs.close()
    with pytest.raises(PeerClosed) as caught:
        ours.send(Accept())
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(PeerClosed):
        ours.receive()


def test_the_last_words_of_a_peer_that_died_with_messages_unread(ends: tuple[Channel, Channel]) -> None:
    """The kernel reports ECONNRESET before what is still to be read."""
    ours, theirs = ends
    ours.send(Accept())
    theirs.send(Ready("wsgi"))
    theirs.send(Failed("the database is on fire"))
    theirs.close()
    assert [ours.receive(), ours.receive()] == [
        (Ready("wsgi"), [], 1, None),
        (Failed("the database is on fire"), [], 2, None),
    ]
    with pytest.raises(PeerClosed):
        ours.receive()


def test_the_last_words_can_be_read_after_a_send_has_failed(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send(Failed("no such table"))
    theirs.close()
    with pytest.raises(PeerClosed):
        ours.send(Accept())
    incoming = ours.receive()
    assert incoming is not None and incoming.message == Failed("no such table")


@pytest.mark.parametrize("how", ["flush", "receive", "send"])
def test_the_peer_goes_while_messages_are_queued(
    ends: tuple[Channel, Channel], pipe: tuple[int, int], how: str
) -> None:
    ours, theirs = ends
    fill(ours)
    ours.send(UseLog(), pipe[:1])
    with_queue = count_fds()
    theirs.close()
    if how == "send":  # behind the queue: it joins it
        ours.send(UseLog(), pipe[:1])
    with pytest.raises(PeerClosed):
        ours.receive() if how == "receive" else ours.flush()
    assert not ours.wants_write  # or a loop would wait for a chance to write for ever
    assert count_fds() == with_queue - 2  # their end, and our duplicate


def test_our_own_closed_channel(ends: tuple[Channel, Channel], pipe: tuple[int, int]) -> None:
    ours, theirs = ends
    ours.close()
    ours.close()
    assert ours.fileno() == -1
    with pytest.raises(PeerClosed):
        ours.send(UseLog(), pipe[:1])
    with pytest.raises(PeerClosed):
        ours.receive()
    with pytest.raises(PeerClosed):
        theirs.receive()


def test_a_closed_descriptor_is_not_the_peers_fault(ends: tuple[Channel, Channel]) -> None:
    """sendmsg says EBADF for it as well; the worker must not be taken for dead."""
    ours, theirs = ends
    with pytest.raises(FdPassingError, match="Bad file descriptor"):
        ours.send(UseLog(), [9999])
    ours.send(Accept())
    assert drain(theirs) == [Accept()]


# -- never blocks -----------------------------------------------------------------------


@pytest.mark.timeout(10)
def test_somebody_cleared_o_nonblock(ends: tuple[Channel, Channel]) -> None:
    for end in ends:  # through another descriptor of the same description, as a forked child would
        copy = os.dup(end.fileno())
        os.set_blocking(copy, True)
        os.close(copy)
        assert os.get_blocking(end.fileno())
    assert ends[1].receive() is None
    assert fill(ends[0]) > 1


@pytest.mark.timeout(10)
def test_a_default_timeout_set_by_the_application(pipe: tuple[int, int]) -> None:
    """Python would wait in poll() before every recvmsg, whatever its flags."""
    ours, theirs = make_pair()
    ours.settimeout(60)
    channel = Channel(ours)
    assert channel.receive() is None
    assert fill(channel) > 1
    channel.close()
    theirs.close()


def test_a_packet_larger_than_the_send_buffer_says_so() -> None:
    ours, theirs = make_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    channel = Channel(ours)
    with pytest.raises(ProtocolError, match="wmem_default"):
        channel.send(BULKY)
    channel.close()
    theirs.close()


def test_too_many_descriptors_in_flight(in_child: Callable[[Callable[[], None]], None]) -> None:
    """ETOOMANYREFS: refused, not lost; a queued message stays where it is."""

    def child() -> None:
        import os
        import resource

        from quiesce.shared.channel import Channel, make_pair
        from quiesce.shared.errors import FdPassingError
        from quiesce.shared.messages import Probe, Unlisten, UseLog

        (ours, theirs), (lane, reader) = (map(Channel, make_pair()) for _ in range(2))
        while not ours.wants_write:
            ours.send(Unlisten(["x" * 50_000]))
        ours.send(UseLog(), [0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)  # root is never refused
        before = os.listdir("/proc/self/fd")
        sent = 0
        try:
            while sent < 100:
                lane.send(Probe(), [0])
                sent += 1
        except FdPassingError as exc:
            assert "Too many references" in str(exc), exc
        else:
            raise AssertionError("the kernel has another limit than we think")
        assert not lane.wants_write and os.listdir("/proc/self/fd") == before
        got = []
        for _ in range(50):
            while (incoming := theirs.receive()) is not None:
                got.append(incoming)
            try:
                ours.flush()
            except FdPassingError:
                break
        assert ours.wants_write and not any(incoming.fds for incoming in got)
        for _ in range(sent):
            os.close(reader.receive().fds[0])
        ours.flush()
        while (incoming := theirs.receive()) is not None:
            got.append(incoming)
        assert [len(incoming.fds) for incoming in got] == [0] * (len(got) - 1) + [1]
        assert isinstance(got[-1].message, UseLog) and not ours.wants_write

    in_child(child)


def test_a_short_kernel_memory_is_not_the_peers_death(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOBUFS and ENOMEM cannot be had from a real kernel at will."""

    def refuse(*_: object) -> None:
        raise OSError(channel_module.errno.ENOBUFS, "no buffer space")

    ours, theirs = ends
    monkeypatch.setattr(channel_module, "send_fds", refuse)
    monkeypatch.setattr(channel_module, "recv_fds", refuse)
    ours.send(Accept())
    assert ours.wants_write and theirs.receive() is None
    monkeypatch.undo()
    ours.flush()
    assert drain(theirs) == [Accept()]


def test_hello_and_back() -> None:
    ours, theirs = map(Channel, make_pair())
    hello = Hello(PROTOCOL, PROTOCOL, "0.1.0", "3.11.7", os.getpid())
    seq = ours.send(hello)
    incoming = theirs.receive()
    assert incoming is not None and incoming.message == hello
    theirs.send(Accept(), re=incoming.seq)
    answer = ours.receive()
    assert answer is not None and answer.re == seq
    ours.close()
    theirs.close()


def test_a_new_supervisor_on_an_old_channel_repeats_no_number(raw: tuple[socket.socket, Channel]) -> None:
    """Both write into the same socket pair, one after the other: answers name numbers, and must not be mixed up."""
    sock, worker = raw
    first = Channel(sock.dup())
    assert [first.send(Quiesce()) for _ in range(3)] == [1, 2, 3] and first.seq == 3
    first.close()
    second = Channel(sock.dup(), first_seq=1 << 32)
    assert second.seq == 1 << 32
    assert second.send(Accept()) == second.seq == (1 << 32) + 1
    numbers = []
    while (incoming := worker.receive()) is not None:
        numbers.append(incoming.seq)
    assert numbers == [1, 2, 3, (1 << 32) + 1]
    second.close()


def test_what_is_queued_can_be_forgotten_and_there_is_room_again(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    fill(ours)
    while not ours.is_full:
        ours.send(Quiesce())
    with pytest.raises(ProtocolError, match="unread"):
        ours.send(Quiesce())
    ours.forget()
    assert not ours.is_full and not ours.wants_write
    number = ours.send(Accept())
    heard = drain(theirs)
    ours.flush()
    heard += drain(theirs)
    assert ours.seq == number and isinstance(heard[-1], Accept)
    assert not any(isinstance(message, Quiesce) for message in heard)


def test_a_packet_that_can_never_go_does_not_hold_up_the_others() -> None:
    """Left where it is, it would make the loop turn for ever: the socket is writable."""
    sock, other = make_pair()
    ours, theirs = Channel(sock), Channel(other)
    fill(ours)
    ours.send(BULKY)
    ours.send(Accept())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    messages: list[Message] = []
    for _ in range(1000):
        messages += drain(theirs)
        try:
            ours.flush()
        except ProtocolError as exc:
            assert "larger than the socket's send buffer" in str(exc)
        if not ours.wants_write:
            break
    messages += drain(theirs)
    assert messages[-1] == Accept() and isinstance(messages[-1], Accept)
    ours.close()
    theirs.close()
