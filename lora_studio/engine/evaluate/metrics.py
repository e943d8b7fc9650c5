"""Metrics with 95 % intervals from answered rows, and which of the rows an adapter was trained on.

Shares get a Wilson interval (Wilson 1927), everything else a percentile bootstrap over rows. A metric is computed over
the same rows for every column. Test rows are compared with the training rows by their content.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from scipy.stats import binomtest, bootstrap

from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare, resolve_source
from lora_studio.data.quality import group_of
from lora_studio.engine.evaluate import tasks
from lora_studio.engine.evaluate.tasks import READING, Task, is_exact, json_of, label_of
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import EvaluationRequest
from lora_studio.files import JsonObject, split_sheet
from lora_studio.jobs.events import read_state
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.models.hub import is_dataset_name
from lora_studio.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from lora_studio.engine.evaluate.answer import AskedFile

LEVEL = 0.95
RESAMPLES = 2000
SEED = 42
AT_ONCE = 1 << 22  # numbers of resampled rows that are in memory together
Statistic = Callable[..., Any]
"""A statistic of arrays over the keyword `axis`, by default the last, which counts the rows."""


def share_interval(right: Sequence[bool]) -> tuple[float, float]:
    """The Wilson interval of a share; [0, 1] for no rows."""
    if not right:
        return 0.0, 1.0
    bounds = binomtest(sum(right), len(right)).proportion_ci(LEVEL, method="wilson")
    return float(bounds.low), float(bounds.high)


def interval(rows: Sequence[np.ndarray], statistic: Statistic) -> tuple[float, float] | None:
    """The bootstrap interval of a statistic over rows, given arrays with one entry per row; None for fewer than two
    rows."""
    count = len(rows[0])
    if count < 2:
        return None
    result = bootstrap(
        tuple(rows),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // count),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(result.low), float(result.high)


def difference_interval(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], statistic: Statistic
) -> tuple[float, float] | None:
    """The paired bootstrap interval of the second column's statistic minus the first's."""
    parts = len(first)

    def apart(*arrays: np.ndarray, axis: int = -1) -> Any:
        return statistic(*arrays[parts:], axis=axis) - statistic(*arrays[:parts], axis=axis)

    return interval([*first, *second], apart)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The p-value of McNemar's exact test."""
    only_first = sum(first_right and not second_right for first_right, second_right in zip(first, second, strict=True))
    only_second = sum(second_right and not first_right for first_right, second_right in zip(first, second, strict=True))
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


Row = JsonObject
"""A line of `predictions.jsonl`: row, prompt and reference, and each column's prediction by the column's name."""
Parts = Callable[[str], Sequence[np.ndarray]]
NO_LABEL = "none"
CHANCE = 0.05


@dataclass(frozen=True)
class Metric:
    """`of(column)` returns the arrays that the statistic takes, each with one entry per row.

    `unit` is share (0 to 1), score (0 to 100) or plain. A metric with `of_rights` is the share of correct rows.
    """

    name: str
    title: str
    about: str
    unit: str
    of: Parts
    statistic: Statistic
    of_rights: bool = False
    higher_is_better: bool = True


def mean(values: np.ndarray, axis: int = -1) -> Any:
    return values.mean(axis=axis)


def token_share(right: np.ndarray, tokens: np.ndarray, axis: int = -1) -> Any:
    return right.sum(axis=axis) / tokens.sum(axis=axis)


def perplexity(losses: np.ndarray, tokens: np.ndarray, axis: int = -1) -> Any:
    """The exponential of the mean loss per token, in nats."""
    return np.exp(np.minimum(losses.sum(axis=axis) / tokens.sum(axis=axis), 700.0))


def label_f1(expected: np.ndarray, predicted: np.ndarray, label: int, axis: int = -1) -> Any:
    """F1 of a label; 0 if it is neither expected nor predicted."""
    is_expected, is_predicted = expected == label, predicted == label
    both = is_expected.sum(axis=axis) + is_predicted.sum(axis=axis)
    return 2 * (is_expected & is_predicted).sum(axis=axis) / np.maximum(both, 1)


def macro_f1(expected: np.ndarray, predicted: np.ndarray, labels: int, axis: int = -1) -> Any:
    """Mean of `label_f1` over the labels that are expected or predicted, as in `tasks.label_scores`."""
    scores = sum(label_f1(expected, predicted, label, axis) for label in range(labels))
    present = sum(((expected == label) | (predicted == label)).any(axis=axis) for label in range(labels))
    return scores / np.maximum(present, 1)


