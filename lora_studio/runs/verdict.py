"""What became of a run in one line, with the one change that helps, and which of several runs is the best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.events import Reason, RunState
from lora_studio.runs.health import Diagnosis
from lora_studio.runs.summary import Overview

Kind = Literal[
    "queued", "training", "learned", "flat", "collapsed", "overfitting", "unstable", "stalled", "stopped", "crashed"
]
Tone = Literal["good", "running", "warning", "error", "idle"]
TITLES: dict[Kind, str] = {
    "queued": "Queued",
    "training": "Training",
    "learned": "Learned",
    "flat": "Flat",
    "collapsed": "Collapsed",
    "overfitting": "Overfitting",
    "unstable": "Unstable",
    "stalled": "Stalled",
    "stopped": "Stopped",
    "crashed": "Crashed",
}
OF_DIAGNOSIS: dict[str, Kind] = {
    "worse-than-base": "collapsed",
    "not-a-number": "collapsed",
    "collapsed-entropy": "collapsed",
    "exploding-gradient": "unstable",
    "no-gradient": "flat",
    "no-learning-rate": "flat",
    "flat-loss": "flat",
    "no-effect": "flat",
    "overfitting": "overfitting",
    "stalled": "stalled",
}
"""The diagnoses that decide what became of a run; the others are advice beside it."""
MIN_FALL = 0.02
"""Below this share of the first loss a fall is scatter."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`diagnosis` holds the settings that help; `resume` says that going on helps. `sentence` may be empty."""

    kind: Kind
    tone: Tone
    sentence: str = ""
    diagnosis: Diagnosis | None = None
    resume: bool = False

    @property
    def title(self) -> str:
        return TITLES[self.kind]


def verdict(run: RunState, diagnoses: Sequence[Diagnosis], comparison: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a run; `comparison` is that of a finished run's adapter with its base."""
    decisive = next((item for item in diagnoses if item.name in OF_DIAGNOSIS), None)
    if run.state == "queued":
        return Verdict("queued", "idle", "It starts when the device is free.")
    if run.state == "failed":
        kind: Kind = "collapsed" if run.reason == Reason.DIVERGED else "crashed"
        helps = decisive if kind == "collapsed" else None
        return Verdict(kind, "error", _ending(run), helps, resume=kind == "crashed")
    if decisive is not None:
        tone: Tone = "error" if decisive.severity == "error" else "warning"
        kind = OF_DIAGNOSIS[decisive.name]
        finding = (
            f"{decisive.finding} {measured_words(comparison)}"
            if kind == "overfitting" and comparison
            else decisive.finding
        )
        return Verdict(kind, tone, finding, decisive)
    if run.state == "stopped":
        requested = run.reason in (None, Reason.STOPPED)
        return Verdict("stopped", "warning", _stopped(run) if requested else _ending(run) or _stopped(run), resume=True)
    if run.state != "done":
        return Verdict("training", "running", _fall(run))
    if comparison:
        return Verdict("learned", "good", measured_words(comparison))
    first, last = _ends(run)
    fell = first is not None and last is not None and last <= (1 - MIN_FALL) * first
    return Verdict("learned", "good", _fall(run)) if fell or first is None else Verdict("flat", "warning", _fall(run))


def measured_words(comparison: Mapping[str, Any]) -> str:
    """Loss of base and adapter on the same rows, and how much the adapter changes."""
    base, adapter = comparison.get("base_loss"), comparison.get("adapter_loss")
    rows = comparison.get("rows")
    losses = f"Loss {base:.3g} → {adapter:.3g}" if base is not None and adapter is not None else "Loss not measured"
    where = f" on {rows:,} rows" if rows else ""
    changed, divergence = comparison.get("changed_tokens"), comparison.get("divergence")
    if changed is None or divergence is None:
        return f"{losses}{where} (base → adapter)."
    return (
        f"{losses}{where} (base → adapter). {100 * changed:.0f} % of top-1 tokens differ from the base "
        f"(KL {divergence:.2g} nats/token)."
    )


def _ending(run: RunState) -> str:
    return " ".join(filter(None, ending_words(run)))


def _stopped(run: RunState) -> str:
    return f"At step {run.step:,} of {run.total_steps:,}." if run.total_steps else "Before the first step."


def _ends(run: RunState) -> tuple[float | None, float | None]:
    """The first and the last loss: on validation rows where there are two, else on training rows."""
    measured = [item.loss for item in run.evaluations if math.isfinite(item.loss)]
    logged = [item.loss for item in (run.steps[:1] + run.steps[-1:]) if math.isfinite(item.loss)]
    losses = measured if len(measured) > 1 else logged if len(run.steps) > 1 else []
    return (losses[0], losses[-1]) if len(losses) > 1 else (None, None)


def _fall(run: RunState) -> str:
    first, last = _ends(run)
    if first is None or last is None:
        return ""
    name = "Validation" if len([item for item in run.evaluations if math.isfinite(item.loss)]) > 1 else "Training"
    return f"{name} loss {first:.3g} → {last:.3g}."


@dataclass(frozen=True, slots=True)
class Winner:
    """The place of the best of several runs, None if their losses don't compare; `reason` is a sentence."""

    place: int | None
    reason: str


def winner(runs: Sequence[tuple[Overview, RunState]], configs: Sequence[Config]) -> Winner:
    """The run with the lowest validation loss, provided that all were measured on the same tokens."""
    if not _comparable([state for _, state in runs], configs):
        return Winner(None, "The validation losses are of different rows, models or methods.")
    losses = [overview.best_loss for overview, _ in runs]
    if any(loss is None or not math.isfinite(loss) for loss in losses):
        return Winner(None, "Not every run has a validation loss.")
    ordered = sorted(loss for loss in losses if loss is not None)
    if len(ordered) > 1 and ordered[0] == ordered[1]:
        return Winner(None, f"The lowest validation loss is {ordered[0]:.4g} twice.")
    place = losses.index(ordered[0])
    return Winner(place, f"{runs[place][0].title} has the lowest validation loss: {ordered[0]:.4g}.")


def _comparable(states: Sequence[RunState], configs: Sequence[Config]) -> bool:
    """Whether the validation losses of runs are means over the same tokens."""
    if len({config.training.method for config in configs}) > 1:
        return False
    digests = {(state.data.rows_digest, state.data.validation_rows) for state in states if state.data}
    if len(digests) == 1 and all(state.data and state.data.rows_digest for state in states):
        return True  # the same tokens were trained, so the split and the tokenizer are the same
    flat = [flatten(config) for config in configs]
    paths = [path for path in flat[0] if path == "model.name" or path.startswith("data.")]
    return all(len({str(config[path]) for config in flat}) == 1 for path in paths)
