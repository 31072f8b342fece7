"""Draws a state table as a Mermaid diagram, and writes docs/state-machines.md.

python tests/architecture/drawings.py         writes the file again after a table has changed
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from quiesce.supervisor.core import lifecycle, rollout

FILE = Path(__file__).resolve().parents[2] / "docs/state-machines.md"

#: Rows that every live worker has; as arrows they would hide the rest.
_EVERYWHERE = (lifecycle.Event.EXITED,)

_PAGE = """\
# State machines

Drawn from the tables by `python tests/architecture/drawings.py`; a test compares. An arrow is an event; below the line
stands what is then done, in order. Events that change nothing are left out.

## A rollout

`supervisor/core/rollout.py`: one change of release.

{rollout}

## A worker

`supervisor/core/lifecycle.py`: one worker's life, as the supervisor sees it. From every state,
*exited* leads to REAPED.

{lifecycle}
"""

Table = Mapping[Any, Mapping[Any, tuple[Any, tuple[Any, ...]]]]


def diagram(table: Table, left_out: tuple[Enum, ...] = ()) -> str:
    """A Mermaid state diagram; events with the same effect share an arrow."""
    first = next(iter(table))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    for state, row in table.items():
        arrows: dict[tuple[Any, tuple[Any, ...]], list[str]] = {}
        for event, (target, actions) in row.items():
            drawn = event not in left_out or len(_moves(state, row)) == 1
            if drawn and (target is not state or actions):
                arrows.setdefault((target, actions), []).append(event.value)
        for (target, actions), events in arrows.items():
            done = "<br/>—<br/>" + ", ".join(action.value for action in actions) if actions else ""
            lines.append(f"    {state.name} --> {target.name}: {' / '.join(events)}{done}")
        if not row:
            lines.append(f"    {state.name} --> [*]")
    return "\n".join([*lines, "```"])


def _moves(state: Any, row: Mapping[Any, tuple[Any, Any]]) -> list[Any]:
    """The events that lead out of this state."""
    return [event for event, (target, _) in row.items() if target is not state]


def page() -> str:
    """The whole of docs/state-machines.md."""
    return _PAGE.format(
        rollout=diagram(rollout.TRANSITIONS), lifecycle=diagram(lifecycle.TRANSITIONS, _EVERYWHERE)
    )


if __name__ == "__main__":
    FILE.write_text(page())