def metrics_of(task: Task, rows: Sequence[Row]) -> list[Metric]:
    """The metrics of a task over its rows, the most informative first."""
    if task.kind == READING.kind:
        return _forced_metrics(rows, "texts")
    metrics: list[Metric] = []
    if task.kind == "labels":
        metrics += _label_metrics(task, rows)
    if task.kind == "numbers":
        metrics.append(_rights("number_match", "Correct number", "the answer ends in the expected number", rows))
    if task.kind == "json":
        metrics.append(_rights("json_match", "Same JSON", "the answer is JSON equal to the expected answer", rows))
        metrics.append(
            _rights("json_valid", "Valid JSON", "the answer is valid JSON", rows, lambda row, say: json_of(say)[0])
        )
    metrics.append(
        _rights(
            "exact_match",
            "Exact match",
            "the answer equals the expected one, ignoring white space and reasoning",
            rows,
            lambda row, say: is_exact(say, row["reference"]),
        )
    )
    if task.kind in ("text", "json"):
        metrics += _text_metrics(rows)
    return metrics + _forced_metrics(rows)


def _rights(
    name: str, title: str, about: str, rows: Sequence[Row], right: Callable[[Row, str], bool] | None = None
) -> Metric:
    """The share of correct rows, as they were judged or by the rule `right`."""

    def of(column: str) -> list[np.ndarray]:
        values = (row[column]["right"] if right is None else right(row, row[column]["answer"]) for row in rows)
        return [np.fromiter(values, dtype=float, count=len(rows))]

    return Metric(name, title, f"Share of rows in which {about}.", "share", of, mean, of_rights=True)


def _label_metrics(task: Task, rows: Sequence[Row]) -> list[Metric]:
    place = {label: at for at, label in enumerate(task.labels)}
    labelled = [(row, label) for row in rows if (label := label_of(row["reference"], task.labels)) is not None]
    expected = np.array([place[label] for _, label in labelled])

    def labels_of(column: str) -> list[np.ndarray]:
        predicted = [row[column]["given"] for row, _ in labelled]
        return [expected, np.array([-1 if label is None else place[label] for label in predicted])]

    def right(column: str) -> list[np.ndarray]:
        expected, predicted = labels_of(column)
        return [(expected == predicted).astype(float)]

    about = "Share of rows whose answer contains the expected label. An answer without a label is wrong."
    of_each = "Mean F1 over all labels (harmonic mean of precision and recall). Rare labels count equally."
    metrics = [
        Metric("accuracy", "Accuracy", about, "share", right, mean, of_rights=True),
        Metric("f1", "Macro F1", of_each, "share", labels_of, partial(macro_f1, labels=len(task.labels))),
    ]
    if task.positive is not None:
        statistic = partial(label_f1, label=place[task.positive])
        words = f"Harmonic mean of precision and recall for the answer {task.positive}."
        metrics.append(Metric("f1_binary", f"F1 of {task.positive}", words, "share", labels_of, statistic))
    return metrics


def _text_metrics(rows: Sequence[Row]) -> list[Metric]:
    def each(score: Callable[[str, str], float]) -> Parts:
        return lambda column: [np.array([score(row[column]["answer"], row["reference"]) for row in rows])]

    def counts(column: str) -> Sequence[np.ndarray]:
        return tasks.bleu_columns([(row[column]["answer"], row["reference"]) for row in rows])

    longest = "Longest common subsequence of words with the expected answer (F-measure), mean over rows."
    return [
        Metric("rouge_l", "ROUGE-L", longest, "share", each(tasks.rouge_l), mean),
        Metric(
            "bleu",
            "BLEU",
            "Overlap of 1- to 4-grams of words with the expected answers, over all rows.",
            "score",
            counts,
            tasks.bleu_of,
        ),
        Metric(
            "chrf",
            "chrF",
            "Overlap of 1- to 6-grams of characters with the expected answer, mean over rows.",
            "score",
            each(tasks.chrf),
            mean,
        ),
    ]


def _forced_metrics(rows: Sequence[Row], noun: str = "expected answers") -> list[Metric]:
    scored = [row for row in rows if all(row[name].get("loss") is not None for name in columns_in(row))]
    if not scored:
        return []

    def of(*names: str) -> Parts:
        return lambda column: [np.array([row[column][name] for row in scored], dtype=float) for name in names]

    words = f"Perplexity of the {noun} per token: 1 is perfect, lower is better."
    share = f"Share of tokens of the {noun} that are the model's top-1 prediction."
    return [
        Metric(
            "perplexity",
            "Perplexity",
            words,
            "plain",
            of("loss", "expected_tokens"),
            perplexity,
            higher_is_better=False,
        ),
        Metric("token_accuracy", "Token accuracy", share, "share", of("right_tokens", "expected_tokens"), token_share),
        *_preference(scored, of("preferred")),
    ]


