"""ASGI lifespan: the application's own start and end, in the worker's.

Source: ASGI specification, lifespan protocol 2.0.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from quiesce.worker.apps.loader import LoadError, one_line
from quiesce.worker.supervisor_link import complain


class Lifespan:
    """Runs the application once with a ``lifespan`` scope, from startup to shutdown.

    ``state`` is what the application put there at startup; every request gets a shallow copy.  ``is_supported``
    is False when it raised, or returned, before it had answered startup: then it is served without.
    """

    def __init__(self, app: Any, aio: asyncio.AbstractEventLoop) -> None:
        self.state: dict[str, Any] = {}
        self.is_supported = True
        self._app, self._aio = app, aio
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._started: Callable[[LoadError | None], None] | None = None
        self._ended: Callable[[], None] | None = None

    def startup(self, done: Callable[[LoadError | None], None]) -> None:
        """Start; call ``done`` with None or with why the application may not serve.  In a turn of the loop."""
        self._started = done
        self._inbox.put_nowait({"type": "lifespan.startup"})
        self._task = self._aio.create_task(self._run())

    def shutdown(self, done: Callable[[], None]) -> None:
        """Tell the application that it ends; call ``done`` when it has ended, or at once if it does not care."""
        if self._task is None or self._task.done():
            done()
            return
        self._ended = done
        self._inbox.put_nowait({"type": "lifespan.shutdown"})

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._inbox.get, self._send)
        except asyncio.CancelledError:
            self._started = self._ended = None  # the loop is being closed: nobody waits for it any more
        except BaseException as exc:
            self._raised(exc)
        self._settle_start(None, supported=False)
        self._settle_end()

    def _raised(self, exc: BaseException) -> None:
        if self._started is not None:
            complain(f"the application has no lifespan ({one_line(exc)}); it is served without")
        elif self._ended is not None or self.is_supported:
            # Starlette raises again what it has told us with startup.failed; that was said.
            sys.excepthook(type(exc), exc, exc.__traceback__)

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete" and self._started is not None:
            self._settle_start(None, supported=True)
        elif kind == "lifespan.startup.failed" and self._started is not None:
            self._settle_start(_failure(str(message.get("message", ""))), supported=False)
        elif kind == "lifespan.shutdown.complete" and self._ended is not None:
            self._settle_end()
        elif kind == "lifespan.shutdown.failed" and self._ended is not None:
            complain(f"lifespan shutdown failed: {message.get('message', '')}")
            self._settle_end()
        else:
            raise RuntimeError(f"ASGI: {kind!r} is not expected in a lifespan now")

    def _settle_start(self, failure: LoadError | None, *, supported: bool) -> None:
        done, self._started = self._started, None
        if done is not None:
            self.is_supported = supported
            done(failure)

    def _settle_end(self) -> None:
        done, self._ended = self._ended, None
        if done is not None:
            done()


class StartupFailed(LoadError):
    """``lifespan.startup.failed``; ``detail`` is the application's message, often a traceback."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


def _failure(message: str) -> StartupFailed:
    lines = [line for line in message.splitlines() if line.strip()]
    # Frameworks send a whole traceback; its last line is the exception.
    return StartupFailed(
        f"lifespan startup failed: {lines[-1].strip()[:400] if lines else 'no reason given'}", message
    )
