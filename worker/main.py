"""A worker process from its first message to its exit: the one place that knows every part."""

import faulthandler
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from quiesce.shared import messages as msg
from quiesce.shared.channel import Channel
from quiesce.shared.errors import PeerClosed, ProtocolError
from quiesce.shared.exitcodes import WorkerExit
from quiesce.shared.fdpass import close_all
from quiesce.worker import fork_hooks, isolation, output
from quiesce.worker.apps.loader import LoadError, interface_of, load, one_line, own_frames_off
from quiesce.worker.core.limits import Limits
from quiesce.worker.core.standing import State
from quiesce.worker.daemon import Daemon
from quiesce.worker.inbox import Inbox
from quiesce.worker.isolation import own_imports
from quiesce.worker.orders import Orders, hello
from quiesce.worker.supervisor_link import Link, complain

if TYPE_CHECKING:
    from quiesce.worker.apps.asgi import AsgiApp
    from quiesce.worker.apps.base import App
    from quiesce.worker.loops.base import Loop

ORPHAN_IMPORT_GRACE_S = 2.0

# What may be imported after the application, by interface; isolation.py says why these are named.
_LATE = {
    "native": ("quiesce.worker.apps.native", "quiesce.worker.loops.epoll_loop"),
    "wsgi": ("quiesce.worker.apps.wsgi", "quiesce.worker.loops.epoll_loop"),
    "asgi": ("quiesce.worker.apps.asgi", "quiesce.worker.loops.asyncio_loop", "uvloop"),
}


def main(channel: int, baseline: frozenset[str], own_path: Sequence[str], app_path: Sequence[str]) -> int:
    """Serve until told to leave; return the exit status (:class:`WorkerExit`).

    Args:
        channel: Descriptor of the worker's end of the channel, close-on-exec.  Taken.
        baseline, own_path, app_path: See :func:`isolation.set_out`.
    """
    _reset_signals()
    output.set_up()
    isolation.set_out(baseline, own_path, app_path)
    link, inbox = Link(Channel(socket.socket(fileno=channel))), Inbox()
    fork_hooks.guard(lambda: [link.fileno(), *inbox.descriptors()])
    link.say(hello(None, State.STARTING))
    try:
        configure = _wait_for_configure(link, inbox)
    except PeerClosed:
        return WorkerExit.OK
    except ProtocolError as exc:
        return _failed(link, WorkerExit.PROTOCOL, f"the supervisor's messages make no sense: {exc}")
    if configure is None:
        return WorkerExit.OK
    try:
        return _serve(link, inbox, configure)
    except Exception as exc:
        faulthandler.cancel_dump_traceback_later()
        reason = f"worker {configure.worker} met a bug of quiesce: {one_line(exc)}; please report it"
        return _failed(link, WorkerExit.SOFTWARE, reason, _traceback(exc, whole=True))


