"""Every connection of these tests is held against the table of core/connection.py."""

import contextlib
import sys
from collections.abc import Iterator

import pytest

from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from wire.asgi_serving import Application, Serve
from wire.serving import Served, steps_outside_the_table, watched_connections

with contextlib.suppress(ImportError):
    import uvloop

    # libuv makes a pipe for signals with its first loop, and keeps it: that is no leak of the test that comes first.
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def no_step_outside_the_table() -> Iterator[None]:
    with watched_connections():
        yield
    assert steps_outside_the_table() == []


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncioLoop:
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    else:
        pytest.importorskip("uvloop")
    return AsyncioLoop()


@pytest.fixture
def serve(loop: AsyncioLoop) -> Iterator[Serve]:
    """Serves one ASGI application, once."""
    served: list[Served] = []

    def begin(app: Application) -> Served:
        served.append(Served(AsgiApp(app, loop), loop=loop))
        return served[0]

    yield begin
    for one in served:
        one.close()
