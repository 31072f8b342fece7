"""Tasks that begin at once: a handler that never waits costs no turn of asyncio's loop.

Each is a real task from its first step on: what the application asks of ``current_task()`` there (timeouts, task
groups, anyio's cancel scopes), it asks of the task that goes on after a wait.
"""

import asyncio
import sys
from asyncio import Task
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from itertools import cycle
from types import MethodType
from typing import Any

Start = Callable[[Coroutine[Any, Any, None]], "Task[None]"]
"""Runs a coroutine in a task, up to its first wait, in a context of its own; in a turn of the loop."""


def starter(aio: asyncio.AbstractEventLoop) -> Start:
    """How tasks are begun on this loop.  Each begins with the context variables as they are now.

    Where the application has set a task factory, that makes them, and says itself when they begin.
    """
    base = copy_context()
    if sys.version_info >= (3, 12):
        return _eager(aio, base)
    step_type = _step_type(aio)
    return later(aio) if step_type is None else _eager_by_hand(aio, base, step_type)


def later(aio: asyncio.AbstractEventLoop) -> Start:
    """The same, but to begin in a turn of asyncio's loop, after the others had theirs."""
    base = copy_context()
    # Not ``context=``: factories that were written before Python 3.11 do not know it.
    return lambda coro: base.copy().run(aio.create_task, coro)


def _eager(aio: asyncio.AbstractEventLoop, base: Context) -> Start:
    if sys.version_info < (3, 12):
        raise NotImplementedError
    factory, copy, by_factory = aio.get_task_factory, base.copy, later(aio)

    def start(coro: Coroutine[Any, Any, None]) -> "Task[None]":
        if factory() is None:
            return Task(coro, loop=aio, context=copy(), eager_start=True)
        return by_factory(coro)

    return start


def _eager_by_hand(aio: asyncio.AbstractEventLoop, base: Context, step_type: type) -> Start:
    """The same for Python 3.11: a new task gives its first step to ``call_soon``, and there we take it."""
    factory, copy, call_soon, attributes = aio.get_task_factory, base.copy, aio.call_soon, aio.__dict__
    names = cycle([f"Request-{number}" for number in range(1000)])  # 3.11 would format one for each task
    by_factory = later(aio)
    first: Any = None
    where: Any = None

    def take(callback: Any, *args: Any, context: Context | None = None) -> Any:
        # The collector may come while the task is made, and whom it ends may use call_soon too, or make a task: then
        # that one begins here, and ours in the next turn.
        nonlocal first, where
        if first is None and type(callback) is step_type:
            first, where = callback, context
            return None
        return call_soon(callback, *args, context=context)

    def start(coro: Coroutine[Any, Any, None]) -> "Task[None]":
        nonlocal first
        if factory() is not None:
            return by_factory(coro)
        attributes["call_soon"] = take
        try:
            task: Task[None] = Task(coro, loop=aio, name=next(names), context=copy())
        finally:
            del attributes["call_soon"]
        step, context, first = first, where, None
        try:
            context.run(step)
        except RuntimeError:
            # It was not begun: this is a step of another task, and those of 3.11 cannot be nested.
            call_soon(step, context=context)
        return task

    return start


def _step_type(aio: asyncio.AbstractEventLoop) -> type | None:
    """The type of a task's step, or None if it has none of its own (tasks without C) or cannot be taken."""
    names = getattr(aio, "__dict__", None)
    if names is None:
        return None
    steps: list[Any] = []

    async def nothing() -> None:
        pass

    names["call_soon"] = lambda callback, *args, context=None: steps.append(callback)
    try:
        task = Task(nothing(), loop=aio)
    finally:
        del names["call_soon"]
    steps[0]()
    assert task.done()
    kind = type(steps[0])
    return None if kind is MethodType else kind