def _reset_signals() -> None:
    """As after a plain exec, whatever the stub before us had."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
    ):
        signal.signal(number, signal.SIG_DFL)


def _wait_for_configure(link: Link, inbox: Inbox) -> msg.Configure | None:
    """Hold what comes until we are told what to serve; None: we are told to leave.

    Raises:
        PeerClosed: Nobody is there any more.
        ProtocolError: Something was lost or is wrong.
    """
    while True:
        incoming = link.wait()
        message = incoming.message
        if isinstance(message, msg.Configure):
            close_all(incoming.fds)
            return message
        if isinstance(message, msg.Shutdown):
            return None
        if isinstance(message, msg.Identify):
            link.say(hello(None, State.STARTING), re=incoming.seq)
        elif not inbox.keep(incoming):
            close_all(incoming.fds)
            complain(f"message {type(message).__name__!r} came before `configure`; it is skipped")


def _serve(link: Link, inbox: Inbox, conf: msg.Configure) -> int:
    """Load the application, turn the loop until it is over."""
    began = time.monotonic()
    if conf.start_timeout_s > 0:
        # If this start hangs, its output is to show where, before the supervisor ends it.
        faulthandler.dump_traceback_later(0.9 * conf.start_timeout_s)
        # ... and if no supervisor lives to do that, nobody else would: this thread is in the import and
        # cannot see that the channel has ended.  SIGALRM's default action ends us.
        signal.setitimer(signal.ITIMER_REAL, 2 * conf.start_timeout_s + ORPHAN_IMPORT_GRACE_S)
    ends = began + 2 * conf.start_timeout_s + ORPHAN_IMPORT_GRACE_S
    try:
        app, loop = _application(conf)
    except LoadError as exc:
        return _app_failed(link, conf, exc)
    worker: list[Orders] = []
    daemon = Daemon(
        app,
        loop,
        limits=_limits(conf.limits),
        threads=conf.threads,
        slot=inbox.slot,
        neighbours=inbox.neighbours,
        before_accept=lambda: worker[0].pump(),
        ready_path=conf.ready_path,
        unready=inbox.is_unready,
    )
    for name in list(inbox.listeners):
        daemon.add_listener(name, inbox.listeners.pop(name))
    ending = cast("AsgiApp", app) if app.interface == "asgi" else None
    orders = Orders(link, inbox, daemon, loop, conf, ending)
    worker.append(orders)
    fork_hooks.guard(lambda: [*orders.descriptors(), *daemon.descriptors()], daemon.forked)

    def started(failure: LoadError | None) -> None:
        if failure is not None:
            orders.status = _app_failed(link, conf, failure)
            loop.stop()
            return
        if orders.state is State.LEAVING:
            return  # told to leave meanwhile; the alarm still bounds that
        faulthandler.cancel_dump_traceback_later()
        left, again = signal.getitimer(signal.ITIMER_REAL)
        if not again and abs(time.monotonic() + left - ends) < 0.5:  # else the application has set its own
            signal.setitimer(signal.ITIMER_REAL, 0)
        threads = conf.threads if app.blocking else 1
        orders.begin(msg.Ready(app.interface, time.monotonic() - began, threads))

    def start() -> None:
        if ending is None:
            started(None)
        else:
            ending.startup(started)
            orders.attend()

    loop.call_soon_threadsafe(start)  # in a turn of the loop: ready means that it turns
    loop.run()
    if not fork_hooks.is_worker():
        os._exit(0)  # a child that the application forked and let return to us: it is no worker
    _bound_exit(conf, orders.status)
    if ending is not None:
        ending.close()
    return orders.status


def _limits(given: Mapping[str, float]) -> Limits:
    """The limits that this version knows; a newer supervisor may name others."""
    defaults = Limits()._asdict()
    return Limits(**(defaults | {k: type(defaults[k])(v) for k, v in given.items() if k in defaults}))


def _application(conf: msg.Configure) -> "tuple[App, Loop]":
    """Import the application and put it behind our interface.

    Raises:
        LoadError: It cannot be had, or nobody can tell what it is.
    """
    wanted = _LATE if conf.interface == "auto" else (conf.interface,)
    isolation.enter_application(conf.app_dir, [module for key in wanted for module in _LATE.get(key, ())])
    found = load(conf.app)
    interface = interface_of(found, conf.interface)
    with own_imports():
        return _adapted(found, interface, conf)


def _adapted(found: Any, interface: str, conf: msg.Configure) -> "tuple[App, Loop]":
    if interface == "asgi":
        from quiesce.worker.apps.asgi import AsgiApp
        from quiesce.worker.loops.asyncio_loop import AsyncioLoop

        asyncio_loop = AsyncioLoop()
        return AsgiApp(found, asyncio_loop), asyncio_loop
    from quiesce.worker.loops.epoll_loop import EpollLoop

    if interface == "wsgi":
        from quiesce.worker.apps.wsgi import WsgiApp

        return WsgiApp(found), EpollLoop()
    from quiesce.worker.apps.native import NativeApp

    return NativeApp(found), EpollLoop()


# -- failing --------------------------------------------------------------------------------


def _app_failed(link: Link, conf: msg.Configure, exc: LoadError) -> int:
    """Say why the application cannot be served: a sentence, and the traceback that belongs to it."""
    faulthandler.cancel_dump_traceback_later()
    detail = getattr(exc, "detail", "")  # what a lifespan said
    if exc.__cause__ is not None:
        detail = _traceback(exc.__cause__)
    _bound_exit(conf, WorkerExit.APP_FAILED)
    return _failed(link, WorkerExit.APP_FAILED, str(exc), detail)


def _failed(link: Link, status: WorkerExit, reason: str, detail: str = "") -> int:
    complain(reason, detail)
    link.say(msg.Failed(printable(reason)[:2000], bounded(printable(detail), msg.MAX_DETAIL_BYTES)))
    return status


def _traceback(exc: BaseException, *, whole: bool = False) -> str:
    """The application's part of a traceback, or the whole, as Python prints it."""
    with own_imports():
        import traceback
    tb = exc.__traceback__ if whole else own_frames_off(exc.__traceback__)
    return "".join(traceback.format_exception(type(exc), exc.with_traceback(tb), tb))


def printable(text: str) -> str:
    """Text without control characters and halves of surrogates: it goes to terminals and into JSON, where each such
    character would become six bytes."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def bounded(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8.  The end of a traceback says most, so the beginning goes."""
    data = text.encode()
    if len(data) <= limit:
        return text
    mark = "… (the beginning was cut)\n"
    return mark + data[len(data) - limit + len(mark.encode()) :].decode(errors="ignore")


# -- leaving --------------------------------------------------------------------------------


def _bound_exit(conf: msg.Configure, status: int) -> None:
    """From here on the interpreter's normal exit has ``exit_timeout`` to end: threads, atexit, logging."""
    isolation.before_exit()
    if conf.exit_timeout_s <= 0:
        return
    with own_imports():
        import threading

    def watch() -> None:
        time.sleep(conf.exit_timeout_s)
        names = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
        what = f"threads {', '.join(names)}" if names else "something at exit (atexit, a finaliser)"
        complain(f"worker {conf.worker}: {what} did not end within exit_timeout ({conf.exit_timeout_s:g} s)")
        os._exit(status)

    threading.Thread(target=watch, name="quiesce-exit", daemon=True).start()
    # Past the point where Python's threads run: the C library's does.
    faulthandler.dump_traceback_later(conf.exit_timeout_s + 1.0, exit=True)
