"""SIGKILL for the supervisor at an exact point: just before or just after it writes its state down.

Python imports this at start because `fatal.Trigger` puts its folder on PYTHONPATH.  It does nothing in a
process that never imports the state store, which is every worker.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys

_MODULE = "quiesce.supervisor.state_store"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module as everybody does, and puts a fuse into it."""

    def find_spec(self, name, path=None, target=None):
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _arm(module.StateStore)

            spec.loader.exec_module = exec_module
        return spec


def _arm(store):
    write = store.write
    trigger = os.environ["QUIESCE_TEST_FATAL"]
    count = 0

    def fatal_write(self, payload):
        nonlocal count
        when, left = _read(trigger)
        count = count + 1 if left else 0
        if left and count >= left and when == "before":
            _die(trigger)
        write(self, payload)
        if left and count >= left:
            _die(trigger)

    store.write = fatal_write


def _read(trigger):
    try:
        with open(trigger) as file:
            when, left = file.read().split()
            return when, int(left)
    except (OSError, ValueError):
        return "", 0


def _die(trigger):
    os.unlink(trigger)  # once
    os.kill(os.getpid(), signal.SIGKILL)


if "QUIESCE_TEST_FATAL" in os.environ:
    sys.meta_path.insert(0, _Finder())
