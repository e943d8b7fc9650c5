"""The health of a run: each check looks for one problem, its cause and the fix; the verdict is what became of the run.

Pure functions of a run's state and config. Each check's docstring gives the source of its threshold.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.config.training import COMPARING_METHODS, LEARNING_RATES
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason, RunState, StepLogged
from lora_studio.jobs.kinds import ending_words
from lora_studio.runs.summary import Overview

SEVERITIES = ("error", "warning")
MAX_RATE = {"sft": 1e-3, "dpo": 5e-5, "kto": 5e-6}
"""The highest rates that are advised: over 27 models 1e-3 was the best of ten, and 72 of 80 runs at 3e-3 diverged
(tinker-cookbook, sft_sweep); for DPO ten times the usual rate, for KTO the top of trl's range (`kto_trainer`)."""
MIN_SHARE = 0.05
"""Below this share of the usual rate no step is too large, whatever the gradients are."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A trouble: what is seen, why that happens, what to do.

    `settings` are the changes by path, empty where it is not a matter of settings.
    """

    name: str
    severity: str
    finding: str
    cause: str
    cure: str
    settings: SettingValues = field(default_factory=dict)


Check = Callable[[RunState, Config], Diagnosis | None]


def diagnose(run: RunState, config: Config, now: float, measured: Mapping[str, Any] | None = None) -> list[Diagnosis]:
    """Everything that is wrong with a run, the worst first; `measured` is its comparison with the base.

    Of two that advise different values for one setting, the one that stands first in `CHECKS` counts: the other
    is a consequence of the same cause.
    """
    compared = [worse_than_base(run, config, measured), no_effect(run, config, measured)]
    results = [*compared, *(check(run, config) for check in CHECKS), stalled(run, now)]
    ordered = sorted((item for item in results if item is not None), key=lambda item: SEVERITIES.index(item.severity))
    advised: SettingValues = {}
    consistent = []
    for item in ordered:
        if all(advised.get(path, value) == value for path, value in item.settings.items()):
            consistent.append(item)
            advised |= item.settings
    return consistent


def of_folder(run: RunState, config: Path, now: float, measured: Mapping[str, Any] | None = None) -> list[Diagnosis]:
    """The same for a run whose settings are in a file; nothing is said where an older version wrote them otherwise."""
    try:
        return diagnose(run, load_config(config), now, measured)
    except StudioError:
        return []


def is_worse(measured: Mapping[str, Any], method: str) -> bool:
    """Whether an adapter predicts the answers worse than the base, or gives no numbers at all.

    DPO and KTO may lower the likelihood of good answers while it raises their margin over bad ones, so that only scores
    that are not numbers count there.
    """
    base, adapter = measured.get("base_loss"), measured.get("adapter_loss")
    if base is None or adapter is None:
        return True
    return method not in COMPARING_METHODS and bool(measured.get("moves")) and adapter > base


def worse_than_base(run: RunState, config: Config, measured: Mapping[str, Any] | None) -> Diagnosis | None:
    """The adapter of a finished run predicts the answers worse than the base does: it has collapsed, or overfitted."""
    if not measured or not is_worse(measured, config.training.method):
        return None
    base, adapter = measured.get("base_loss"), measured.get("adapter_loss")
    losses = [item.loss for item in run.evaluations]
    if base is not None and losses and math.isfinite(min(losses)) and min(losses) < base and overfitting(run, config):
        return None  # it was better than the base once: overfitting says when
    finding = "The logits of base or adapter are not finite."
    if base is not None and adapter is not None:
        finding = f"The adapter is worse than the base: loss {adapter:.3g} vs {base:.3g} nats/token."
    rate = _rounded(min(config.training.learning_rate / 3, LEARNING_RATES[config.training.method]))
    return Diagnosis(
        "worse-than-base",
        "error",
        finding,
        "The learning rate is too high and the adapter collapsed, or the rows contradict each other.",
        f"Use a learning rate of {rate:g}.",
        {"training.learning_rate": rate},
    )


