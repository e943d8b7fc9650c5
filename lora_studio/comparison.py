"""Runs beside each other: the settings in which they differ, and what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.config import Config
from lora_studio.events import Evaluated, RunState
from lora_studio.markdown import SHARES
from lora_studio.overview import Overview
from lora_studio.settings import flatten, settings


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not the same in all runs, with its value in each."""

    path: str
    title: str
    values: tuple[Any, ...]


def differences(configs: Sequence[Config]) -> list[Difference]:
    """The settings in which configs differ, in the order of the schema; a run's name is not one of them."""
    flat = [flatten(config) for config in configs]
    found = []
    for setting in settings():
        values = tuple(each[setting.path] for each in flat)
        if setting.path != "title" and any(value != values[0] for value in values[1:]):
            found.append(Difference(setting.path, setting.title, values))
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that came out of runs; `unit` is loss, share, count, bytes, seconds or words."""

    name: str
    unit: str
    values: tuple[Any, ...]


def results(runs: Sequence[tuple[Overview, RunState]]) -> list[Result]:
    """What came out of each run; only what at least one of them has."""
    columns = [_outcome(each, state) for each, state in runs]
    names = dict.fromkeys(key for column in columns for key in column)
    found = [Result(name, unit, tuple(column.get((name, unit)) for column in columns)) for name, unit in names]
    return [result for result in found if any(value is not None for value in result.values)]


def _outcome(run: Overview, state: RunState) -> dict[tuple[str, str], Any]:
    moved: Mapping[str, Any] = run.result.get("difference") or {}
    last = state.evaluations[-1] if state.evaluations else None
    point = state.steps[-1] if state.steps else None
    metrics = {
        (f"{name.replace('_', ' ')} at the end", "share" if name in SHARES else "loss"): value
        for name, value in _metrics(last)
    }
    return {
        ("state", "words"): run.state,
        ("steps", "count"): run.step,
        ("training loss at the end", "loss"): run.loss,
        ("validation loss at the end", "loss"): run.eval_loss,
        ("lowest validation loss", "loss"): run.best_loss,
        ("at step", "count"): run.best_step,
        **metrics,
        ("loss of the base on the same rows", "loss"): moved.get("base_loss"),
        ("loss of the adapter on the same rows", "loss"): moved.get("adapter_loss"),
        ("KL divergence from the base, nats a token", "loss"): moved.get("divergence"),
        ("next tokens that differ from the base's", "share"): moved.get("changed_tokens"),
        ("tokens seen", "count"): run.result.get("tokens") or (point.tokens if point else None),
        ("tokens a second at the end", "count"): point.tokens_per_second if point else None,
        ("trained parameters", "count"): state.model.trainable_parameters if state.model else None,
        ("most memory", "bytes"): run.result.get("peak_memory_bytes"),
        ("time", "seconds"): run.seconds,
    }


def _metrics(last: Evaluated | None) -> list[tuple[str, float]]:
    return list(last.metrics.items()) if last else []
