"""What came out of a group of runs: its runs from best to worst by a metric, with the values that were tried."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_studio.config.settings import settings
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.groups import RISING
from lora_studio.jobs.kinds import STATES
from lora_studio.runs.summary import SHARES, Overview

METRICS: Mapping[str, str] = {
    "best_loss": "Lowest validation loss",
    "eval_loss": "Final validation loss",
    "loss": "Training loss",
    "seconds": "Time (seconds)",
}
"""What every run may have, in the order of the choice; an evaluation's own metrics come after the losses."""
Member = tuple[Overview, RunState]
"""A run of a group in numbers, and its state."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A run of a group with its values by path; `value` is the metric, None where it has none yet."""

    run: Overview
    state: RunState
    values: Mapping[str, object]
    value: float | None
    best: bool = False


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A group by one metric: the best run first, those without a value last. `paths` are the settings that were tried,
    `metrics` the names that can be chosen from."""

    id: str
    name: str
    paths: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    rows: tuple[GroupRow, ...]
    stop_weak: bool

    @property
    def best(self) -> GroupRow | None:
        """The best run so far."""
        return next((row for row in self.rows if row.best), None)

    @property
    def usable(self) -> list[GroupRow]:
        """The runs with a measured value that ended with an adapter or a checkpoint, best first."""
        return [
            row for row in self.rows if row.value is not None and (row.run.state == "done" or row.state.checkpoints)
        ]

    @property
    def open(self) -> list[GroupRow]:
        """The runs that work or wait."""
        return [row for row in self.rows if not row.state.final]

    @property
    def in_words(self) -> str:
        """How many runs are in which state: 3 finished, 1 running."""
        counts = Counter(row.run.state for row in self.rows)
        return ", ".join(f"{counts[state]} {words.lower()}" for state, words in STATES.items() if counts[state])


def metric_title(name: str) -> str:
    """A metric as a label."""
    words = name.replace("_", " ")
    return METRICS.get(name) or f"Final {'F1' if name == 'f1' else words}"


def title_of(path: str) -> str:
    """A setting's title."""
    return next((setting.title for setting in settings() if setting.path == path), path)


def result_of(members: Sequence[Member], metric: str = "") -> GroupResult:
    """A group by a metric; "" for that by which it is told which runs are weak, or the first that was measured."""
    group = members[0][0].group
    assert group is not None
    measured = {run.id: _values(run, state) for run, state in members}
    own = dict.fromkeys(name for _, state in members for item in state.evaluations[-1:] for name in item.metrics)
    names = [*list(METRICS)[:3], *own, *list(METRICS)[3:]]
    available = tuple(name for name in names if any(measured[run.id].get(name) is not None for run, _ in members))
    wanted = metric or ("" if group.metric == "loss" else group.metric)
    chosen = wanted if wanted in available else (available or (next(iter(METRICS)),))[0]
    rising = chosen in RISING

    def rank(row: GroupRow) -> tuple[bool, float]:
        return row.value is None, (-row.value if rising else row.value) if row.value is not None else 0.0

    rows = [
        GroupRow(run, state, run.group.values if run.group else {}, measured[run.id].get(chosen))
        for run, state in members
    ]
    rows.sort(key=rank)
    if rows and rows[0].value is not None:
        first = rows[0]
        rows[0] = GroupRow(first.run, first.state, first.values, first.value, best=True)
    paths = tuple(dict.fromkeys(path for row in rows for path in row.values))
    return GroupResult(group.id, group.name, paths, chosen, available, tuple(rows), group.stop_weak)


def _values(run: Overview, state: RunState) -> Mapping[str, float | None]:
    last = state.evaluations[-1].metrics if state.evaluations else {}
    values = {"best_loss": run.best_loss, "eval_loss": run.eval_loss, "loss": run.loss, "seconds": run.seconds, **last}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 and is told in percent."""
    return metric in SHARES


def groups_of(members: Iterable[Member]) -> dict[str, list[Member]]:
    """The groups among runs, by id, in the order in which they come."""
    groups: dict[str, list[Member]] = {}
    for run, state in members:
        if run.group is not None:
            groups.setdefault(run.group.id, []).append((run, state))
    return groups


def meant_group(groups: Mapping[str, Sequence[Member]], name: str) -> str:
    """The id of the group that a person means by its id, the start of it, its name or "last". Raises `StudioError`."""
    if name == "last" and groups:
        return next(iter(groups))
    exact = [group for group in groups if group == name]
    named = [group for group, members in groups.items() if _name(members) == name]
    started = [group for group in groups if group.startswith(name)]
    found = exact or named or started
    if len(found) == 1:
        return found[0]
    if found:
        raise StudioError(f"{name!r} means several groups: {', '.join(found)}.", "Give the whole id.")
    raise StudioError(f"There is no group {name!r}.", "`python -m lora_studio groups` lists them.")


def _name(members: Sequence[Member]) -> str:
    group = members[0][0].group
    return group.name if group else ""