def no_effect(run: RunState, config: Config, measured: Mapping[str, Any] | None) -> Diagnosis | None:
    """The adapter of a finished run answers as its base does: less than 1 % of the top-1 tokens differ."""
    if not measured or measured.get("moves") or is_worse(measured, config.training.method):
        return None
    method, now = config.training.method, config.training.learning_rate
    rate = _rounded(min(MAX_RATE[method], max(LEARNING_RATES[method], 3 * now)))
    share = measured.get("changed_tokens")
    finding = "The adapter answers as the base does."
    if share is not None:
        finding = f"The adapter answers as the base does: {100 * share:.1f} % of the top-1 tokens differ."
    return Diagnosis(
        "no-effect",
        "warning",
        finding,
        "The learning rate is too low, or the steps were too few.",
        f"A learning rate of {rate:g}." if rate > now else "More epochs.",
        {"training.learning_rate": rate} if rate > now else {},
    )


def not_a_number(run: RunState, config: Config) -> Diagnosis | None:
    """A loss, validation loss or gradient norm that is no number in the last ten points: nothing learned after it can
    be right."""
    bad = [
        item.step
        for item in run.steps[-10:]
        if not math.isfinite(item.loss) or not math.isfinite(item.grad_norm or 0.0)
    ]
    bad += [item.step for item in run.evaluations[-10:] if not math.isfinite(item.loss)]
    if not bad:
        return None
    settings: SettingValues = {"training.learning_rate": _rounded(config.training.learning_rate / 3)}
    if config.model.dtype == "float16":
        settings["model.dtype"] = "auto"
    return Diagnosis(
        "not-a-number",
        "error",
        f"The loss or the gradient is NaN or infinite at step {min(bad):,}.",
        "The learning rate was too high, or float16 overflowed.",
        "Use a third of the learning rate" + (", and a precision with a larger range." if len(settings) > 1 else "."),
        settings,
    )


def no_gradient(run: RunState, config: Config) -> Diagnosis | None:
    """Gradient norm exactly 0 at three points in a row: no weight can change."""
    last = [item for item in run.steps[-3:] if item.grad_norm == 0]
    if len(last) < 3:
        return None
    quantized = config.model.quantization != "none"
    settings = {"model.quantization": "none"} if quantized else {"lora.target_modules": "all-linear"}
    return Diagnosis(
        "no-gradient",
        "error",
        "The gradient is 0: the adapter does not learn.",
        "The quantized model does not propagate gradients." if quantized else "No trained weight affects the loss.",
        "Train without quantization." if quantized else "Train an adapter on all linear layers.",
        {} if not quantized and config.lora.target_modules == "all-linear" else settings,
    )


def exploding_gradient(run: RunState, config: Config) -> Diagnosis | None:
    """The median of the last five gradient norms above 10 and not falling: half of the first five's.

    Many runs begin with a large gradient that falls at once; one that stays large makes every step a jump.
    """
    norms = [item.grad_norm for item in run.steps[:5] if item.grad_norm is not None and math.isfinite(item.grad_norm)]
    last = [item.grad_norm for item in run.steps[-5:] if item.grad_norm is not None and math.isfinite(item.grad_norm)]
    if len(run.steps) < 10 or len(last) < 5 or not norms:
        return None
    now = statistics.median(last)
    if now <= 10 or now < statistics.median(norms) / 2 or _is_low_rate(config):
        return None
    return Diagnosis(
        "exploding-gradient",
        "warning",
        f"The gradient norm is {now:.0f}; 0.2 to 2 is typical.",
        "Steps are so large that each undoes the last.",
        "Use a third of the learning rate, and a max grad norm of 1.",
        {
            "training.learning_rate": _rounded(config.training.learning_rate / 3),
            "training.max_grad_norm": min(1.0, config.training.max_grad_norm),
        },
    )