def _preference(rows: Sequence[Row], of: Parts) -> list[Metric]:
    """Pairs and labelled rows: how often the expected answer is above a rejected one."""
    if not all("preferred" in row[name] for row in rows for name in columns_in(row)):
        return []
    words = "How often an expected answer is likelier per token than a rejected one; 50 % is chance."
    return [Metric("preference_accuracy", "Preference accuracy", words, "share", of, mean)]


def columns_in(row: Row) -> list[str]:
    """Names of the columns that answered a row."""
    return [name for name, value in row.items() if isinstance(value, dict) and "answer" in value]


def measured(metric: Metric, columns: Sequence[str]) -> JsonObject:
    """A metric of every column, and each column's difference from the first: `difference` for the second,
    `difference2`, …"""
    parts = {column: metric.of(column) for column in columns}
    first = columns[0]
    values: JsonObject = {
        "title": metric.title,
        "about": metric.about,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "rows": len(parts[first][0]),
    }
    for column in columns:
        value = float(metric.statistic(*parts[column]))
        rights = [bool(right) for right in parts[column][0]] if metric.of_rights else []
        between = share_interval(rights) if metric.of_rights else interval(parts[column], metric.statistic)
        values[column] = {"value": value, **_bounds(between)}
    for number, column in enumerate(columns[1:], 1):
        values["difference" + ("" if number == 1 else str(number))] = _difference(
            metric, values[column]["value"] - values[first]["value"], parts[first], parts[column]
        )
    return values


class Bounds(TypedDict):
    """A 95 % interval; None if there is none."""

    low: float | None
    high: float | None


class MetricDifference(Bounds):
    """A column's difference from the first column, and whether it is significant."""

    value: float
    p: float | None
    test: str
    more_than_chance: bool
    words: str


class Confusion(TypedDict):
    """A confusion matrix: a row of counts for each expected label."""

    given: list[str]
    expected: list[str]
    counts: list[list[int]]


class Summary(TypedDict):
    """The results of an evaluation: metrics by name, confusion and disagreements by column."""

    rows: int
    task: JsonObject
    metrics: dict[str, JsonObject]
    confusion: dict[str, Confusion | None] | None
    disagreements: dict[str, dict[str, int]]


def _difference(
    metric: Metric, difference: float, first: Sequence[np.ndarray], second: Sequence[np.ndarray]
) -> MetricDifference:
    between = difference_interval(first, second, metric.statistic)
    p = None
    if metric.of_rights:
        p = mcnemar([bool(value) for value in first[0]], [bool(value) for value in second[0]])
        certain = p < CHANCE
    else:
        certain = between is not None and not between[0] <= 0 <= between[1]
    return {
        "value": difference,
        **_bounds(between),
        "p": p,
        "test": "McNemar's exact test" if metric.of_rights else "paired bootstrap",
        "more_than_chance": certain,
        "words": _words(difference, certain, metric.higher_is_better, p),
    }


def _bounds(between: tuple[float, float] | None) -> Bounds:
    low, high = between or (None, None)
    return {"low": low, "high": high}


def _words(difference: float, certain: bool, higher_is_better: bool, p: float | None) -> str:
    if math.isclose(difference, 0, abs_tol=1e-12):
        return "the same"
    better = "better" if (difference > 0) == higher_is_better else "worse"
    odds = "" if p is None else f" (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
    return f"{better}, significant{odds}" if certain else f"{better}, but not significant{odds}"


def confusion(task: Task, rows: Sequence[Row], column: str) -> Confusion | None:
    """The confusion matrix of a column; None for tasks without labels."""
    if task.kind != "labels":
        return None
    predictions = (*task.labels, NO_LABEL)
    counts = {label: dict.fromkeys(predictions, 0) for label in task.labels}
    for row in rows:
        expected = label_of(row["reference"], task.labels)
        if expected is not None:
            counts[expected][row[column]["given"] or NO_LABEL] += 1
    return {
        "given": list(predictions),
        "expected": list(task.labels),
        "counts": [list(row_counts.values()) for row_counts in counts.values()],
    }


