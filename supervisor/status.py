"""The status document: what runs, as `quiesce status --json` prints it."""

import os
import time
from typing import Any

import quiesce
from quiesce.shared.scoreboard import Field
from quiesce.supervisor.core.lifecycle import State
from quiesce.supervisor.core.rollout import phase
from quiesce.supervisor.crew import Generation
from quiesce.supervisor.render import plural
from quiesce.supervisor.service import Service
from quiesce.supervisor.watching import Stopping
from quiesce.supervisor.worker_link import Worker


def document(service: Service) -> dict[str, Any]:
    """Everything that design 7 promises of `status --json`."""
    return {
        "name": service.settings.service.name,
        "crash_safe": service.store.complete,
        "crash_safe_reason": service.store.reason,
        "keeper": service.keeper(),
        "unready": service.crew.scoreboard.unready,
        "held": service.upkeep.held,
        "supervisor": {"pid": os.getpid(), "version": quiesce.__version__, "since": service.process_since},
        "since": service.started_at,
        "listeners": [
            {"name": listener.name, "address": str(listener.address)} for listener in service.listeners
        ],
        "release": service.serving.release.id if service.serving is not None else None,
        "rollout": _rollout(service),
        "releases": [_release(service, generation) for generation in service.crew.generations],
        "workers": [_worker(service, worker) for worker in service.crew],
        "counters": service.crew.totals(),
        "wanted_workers": service.upkeep.wanted,
        "notices": list(service.notices),
        "log": service.log_file,
    }


def _rollout(service: Service) -> dict[str, Any]:
    run = service.run or next(iter(service.runs), None)
    if run is None:
        return {"state": "idle"}
    return {
        "state": phase(run.state),
        "release": run.release.id,
        "from": run.old.release.id if run.old is not None else None,
        "since": _wall(service, run.state_since),
        "text": run.reason,
    }


def _release(service: Service, generation: Generation) -> dict[str, Any]:
    release = generation.release
    return {
        "id": release.id,
        "label": release.label,
        "path": release.path,
        "state": _standing(service, generation),
        "app": release.app,
        "python": release.python,
        "lane": generation.lane.depth() if generation.lane is not None else 0,
    }


def _standing(service: Service, generation: Generation) -> str:
    run = service.run
    if run is not None and run.new is generation:
        return phase(run.state)
    if generation is service.serving:
        hushed = run is not None and run.old is generation and run.state.value in ("hushing", "baking")
        if hushed or service.upkeep.held:
            return "quiesced"
        return "serving" if generation.accepting() else "down"
    return "draining"


def _worker(service: Service, worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "pid": worker.pid,
        "release": worker.release_id,
        "state": worker.state.value,
        "connections": {
            "open": worker.counter(Field.CONN_OPEN),
            "idle": worker.counter(Field.CONN_IDLE),
            "busy": worker.counter(Field.CONN_BUSY),
            "tls": worker.counter(Field.CONN_TLS),
            "upgraded": worker.counter(Field.CONN_UPGRADED),
            "staying": {
                "body": worker.counter(Field.CONN_BODY),
                "closing": worker.counter(Field.CONN_CLOSING),
                "suspended": worker.counter(Field.CONN_SUSPENDED),
            },
        },
        "handed_out": worker.counter(Field.HANDED_OUT),
        "taken_in": worker.counter(Field.HANDED_IN),
        "requests": worker.counter(Field.REQUESTS),
        "restarts": worker.restarts,
        "since": _wall(service, worker.since),
    }


def _wall(service: Service, monotonic: float) -> float:
    return round(time.time() - (service.loop.now() - monotonic), 3)


def one_line(service: Service) -> str:
    """The truth, for STATUS= and the log: ``r42: 4/4 accepting, r41: 1 draining (17 connections)``."""
    if service.stopping is not Stopping.NO:
        return f"stopping: {service.waiting_for()} left"
    parts = []
    for generation in reversed(service.crew.generations):
        accepting = generation.accepting()
        if generation is service.serving or accepting:
            parts.append(f"{generation.release.id}: {accepting}/{service.upkeep.wanted} accepting")
        elif generation.workers:
            states = {worker.state for worker in generation}
            word = "draining" if states & {State.DRAINING, State.LEAVING} else next(iter(states)).value
            count = generation.open_connections()
            parts.append(
                f"{generation.release.id}: {len(generation.workers)} {word} ({plural(count, 'connection')})"
            )
    return ", ".join(parts) or "no worker"