def flat_loss(run: RunState, config: Config) -> Diagnosis | None:
    """The loss fell less than 2 % over at least twenty points after the warm-up and is not small already.

    Points scatter by some percent each; the means of five at both ends of twenty scatter by half of that.
    """
    points = _after_warmup(run, config)
    if len(points) < 20:
        return None
    first, last = _mean_loss(points[:5]), _mean_loss(points[-5:])
    if not math.isfinite(first) or not math.isfinite(last) or last < 0.1 or last < 0.98 * first:
        return None
    method, now = config.training.method, config.training.learning_rate
    high = now >= MAX_RATE[method]
    rate = (
        LEARNING_RATES[method] if high else _rounded(min(MAX_RATE[method], max(2.5 * LEARNING_RATES[method], 3 * now)))
    )
    return Diagnosis(
        "flat-loss",
        "warning",
        f"The training loss is flat: {first:.3g} after warmup, {last:.3g} now.",
        f"The learning rate is too {'high' if high else 'low'}, or the prompt format is unknown to the model.",
        f"Use a learning rate of {rate:g}. Check the rows on the Data tab: is the prompt style that of the model?",
        {"training.learning_rate": rate},
    )


def overfitting(run: RunState, config: Config) -> Diagnosis | None:
    """The validation loss has risen by 5 % or more since its best, over at least two evaluations.

    One worse evaluation is scatter; two, and 5 %, are more than a validation set of twenty rows scatters by.
    """
    losses = [item.loss for item in run.evaluations]
    if len(losses) < 3 or not all(map(math.isfinite, losses)):
        return None
    best = losses.index(min(losses))
    if len(losses) - 1 - best < 2 or losses[-1] < 1.05 * losses[best] or losses[-1] - losses[best] < 0.01:
        return None
    point = run.evaluations[best]
    measured = config.evaluation
    strategy = "epoch" if measured.eval_strategy == "no" else measured.eval_strategy
    epochs = float(max(1, math.ceil(point.epoch)))
    ended = config.training.max_steps > 0
    shorter = {"training.max_steps": point.step} if ended else {"training.num_train_epochs": epochs}
    together = {"training.save_steps": measured.eval_steps} if strategy == "steps" else {}
    return Diagnosis(
        "overfitting",
        "warning",
        f"The validation loss is rising: best {losses[best]:.3g} at step {point.step:,}, now {losses[-1]:.3g}.",
        "The adapter is overfitting: it memorizes the training rows.",
        f"Load the best model at the end, and stop at epoch {math.ceil(point.epoch)}.",
        {
            "evaluation.load_best_model_at_end": True,
            "evaluation.eval_strategy": strategy,
            "training.save_strategy": strategy,
            **together,
            **shorter,
        },
    )


def slower(run: RunState, config: Config) -> Diagnosis | None:
    """The speed of the last twenty points is less than 40 % of what it was: more than other rows or a nap can explain.

    Rows of like length come together, so that single points differ by a factor of three; medians of twenty do not.
    """
    points = [item for item in run.steps if item.tokens_per_second > 0] if len(run.steps) < 1000 else run.steps
    if len(points) < 50:
        return None
    before = statistics.median(item.tokens_per_second for item in points[2:32])
    now = statistics.median(item.tokens_per_second for item in points[-20:])
    if now >= 0.4 * before:
        return None
    celsius = points[-1].device_celsius
    heat = f" The device has {celsius:.0f} °C." if celsius is not None else ""
    return Diagnosis(
        "slower",
        "warning",
        f"Training has slowed down: {now:,.0f} tokens/s, {before:,.0f} before.",
        f"Another program uses the device or its memory, or the device is throttled by heat.{heat}",
        "End other programs. The run itself needs no change.",
    )


