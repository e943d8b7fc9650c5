"""A run in numbers and text: table rows, search, comparison, CSV, speed, tags, and escaped Markdown."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.config.parsing import load_config, merge, nest, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten, settings
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, read_object
from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.jobs.kinds import Membership, membership
from lora_studio.workspace import RunFolder, Workspace, write_atomically

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def rows_of(run: RunState) -> list[JsonObject]:
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


def _row(kind: str, item: StepLogged | Evaluated) -> JsonObject:
    values = {name: value for name, value in dataclasses.asdict(item).items() if value is not None}
    metrics = values.pop("metrics", {})
    return {"kind": kind, **values, **metrics}


def cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


LOOKED_AT = 100  # of the newest runs: older ones were made with other versions


@dataclass(frozen=True, slots=True)
class Speed:
    """Real tokens a second while training, the mean tokens of a training row, and the run that they come from."""

    tokens_per_second: float
    tokens_per_row: float
    data: str
    run: str


def speed(
    workspace: Workspace, *, model: str, quantization: str, device: str, data: str, processes: int = 1
) -> Speed | None:
    """What the newest finished run with this model, on this kind of device and in as many processes, did; one on the
    same data goes before."""
    speeds = [
        candidate for candidate in _speeds(workspace, (model, quantization, processes), device) if candidate is not None
    ]
    return next((candidate for candidate in speeds if candidate.data == data), speeds[0] if speeds else None)


def start_seconds(workspace: Workspace, *, model: str, device: str) -> float | None:
    """What the newest finished run on this kind of device took before its first step; one with this model goes before.

    None where no run measured it.
    """
    newest = None
    for _, facts, numbers in _finished(workspace, device):
        seconds = numbers.get("start_seconds")
        if not isinstance(seconds, (int, float)) or seconds <= 0:
            continue
        if facts.get("model") == model:
            return float(seconds)
        newest = newest or float(seconds)
    return newest


def _speeds(workspace: Workspace, like: tuple[str, str, int], device: str) -> Iterator[Speed | None]:
    for run, facts, numbers in _finished(workspace, device):
        if (facts.get("model"), numbers.get("quantization"), numbers.get("processes", 1)) == like:
            yield _speed(run, facts, numbers)


def _finished(workspace: Workspace, device: str) -> Iterator[tuple[RunFolder, JsonObject, JsonObject]]:
    """The newest finished runs on a kind of device, each with its facts and its result."""
    for run in workspace.runs()[:LOOKED_AT]:
        facts, numbers = run.read_facts(), run.read_result()
        if (numbers.get("state"), numbers.get("device_kind")) == ("done", device):
            yield run, facts, numbers


def _speed(run: RunFolder, facts: JsonObject, numbers: JsonObject) -> Speed | None:
    rows = (numbers.get("train_rows") or 0) * (numbers.get("epochs") or 0)
    if not numbers.get("tokens_per_second") or not numbers.get("tokens") or not rows:
        return None
    return Speed(numbers["tokens_per_second"], numbers["tokens"] / rows, str(facts.get("data")), run.id)


MIN_SECONDS = 1.0
"""After a shorter time a speed is a guess."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is done in a second, and the seconds that the rest will take."""

    per_second: float
    seconds_left: float


def pace(done: float, total: float, seconds: float) -> Pace | None:
    """None where nothing is done yet, or too short a time has passed."""
    if done <= 0 or seconds < MIN_SECONDS:
        return None
    return Pace(done / seconds, max(0.0, total - done) * seconds / done)


def short(number: float) -> str:
    """A speed with three digits or all before the point: 0.512, 4.2, 12,345."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def pace_of(state: RunState, before: int = 0) -> Pace | None:
    """The pace of the phase that goes on; `before` is what was done before this start. None in one without counts."""
    if not state.phase_total or state.phase_started is None or state.last_event is None:
        return None
    return pace(state.phase_done - before, state.phase_total - before, state.last_event - state.phase_started)


def settings_of(folder: RunFolder, run: RunState) -> Config:
    """The config that would train a new run as long as this one was in the end."""
    config = load_config(folder.config)
    if not run.extra_epochs:
        return config
    longer: dict[str, int | float]
    if config.training.max_steps > 0:
        longer = {"training.max_steps": max(config.training.max_steps, run.total_steps)}
    else:
        longer = {"training.num_train_epochs": config.training.num_train_epochs + run.extra_epochs}
    return parse(merge(config.model_dump(), nest(longer)))


def words(run: RunState) -> str:
    """That epochs were added, in a sentence; empty where none were."""
    if not run.extra_epochs:
        return ""
    more = "1 epoch was" if run.extra_epochs == 1 else f"{run.extra_epochs:g} epochs were"
    return f"{more} added after this config was written: the run has {run.total_steps:,} steps in total."


MAX_TAGS, MAX_TAG, MAX_NOTE = 20, 40, 10_000


@dataclass(frozen=True, slots=True)
class Tags:
    """What a person wrote on a run."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_tags(run: RunFolder) -> Tags:
    """The run's labels; none where nothing was written yet."""
    try:
        content = read_object(run.labels)
        return Tags(tuple(str(tag) for tag in content["tags"]), str(content["note"]))
    except FileNotFoundError:
        return Tags()
    except (ValueError, KeyError, TypeError) as error:
        raise StudioError(f"{run.labels} cannot be read: {error}.", "Fix the file, or delete it.") from None


def write_tags(run: RunFolder, labels: Tags) -> None:
    """Replaces the run's labels. Raises `StudioError` for what is too much."""
    check(labels)
    write_atomically(run.labels, json.dumps(asdict(labels), ensure_ascii=False, indent=2) + "\n")


