"""One loop with its engine, and whoever turns it."""

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from quiesce.shared.errors import QuiesceError
from quiesce.worker.daemon import Daemon
from quiesce.worker.embedded.panic import panic
from quiesce.worker.loops.own_loop import OwnLoop
from quiesce.worker.net.lane_writer import Target

if TYPE_CHECKING:
    from quiesce.worker.embedded.daemon import Daemon as Owner

T = TypeVar("T")
LISTENER = "listener"
_stacks = threading.Lock()


class Engine(Daemon):
    """One that its seat can be found by: a connection that kept it, too, would be larger."""

    __slots__ = ("seat",)

    seat: "Seat"


class Seat:
    """Owns its loop and its engine, and its thread if it was started with one."""

    def __init__(self, owner: "Owner", loop: OwnLoop, engine: Engine, stack_size: int = 0) -> None:
        """``stack_size``: of the thread, in bytes; 0: the system's."""
        self.owner = owner
        self._stack_size = stack_size
        self.loop = loop
        self.engine = engine
        engine.seat = self
        self.watches_any = type(loop).can_watch is OwnLoop.can_watch  # a descriptor of any number
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._over = False  # nobody turns the loop any more
        self._stopped = False

    def start(
        self, name: str, first: Callable[[], None] = lambda: None, last: Callable[[], None] = lambda: None
    ) -> None:
        """Turn the loop in a thread of its own.  ``first`` and ``last`` are called there, around it.

        Raises:
            RuntimeError: The system has no thread for us.
        """
        self._thread = threading.Thread(target=self._run, args=(first, last), name=name, daemon=True)
        try:
            self._start_thread(self._thread)
        except RuntimeError:
            self._thread = None  # nobody is to wait for it
            raise

    def _start_thread(self, thread: threading.Thread) -> None:
        if not self._stack_size:
            thread.start()
            return
        with _stacks:  # the size is the process's: it is ours for the moment of the start
            before = threading.stack_size(self._stack_size)
            try:
                thread.start()
            finally:
                threading.stack_size(before)

    def _run(self, first: Callable[[], None], last: Callable[[], None]) -> None:
        try:
            self.engine.enter()
            first()
            self.loop.run()
            self._release()
            last()
        except BaseException as exc:  # the clients of this loop would wait for ever
            panic(f"a serving thread cannot go on: {type(exc).__name__}: {exc}")

    def _release(self) -> None:
        with self._lock:
            self._over = True
        self.loop.finish()
        self.loop.close()

    @property
    def is_here(self) -> bool:
        """Is this the loop's thread, or is there none?"""
        return self._thread is None or threading.current_thread() is self._thread

    def post(self, what: Callable[[], None]) -> None:
        """Have it done in the loop's thread, soon.  From any thread; does nothing once the loop is closed."""
        with self._lock:
            if not self._over:
                self.loop.call_soon_threadsafe(what)

    def do(self, what: Callable[[], T]) -> T:
        """Have it done in the loop's thread, and wait for what it returns or raises.

        Without a thread this one is the loop's: whoever turns the loop asks.
        """
        if self.is_here:
            return what()
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                results.append(what())
            except BaseException as exc:
                errors.append(exc)
            done.set()

        with self._lock:
            over = self._over
            if not over:
                self.loop.call_soon_threadsafe(call)
        if over:
            call()
        done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def listen(self, sock: socket.socket) -> None:
        """Accept on it, by a descriptor of our own."""
        ours = sock.dup()
        ours.setblocking(False)  # Python's copy has the timeout of the original, and would wait by itself
        self.engine.add_listener(LISTENER, ours)
        self.engine.accept()

    def quiesce(self) -> None:
        """When this returns nobody here accepts, and our descriptor of the listener is closed."""
        self.engine.quiesce()
        self.engine.remove_listener(LISTENER)

    def hand_over(self, lane: socket.socket | None) -> None:
        """Move all that can move now, and each other one as it falls idle; None: keep them."""
        if not self._stopped:
            self.engine.hand_over_to(Target("", lane.dup()) if lane is not None else None)
            self.engine.move_now()

    def receive(self, name: str, lane: socket.socket) -> None:
        """Take connections from it as well, by a descriptor of our own."""
        self.engine.add_lane(name, lane.dup())

    def stop(self) -> None:
        """Cut everything, have the thread leave."""
        self._stopped = True
        self.engine.close()
        self.loop.stop()

    def drain(self, timeout_s: float) -> None:
        """Let everybody finish; see the engine's."""
        if not self._stopped:  # of a client that has just gone
            self.engine.drain(timeout_s, lambda: None)

    def stay(self) -> None:
        """A drain is taken back, where there is no listener."""
        if not self._stopped:
            self.engine.accept()

    def close(self) -> None:
        """Wait for the thread, which releases the loop; or release it here.  Not from the loop's own thread."""
        if self._thread is None:
            self._release()
        elif threading.current_thread() is self._thread:
            raise QuiesceError(
                "a handler cannot stop the daemon that calls it: its thread would wait for itself"
            )
        else:
            self._thread.join()