def few_labels(run: RunState, config: Config) -> Diagnosis | None:
    """Under 1 % of the tokens are trained, or a tenth of the rows kept none: most of the work teaches nothing."""
    data = run.data
    if data is None or not data.tokens:
        return None
    share, rows = data.trained_tokens / data.tokens, data.train_rows + data.dropped_rows
    if share >= 0.01 and data.dropped_rows < 0.1 * rows:
        return None
    if data.dropped_rows >= 0.1 * rows:
        finding = f"{data.dropped_rows:,} of {rows:,} rows were dropped: no trained token was left after truncation."
    else:
        finding = f"Only {100 * share:.2f} % of the tokens are trained."
    return Diagnosis(
        "few-labels",
        "warning",
        finding,
        "The answers exceed the max length, or are very short compared with their prompts.",
        "Double the max length, and truncate prompts before answers.",
        {"data.max_length": 2 * config.data.max_length, "data.truncation": "keep_answer"},
    )


def no_learning_rate(run: RunState, config: Config) -> Diagnosis | None:
    """The learning rate is 0 at three points in a row after the warm-up, before the last twentieth of the steps.

    Every schedule may begin at 0, and all but the constant one end there.
    """
    last = _after_warmup(run, config)[-3:]
    if len(last) < 3 or any(item.learning_rate for item in last) or run.step > 0.95 * run.total_steps:
        return None
    return Diagnosis(
        "no-learning-rate",
        "error",
        f"The learning rate is 0 at step {run.step:,}: the adapter no longer learns.",
        "The LR scheduler ended before the run, or warmup is longer than the run.",
        "Use a constant learning rate after a short warmup.",
        {"training.lr_scheduler_type": "constant_with_warmup", "training.warmup_ratio": 0.03},
    )


def little_memory(run: RunState, config: Config) -> Diagnosis | None:
    """The most memory held is over 95 % of what there is: one longer batch may be too much.

    A tenth is the usual margin; half of it is left here for what the allocator holds without need.
    """
    last = run.steps[-1] if run.steps else None
    if last is None or not last.memory_available_bytes or last.memory_peak_bytes < 0.95 * last.memory_available_bytes:
        return None
    training, gib = config.training, 1024**3
    settings: SettingValues = {"training.gradient_checkpointing": True}
    if training.per_device_train_batch_size // 2 >= (2 if training.method == "kto" else 1):
        settings = {
            "training.per_device_train_batch_size": training.per_device_train_batch_size // 2,
            "training.gradient_accumulation_steps": 2 * training.gradient_accumulation_steps,
        }
    return Diagnosis(
        "little-memory",
        "warning",
        f"Memory is almost full: {last.memory_peak_bytes / gib:.1f} of {last.memory_available_bytes / gib:.1f} GiB.",
        "Memory depends on batch size, row length and model size.",
        "Halve the batch size and double gradient accumulation: the same training with less memory."
        if len(settings) > 1
        else "Turn on gradient checkpointing: less memory, about a fifth more time.",
        settings,
    )


def collapsed_entropy(run: RunState, config: Config) -> Diagnosis | None:
    """After a quarter of the steps the loss is over 0.2 and over five times the entropy, in the mean of ten points.

    A model that is as sure as it is right has a loss equal to its entropy (both in nats a token); five times as much
    means that it is sure of what is wrong. A base that has never seen such answers begins like that, so a
    loss that still falls is no fault. A loss of comparisons is counted in pairs and says nothing of that.
    """
    if config.training.compares or _is_low_rate(config):
        return None
    points = [item for item in run.steps[-10:] if item.entropy is not None]
    if len(points) < 10 or run.step < 0.25 * run.total_steps:
        return None
    loss, entropy = _mean_loss(points), statistics.fmean(item.entropy or 0.0 for item in points)
    if not math.isfinite(loss) or loss < 0.2 or loss < 5 * entropy:
        return None
    before = run.steps[-20:-10]
    if before and loss < 0.95 * _mean_loss(before):
        return None
    return Diagnosis(
        "collapsed-entropy",
        "warning",
        f"The model is overconfident: entropy {entropy:.2g}, loss {loss:.2g} nats/token.",
        "Steps are so large that probabilities reach 0 and 1 before the answers are learned.",
        "Halve the learning rate, and add some dropout.",
        {
            "training.learning_rate": _rounded(config.training.learning_rate / 2),
            "lora.lora_dropout": max(0.05, config.lora.lora_dropout),
        },
    )


