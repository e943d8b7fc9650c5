"""What a run measured, as rows and as CSV: one for each logged step and each evaluation, in the order of steps."""

import csv
import dataclasses
import io
from typing import Any

from lora_studio.events import Evaluated, RunState, StepLogged

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def rows_of(run: RunState) -> list[dict[str, Any]]:
    """What was measured, by the names of the events; `kind` is step or evaluation."""
    rows = [_row("step", item) for item in run.steps] + [_row("evaluation", item) for item in run.evaluations]
    return sorted(rows, key=lambda row: (row["step"], row["kind"] != "step"))


def to_csv(run: RunState) -> str:
    """The columns are those of the events; what a row does not have is empty."""
    rows = rows_of(run)
    first = ["kind", "step", "epoch", "loss"]
    columns = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cell, columns))
    writer.writerows([cell(row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def _row(kind: str, item: StepLogged | Evaluated) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(item).items() if value is not None}
    metrics = values.pop("metrics", {})
    return {"kind": kind, **values, **metrics}


def cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value
