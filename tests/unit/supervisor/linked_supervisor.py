"""A program below a keeper that has a KeeperLink and nothing else: tells a test what happens to it.

It connects to the test's socket (its first argument) and writes one line of JSON for each change.
SIGTERM: it leaves with status 4 and says so.  A second argument is the watchdog's time.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

from quiesce.shared.logs import Log
from quiesce.supervisor.activation import take_listen_fds
from quiesce.supervisor.fdstore import FdStore
from quiesce.supervisor.keeper_link import KeeperLink
from quiesce.supervisor.loop import Loop
from quiesce.supervisor.manager import Manager
from quiesce.supervisor.notify import Notifier
from quiesce.supervisor.signals import Signals


def main() -> None:
    inherited = take_listen_fds(os.environ, os.getpid())
    manager = Manager.take(os.environ)
    loop = Loop()
    notifier = Notifier(manager.notify_socket, loop)
    log = Log()
    store = FdStore(loop, notifier, log, manager.store_limit)
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(sys.argv[1])
    sockets = [(name, fd) for name, fd in inherited if name == "web"]
    stored = [(name, fd) for name, fd in inherited if name != "web"]
    for name, fd in stored:
        store.found(name, fd)
    if not stored:
        for number in range(20):  # more than the queue of a socket holds
            fd = os.memfd_create("state")
            os.write(fd, b"%d of %d" % (number, os.getpid()))
            store.put(f"n{number}", fd)
    assert manager.keeper is not None

    def tell(**more: Any) -> None:
        doc = {"pid": os.getpid(), "keeper": link.pid, "env": link.environment(), **more}
        conn.sendall(json.dumps(doc).encode() + b"\n")

    between: list[Any] = []  # what was said of the store while there was no keeper

    def changed() -> None:
        if link.pid is not None:
            tell(event="keeper", complete=store.complete, between=between)
        else:
            between[:] = store.complete, store.reason

    def leave() -> None:
        notifier.stopping()
        link.stop_watching()
        notifier.exit_status(4)
        loop.stop()

    argv = [sys.executable, *sys.argv]
    link = KeeperLink(loop, log, store, notifier, argv, manager.keeper, float(sys.argv[2]), changed, sockets)
    signals = Signals(loop, {signal.SIGTERM: leave, signal.SIGUSR1: lambda: tell(event="usr1")})

    def measured(works: bool) -> None:
        names = [name for name, _ in store.kept()]
        contents = [os.pread(fd, 99, 0).decode() for _, fd in store.kept()]
        notifier.ready()
        more = {"names": names, "contents": contents, "sockets": len(sockets)}
        store.sync(lambda done: tell(event="hello", works=done, **more))

    def beat() -> None:
        notifier.watchdog()
        loop.call_at(loop.now() + 0.1, beat)

    store.measure(16, measured)
    beat()
    loop.run()
    signals.close()
    link.close()
    os._exit(4)


if __name__ == "__main__":
    main()