def disagreements(rows: Sequence[Row], first: str, other: str) -> dict[str, int]:
    """How many rows both columns, only one or neither got right."""
    pairs = [(bool(row[first]["right"]), bool(row[other]["right"])) for row in rows]
    return {
        "both_right": pairs.count((True, True)),
        "only_first_right": pairs.count((True, False)),
        "only_second_right": pairs.count((False, True)),
        "both_wrong": pairs.count((False, False)),
    }


def summary(task: Task, rows: Sequence[Row], columns: Sequence[str]) -> Summary:
    """All metrics of the answered rows, the confusion matrices, and disagreements with the first column."""
    is_scored = task.kind != READING.kind
    return {
        "rows": len(rows),
        "task": {"kind": task.kind, "why": task.why, "labels": list(task.labels), "positive": task.positive},
        "metrics": {metric.name: measured(metric, columns) for metric in metrics_of(task, rows)},
        "confusion": {name: confusion(task, rows, name) for name in columns} if task.kind == "labels" else None,
        "disagreements": {name: disagreements(rows, columns[0], name) for name in columns[1:] if is_scored},
    }


MEANING = "Scores on training rows measure memorization, not generalization."


class SlowError(Exception):
    """Reading the training data again would take too long."""


def warnings_of(folder: EvaluationFolder, request: EvaluationRequest, file: "AskedFile") -> list[str]:
    """A sentence for each adapter that was trained on some of the test rows."""
    numbers = {row.row for row in file.rows}
    groups = [group_of(chat) for chat in file.prepared.conversations if chat.row in numbers]
    tested = np.array(groups, dtype=np.uint64)
    warnings = []
    for column in request.adapters:
        if not column.run:
            continue
        sure, same_file = np.zeros(len(tested), dtype=bool), False
        for config, run in _trainings(Workspace(folder.path.parent.parent).runs_folder, column.run):
            trained = _trained_on(config, run)
            if trained is not None:
                sure |= np.isin(tested, trained)
            else:
                same_file |= _same_file(config.data.train_file, request.data)
        if sure.any():
            warnings.append(_in_words(column.title, int(sure.sum()), len(tested)))
        elif same_file:
            warnings.append(
                f"{column.title} was trained on this file, or on an earlier version of it. Which of these rows it "
                f"has seen could not be determined quickly. {MEANING}"
            )
    return warnings


def _in_words(title: str, trained: int, of: int) -> str:
    if trained == of:
        rows = "this row" if of == 1 else f"all {of:,} rows"
        return f"{title} was trained on {rows} and has seen the answers. {MEANING}"
    return f"{title} was trained on {trained:,} of these {of:,} rows. {MEANING}"


def _trainings(runs: Path, name: str) -> Iterator[tuple[Config, RunFolder]]:
    """The run of that id, and the runs that it continued from."""
    visited: set[str] = set()
    while name and name not in visited and (run := RunFolder(runs / name)).config.is_file():
        visited.add(name)
        config = load_config(run.config)
        yield config, run
        before = Path(config.model.adapter_name_or_path or "")
        name = next((part.name for part in before.parents if part.parent == runs), "")


def _trained_on(config: Config, run: RunFolder) -> np.ndarray | None:
    """Hashes of a run's training rows; None if they are not cached or have changed since."""
    from lora_studio.engine.models.source import load_tokenizer

    if is_dataset_name(config.data.train_file):
        return None
    try:
        prepared = prepare(
            **config.data.model_dump(),
            tokenizer=load_tokenizer(config.model.name, config.model.revision),
            goal=config.training.goal,
            cache_folder=run.cache,
            on_sample=_give_up,
        )
    except (StudioError, SlowError, OSError):
        return None
    data = read_state(run.events).data
    same = data is not None and data.fingerprint == prepared.fingerprint
    if not same and not prepared.template.writes_date:  # such a template changes the fingerprint every day
        return None
    part = prepared.part
    positions = np.asarray(part.rows.position)[prepared.selected[0]]
    return part.all_groups[np.searchsorted(part.all_positions, positions)].astype(np.uint64)


def _give_up(first: Prepared) -> None:
    """Aborts `prepare` after the first rows of a large file, before the slow part."""
    raise SlowError


def _same_file(trained: str, tested: str) -> bool:
    if is_dataset_name(trained) or is_dataset_name(tested):
        return trained == tested
    try:
        (path, sheet), (other, other_sheet) = split_sheet(resolve_source(trained)), split_sheet(tested)
        return sheet == other_sheet and os.path.samefile(path, other)
    except (OSError, StudioError):
        return False
