"""The supervisor's loop, with real descriptors."""

import os
import signal
import socket
from functools import partial

from quiesce.shared.clock import ManualClock
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.signals import Signals


def test_what_is_ready_comes_before_what_is_due() -> None:
    """After a pause of the whole machine a message wins against the deadline that waited for it."""
    loop = Loop()
    a, b = socket.socketpair()
    order: list[str] = []

    def read(_events: int) -> None:
        a.recv(1)
        order.append("message")
        timer.cancel()

    loop.watch(a.fileno(), read)
    timer = loop.call_at(loop.now() - 1, lambda: order.append("deadline"))
    b.send(b"x")
    loop.turn()
    assert order == ["message"]
    loop.unwatch(a.fileno())
    a.close()
    b.close()
    loop.close()


def test_a_callback_may_unwatch_another_one_of_the_same_turn() -> None:
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def first_come(fd: int, _events: int) -> None:
        called.append(fd)
        for mine, _ in pairs:
            loop.unwatch(mine.fileno())

    for mine, other in pairs:
        loop.watch(mine.fileno(), partial(first_come, mine.fileno()))
        other.send(b"x")
    loop.turn()
    assert len(called) == 1
    for pair in pairs:
        for sock in pair:
            sock.close()
    loop.close()


def test_a_deadline_set_by_a_due_one_waits_for_its_time() -> None:
    clock = ManualClock()
    loop = Loop(clock)
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_at(clock.now() + 5, lambda: seen.append("second"))

    loop.call_at(clock.now(), first)
    loop.turn()
    assert seen == ["first"]
    clock.advance(5)
    loop.turn()
    assert seen == ["first", "second"]
    loop.close()


def test_a_closed_listener_that_another_holder_keeps_makes_no_ghost_events() -> None:
    """epoll holds the description: without EPOLL_CTL_DEL the events would come for ever."""
    loop = Loop()
    listener = socket.create_server(("127.0.0.1", 0))
    other = socket.socket(fileno=os.dup(listener.fileno()))
    calls: list[int] = []
    loop.watch(listener.fileno(), calls.append)
    loop.unwatch(listener.fileno())
    listener.close()
    with socket.create_connection(other.getsockname(), timeout=5):
        loop.call_at(loop.now(), lambda: None)
        loop.turn()
    assert calls == []
    other.close()
    loop.close()


def test_signals_come_through_the_loop_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    seen: list[str] = []
    signals = Signals(loop, {signal.SIGUSR1: lambda: seen.append("usr1")})
    os.kill(os.getpid(), signal.SIGUSR1)
    while not seen:
        loop.turn()
    assert seen == ["usr1"]
    signals.close()
    assert signal.getsignal(signal.SIGUSR1) == before
    loop.close()


def test_a_callback_that_raises_takes_nothing_else_down() -> None:
    seen: list[str] = []
    loop = Loop(on_error=lambda exc: seen.append(f"error {exc}"))
    loop.call_at(loop.now() - 2, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    loop.call_at(loop.now() - 1, lambda: seen.append("next"))
    loop.turn()
    assert seen == ["error division by zero", "next"]
    loop.close()