def check(labels: Tags) -> None:
    if len(labels.tags) > MAX_TAGS:
        raise StudioError(f"{len(labels.tags)} tags are too many.", f"A run can have at most {MAX_TAGS} tags.")
    for tag in labels.tags:
        if len(tag) > MAX_TAG:
            raise StudioError(f"The tag {tag[:20]}… is too long.", f"A tag has at most {MAX_TAG} characters.")
    if len(labels.note) > MAX_NOTE:
        raise StudioError(f"The note has {len(labels.note):,} characters.", f"The limit is {MAX_NOTE:,} characters.")


def tags_of(text: str) -> tuple[str, ...]:
    """Tags typed with commas between them, each once."""
    return tuple(dict.fromkeys(tag for part in text.split(",") if (tag := " ".join(part.split()))))


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
    labels: Tags
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
    result: JsonObject = field(default_factory=dict)
    group: Membership | None = None

    def row(self) -> JsonObject:
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
            "group": self.group.as_facts() if self.group else None,
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
        group=membership(facts),
    )


def _labels(run: RunFolder) -> Tags:
    """A file that can't be read says so where its note would stand."""
    try:
        return read_tags(run)
    except StudioError as error:
        return Tags(note=error.message)


def matching(runs: Sequence[Overview], query: str) -> list[Overview]:
    """The runs in which every word of the query is found: in title, id, state, model, data, maker, tags or note."""
    words = query.casefold().split()
    if not words:
        return list(runs)
    return [run for run in runs if all(word in text for text in [_text(run)] for word in words)]


def _text(run: Overview) -> str:
    return "\n".join(
        (
            *(run.title, run.id, run.state, run.model, run.data, run.maker, *run.labels.tags, run.labels.note),
            run.group.name if run.group else "",
        )
    ).casefold()


SHARES = ("token_accuracy", "accuracy", "f1", "unanswered", "reward_accuracy")
"""Metrics of a run that lie between 0 and 1 and are told in percent, as evaluations tell them."""


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def metric(name: str, value: float | None) -> str:
    """A metric by its name: a share in percent, others in four digits."""
    return share(value) if name in SHARES else number(value)


def share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return re.sub(r"([\\`*_\[\]<>&|~$#!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code, whatever signs it holds."""
    line = " ".join(text.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if line.startswith("`") or line.endswith("`") else f"{fence}{line}{fence}"


def prose(text: str) -> str:
    """Words in which `names` are set off: they may come from a file, so everything else is plain text."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text)
    return "".join(code(part) if at % 2 else _spaced(part) for at, part in enumerate(parts))


def _spaced(part: str) -> str:
    """Plain text that keeps the blanks at its ends."""
    return f"{' ' * part[:1].isspace()}{plain(part)}{' ' * (part[-1:].isspace() and bool(part.strip()))}"


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; a sign that would end a cell is written out."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", str(cell)) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting that is not the same in all runs, with its value in each."""

    path: str
    title: str
    values: tuple[Any, ...]


def differences(configs: Sequence[Config]) -> list[SettingDifference]:
    """The settings in which configs differ, in the order of the schema; a run's name is not one of them."""
    flat = [flatten(config) for config in configs]
    changed = []
    for setting in settings():
        values = tuple(config[setting.path] for config in flat)
        if setting.path != "title" and any(value != values[0] for value in values[1:]):
            changed.append(SettingDifference(setting.path, setting.title, values))
    return changed


@dataclass(frozen=True, slots=True)
class RunResult:
    """One thing that came out of runs; `unit` is loss, share, count, bytes, seconds or words."""

    name: str
    unit: str
    values: tuple[Any, ...]


def results(runs: Sequence[tuple[Overview, RunState]]) -> list[RunResult]:
    """What came out of each run; only what at least one of them has."""
    columns = [_outcome(run, state) for run, state in runs]
    names = dict.fromkeys(key for column in columns for key in column)
    rows = [RunResult(name, unit, tuple(column.get((name, unit)) for column in columns)) for name, unit in names]
    return [result for result in rows if any(value is not None for value in result.values)]


def _outcome(run: Overview, state: RunState) -> dict[tuple[str, str], Any]:
    moved: Mapping[str, Any] = run.result.get("difference") or {}
    last = state.evaluations[-1] if state.evaluations else None
    point = state.steps[-1] if state.steps else None
    metrics = {
        (f"final {name.replace('_', ' ')}", "share" if name in SHARES else "loss"): value
        for name, value in (last.metrics.items() if last else ())
    }
    return {
        ("state", "words"): run.state,
        ("steps", "count"): run.step,
        ("final training loss", "loss"): run.loss,
        ("final validation loss", "loss"): run.eval_loss,
        ("lowest validation loss", "loss"): run.best_loss,
        ("at step", "count"): run.best_step,
        **metrics,
        ("base loss on the same rows", "loss"): moved.get("base_loss"),
        ("adapter loss on the same rows", "loss"): moved.get("adapter_loss"),
        ("KL divergence from the base (nats/token)", "loss"): moved.get("divergence"),
        ("top-1 tokens that differ from the base", "share"): moved.get("changed_tokens"),
        ("tokens seen", "count"): run.result.get("tokens") or (point.tokens if point else None),
        ("final tokens/s", "count"): point.tokens_per_second if point else None,
        ("trained parameters", "count"): state.model.trainable_parameters if state.model else None,
        ("peak memory", "bytes"): run.result.get("peak_memory_bytes"),
        ("time", "seconds"): run.seconds,
    }