def too_easy(run: RunState, config: Config) -> Diagnosis | None:
    """A loss under 0.001 within the first epoch, after at least ten points: 99.9 % sure of tokens never seen before.

    Rows that are really new can't be foretold like that, so they were seen: twice in the file, or in training already.
    """
    early = [item for item in run.steps[:2000] if item.epoch <= 1.0]
    if len(early) < 10 or _mean_loss(early[-3:]) >= 0.001:
        return None
    return Diagnosis(
        "too-easy",
        "warning",
        f"The loss is {early[-1].loss:.1g} before the end of the first epoch.",
        "The rows repeat each other, or the prompt contains the answer.",
        "Check the Data tab for duplicates and for rows in both training and validation data.",
    )


def stalled(run: RunState, now: float) -> Diagnosis | None:
    """No event for ten times the slowest of the last twenty steps, and at least a minute; ten minutes in other phases.

    While it trains a run writes twice a second, or once a step where a step takes longer.
    """
    if run.state != "running" or run.last_event is None:
        return None
    times = [item.time for item in run.steps[-21:] if item.time >= (run.resumed or 0.0)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    patience = max(60.0, 10 * max(gaps)) if run.phase == "train" and gaps else 600.0
    silent = now - run.last_event
    if silent < patience:
        return None
    return Diagnosis(
        "stalled",
        "error",
        f"The run has been silent for {silent / 60:.0f} min.",
        "The machine is asleep, its memory is swapped out, or a download is waiting for the network.",
        "Check the log. If nothing happens, use Stop, then Resume.",
    )


def _after_warmup(run: RunState, config: Config) -> Sequence[StepLogged]:
    warm = max(1, math.ceil(config.training.warmup_ratio * run.total_steps))
    first = next((index for index, item in enumerate(run.steps) if item.step > warm), len(run.steps))
    return run.steps[first:]


def _mean_loss(points: Sequence[StepLogged]) -> float:
    return statistics.fmean(item.loss for item in points)


def _is_low_rate(config: Config) -> bool:
    training = config.training
    return training.learning_rate < MIN_SHARE * LEARNING_RATES[training.method]


def _rounded(rate: float) -> float:
    """A learning rate with two digits, as a person would write it."""
    return float(f"{rate:.2g}")


CHECKS: tuple[Check, ...] = (
    not_a_number,
    no_gradient,
    no_learning_rate,
    exploding_gradient,
    collapsed_entropy,
    flat_loss,
    overfitting,
    too_easy,
    few_labels,
    little_memory,
    slower,
)


def in_words(diagnosis: Diagnosis) -> str:
    """One paragraph for a terminal or a report."""
    changes = ", ".join(f"{path} = {value}" for path, value in diagnosis.settings.items())
    return f"{diagnosis.finding} {diagnosis.cause} Fix: {diagnosis.cure}" + (f" ({changes})" if changes else "")


Kind = Literal[
    "queued", "training", "learned", "flat", "collapsed", "overfitting", "unstable", "stalled", "stopped", "crashed"
]
Tone = Literal["good", "running", "warning", "error", "idle"]
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
        return self.kind.capitalize()


def verdict(run: RunState, diagnoses: Sequence[Diagnosis], comparison: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a run; `comparison` is that of a finished run's adapter with its base."""
    decisive = next((item for item in diagnoses if item.name in OF_DIAGNOSIS), None)
    if run.state == "queued":
        return Verdict("queued", "idle", run.waiting or "It starts when a device is free.")
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
        trouble = run.charge.trouble if run.charge else ""
        unseen = f"{trouble} The run continues on {run.target}."
        return Verdict("training", "warning", unseen) if trouble else Verdict("training", "running", _fall(run))
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
