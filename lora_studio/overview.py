"""A run on one line, as tables of runs show it: what it is, how far it is, what it measured. Also search and order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.labels import Labels, read_labels
from lora_studio.workspace import RunFolder


@dataclass(frozen=True, slots=True)
class Overview:
    """The numbers of a run that are compared with those of others. `result` is what complete.json holds.

    `maker` is the visitor who started it, where visitors are told apart; `damaged` are its files that can't be read.
    """

    id: str
    title: str
    state: str
    model: str
    data: str
    labels: Labels
    created: float
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    seconds: float | None = None
    maker: str = ""
    damaged: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As one JSON object, by the names that a script reads."""
        return {
            "run": self.id,
            "title": self.title,
            "state": self.state,
            "model": self.model,
            "data": self.data,
            "tags": list(self.labels.tags),
            "note": self.labels.note,
            "created": self.created,
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": self.loss,
            "eval_loss": self.eval_loss,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "difference": self.result.get("difference"),
            "message": self.result.get("message", ""),
            "damaged": list(self.damaged),
        }


def overview(run: RunFolder, state: RunState) -> Overview:
    """Reads the run's small files; what it measures comes from its state."""
    facts = run.read_facts()
    best = state.best
    return Overview(
        id=run.id,
        title=state.title or run.id,
        state=state.state,
        model=str(facts.get("model", "")),
        data=Path(str(facts.get("data", ""))).name,
        labels=_labels(run),
        created=state.created,
        step=state.step,
        total_steps=state.total_steps,
        loss=state.steps[-1].loss if state.steps else None,
        eval_loss=state.evaluations[-1].loss if state.evaluations else None,
        best_loss=best.loss if best else None,
        best_step=best.step if best else None,
        seconds=state.seconds if state.final else None,
        maker=str(facts.get("maker", "")),
        damaged=tuple(run.damaged()) if state.final or facts.get("damaged") else (),
        result=run.read_result() if state.final else {},
    )


def _labels(run: RunFolder) -> Labels:
    """A file that can't be read says so where its note would stand."""
    try:
        return read_labels(run)
    except StudioError as error:
        return Labels(note=error.message)


def matching(runs: Sequence[Overview], query: str) -> list[Overview]:
    """The runs in which every word of the query is found: in title, id, state, model, data, maker, tags or note."""
    words = query.casefold().split()
    if not words:
        return list(runs)
    return [run for run in runs if all(word in text for text in [_text(run)] for word in words)]


def _text(run: Overview) -> str:
    return "\n".join(
        (run.title, run.id, run.state, run.model, run.data, run.maker, *run.labels.tags, run.labels.note)
    ).casefold()
