"""The drawings of the state machines show the tables as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from quiesce.supervisor.core import lifecycle, rollout


def _drawings() -> ModuleType:
    # Loaded by its path: with --import-mode=importlib a test's folder is not on sys.path.
    path = Path(__file__).with_name("drawings.py")
    spec = importlib.util.spec_from_file_location("drawings", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawings = _drawings()


def test_the_page_is_what_the_tables_say() -> None:
    text = drawings.FILE.read_text()
    assert text == drawings.page(), "run `python tests/architecture/drawings.py`"


def test_every_state_is_in_its_drawing() -> None:
    for table in (lifecycle.TRANSITIONS, rollout.TRANSITIONS):
        picture = drawings.diagram(table)
        assert all(f" {state.name}" in picture for state in table)


def test_a_row_that_changes_moves_an_arrow() -> None:
    changed = dict(rollout.TRANSITIONS)
    changed[rollout.State.BAKING] = {rollout.Event.BAKE_OVER: (rollout.State.DONE, ())}
    assert drawings.diagram(changed) != drawings.diagram(rollout.TRANSITIONS)
