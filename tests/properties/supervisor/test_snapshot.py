"""The state as bytes: what is written is read, by this version and by its neighbours."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.supervisor.core.snapshot import (
    SCHEMA,
    AnswerRecord,
    GenerationRecord,
    RunRecord,
    Snapshot,
    SnapshotError,
    WorkerRecord,
    decode,
    encode,
)

WORKERS = st.builds(
    WorkerRecord,
    key=st.text("0123456789abcdef", min_size=16, max_size=16),
    number=st.integers(1, 999),
    pid=st.integers(1, 1 << 22),
    slot=st.integers(0, 1023),
    state=st.sampled_from(["spawned", "accepting", "draining"]),
    since=st.floats(0, 1e9),
    deadline=st.none() | st.floats(0, 1e9),
    failure=st.text(max_size=40),
    on_trial=st.booleans(),
    lane_version=st.integers(0, 2),
    lanes=st.lists(st.text("0123456789abcdef", min_size=16, max_size=16), max_size=2),
    target=st.sampled_from(["", "0123456789abcdef"]),
)
GENERATIONS = st.builds(
    GenerationRecord,
    release=st.just({"id": "r1"}),
    settings=st.just(0),
    born=st.floats(0, 1e9),
    workers=st.lists(WORKERS, max_size=3),
    lane=st.sampled_from(["", "0123456789abcdef"]),
    lane_ended=st.booleans(),
    lost=st.integers(0, 9),
    dead=st.dictionaries(st.sampled_from(["REQUESTS", "BYTES_IN"]), st.integers(0, 1 << 62)),
)
SNAPSHOTS = st.builds(
    Snapshot,
    name=st.text(min_size=1, max_size=20),
    accepts=st.booleans(),
    generations=st.lists(GENERATIONS, max_size=3),
    answers=st.lists(st.builds(AnswerRecord, id=st.text(min_size=1), command=st.just("upgrade")), max_size=2),
    settings=st.just([{"service": {"name": "shop"}}]),
)


@given(SNAPSHOTS)
def test_what_is_written_is_read(snapshot: Snapshot) -> None:
    assert decode(encode(snapshot)) == snapshot
    # The next version's defaults are not ours.
    assert json.loads(encode(snapshot))["schema"] == SCHEMA


def test_what_a_newer_version_adds_is_ignored_and_what_an_older_one_lacks_has_a_default() -> None:
    generation = '{"release": {"id": "r1"}, "settings": 0, "born": 1.0, "x": 1}'
    text = f'{{"name": "shop", "mood": "good", "generations": [{generation}]}}'
    snapshot = decode(text.encode())
    assert snapshot.generations[0].workers == [] and snapshot.runs == []


def test_who_is_too_far_away_is_refused_with_a_sentence() -> None:
    with pytest.raises(SnapshotError, match=r"quiesce 9\.0 left a state of version 9"):
        decode(json.dumps({"name": "x", "schema": 9, "oldest": SCHEMA + 1, "version": "9.0"}).encode())
    # A newer one that says that we understand it is understood.
    assert (
        decode(json.dumps({"name": "x", "schema": 9, "oldest": SCHEMA, "version": "9.0"}).encode()).schema
        == 9
    )


@given(st.binary(max_size=200))
def test_nonsense_is_an_error_of_ours(data: bytes) -> None:
    try:
        decode(data)
    except SnapshotError:
        pass


def test_the_state_that_0_1_0_wrote() -> None:
    """Stored bytes: never edited.  The next version must go on from here, or its `reexec` loses a service."""
    stored = (
        b'{"name":"shop","schema":1,"oldest":1,"version":"0.1.0","accepts":true,"settings":[{}],"wanted":1,"serving":0,'
        b'"generations":[{"release":{"id":"r1","label":"1","path":"/srv/1","python":"/usr/bin/python3","app":"shop",'
        b'"app_dir":"/srv/1","interface":"auto"},"settings":0,"born":10.5,"workers":[{"key":"00112233445566ff",'
        b'"number":1,"pid":77,"slot":0,"state":"accepting","since":11.0,"accepting_since":11.5,"threads":8,'
        b'"interface":"wsgi","on_trial":false}],"dead":{"REQUESTS":7}}],"runs":[{"uid":"aa","command":"upgrade",'
        b'"new":0,"old":null,"state":"baking","settings":0,"wanted":1,"bake_s":10.0,"max_error_rate":0.05,'
        b'"bake_until":21.0,"requests":["u1"]}],"answers":[{"id":"u1","command":"upgrade"}]}'
    )
    snapshot = decode(stored)
    worker = snapshot.generations[0].workers[0]
    assert (worker.lane_version, worker.lanes, worker.target) == (0, [], ""), "it knew no lanes"
    assert snapshot.generations[0].lane == ""
    assert (worker.key, worker.accepting_since, worker.on_trial) == ("00112233445566ff", 11.5, False)
    assert snapshot.runs[0] == RunRecord(
        uid="aa", command="upgrade", new=0, old=None, state="baking", settings=0, wanted=1, bake_s=10.0,
        max_error_rate=0.05, bake_until=21.0, requests=["u1"],
    )  # fmt: skip
    assert decode(encode(snapshot)) == snapshot
