"""What the events of a run come to, kept beside them, so that a list of a thousand runs need not read every line again.

A memory aid and never the truth: it holds for the events of one size and time, and where it is missing, damaged or made
by another version, the events are read. What only a run's own view needs (curves, answers) is left out of it.
"""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from lora_studio import __version__
from lora_studio.events import (
    CheckpointSaved,
    DataPrepared,
    Evaluated,
    MemoryEstimated,
    ModelLoaded,
    RowsRead,
    RunState,
    StepLogged,
    of_right_kinds,
    reason_named,
)
from lora_studio.workspace import JobFolder

Key = tuple[int, int]
"""Size and time of change (nanoseconds) of the events."""

_ONE: dict[str, type] = {
    "data": DataPrepared,
    "test_rows": RowsRead,
    "model": ModelLoaded,
    "memory": MemoryEstimated,
}
_MANY: dict[str, type] = {"steps": StepLogged, "evaluations": Evaluated, "checkpoints": CheckpointSaved}
_FIELDS = {
    kind.__name__: [item.name for item in dataclasses.fields(kind)] for kind in (*_ONE.values(), *_MANY.values())
}
_MADE_BY = [__version__, [item.name for item in dataclasses.fields(RunState)], _FIELDS]


def brief(state: RunState) -> RunState:
    """The same without what grows with every step: of the steps only the last one is left, of the answers none."""
    return dataclasses.replace(state, steps=state.steps[-1:], questions=None, answers=[])


def read_folded(folder: JobFolder, key: Key) -> RunState | None:
    """The run's brief state as of events of that size and time; None where that is not known."""
    try:
        kept = json.loads(folder.folded.read_text(encoding="utf-8"))
        return _state(kept["state"]) if (kept["made_by"], kept["key"]) == (_MADE_BY, list(key)) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def keep_folded(folder: JobFolder, state: RunState, key: Key) -> None:
    """Writes the run's brief state down. Where that is not possible (disk full, run gone), nothing is lost but time."""
    kept = {"made_by": _MADE_BY, "key": key, "state": dataclasses.asdict(brief(state))}
    temporary = folder.folded.with_name(f"{folder.folded.name}.{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(temporary, folder.folded)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _state(values: Mapping[str, Any]) -> RunState:
    one = {name: kind(**values[name]) for name, kind in _ONE.items() if values[name] is not None}
    many = {name: [kind(**item) for item in values[name]] for name, kind in _MANY.items()}
    pauses = [(begin, end) for begin, end in values["pauses"]]
    reason = reason_named(values["reason"])
    state = RunState(**{**values, **one, **many, "pauses": pauses, "reason": reason})
    if not all(map(of_right_kinds, (state, *one.values(), *(item for items in many.values() for item in items)))):
        raise ValueError("values of wrong kinds")
    return state
