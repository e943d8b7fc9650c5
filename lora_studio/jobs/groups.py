"""Several values tried: one config with lists for up to three settings makes a group of plain runs in the queue.

A run's folder names its group and its values, so that a group is the runs that name it. Which of them are weak is
decided by successive halving: after 1, 2, 4, … evaluations a run goes on while it is in the better half of those that
came as far (Jamieson & Talwalkar 2016, arXiv:1502.07943; asynchronously as in Li et al. 2018, arXiv:1810.05934, so that
no run waits for another). The rule is optuna's.
"""

import contextlib
import itertools
import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import CONDITIONS, ConfigError, Problem, default_title, nest, parse, unmet
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten, meant, settings
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, Finished, Reason, RunState
from lora_studio.jobs.kinds import TRAIN, Membership, append_event, membership
from lora_studio.jobs.queue import QueueEntry, check_room
from lora_studio.jobs.watcher import Follower
from lora_studio.units import float_text
from lora_studio.workspace import RunFolder, Workspace, write_atomically

MAX_SETTINGS, MAX_RUNS, MAX_NAME = 3, 24, 80
NOT_TRIED = ("title", "training.method")
"""Settings of which several values make no sense: a name, and what needs other data."""
NOT_LEARNED = ("compute", "tracking", "generation")
"""Sections that change nothing of what a run learns."""
RISING = ("accuracy", "f1", "reward_accuracy", "reward_margin", "token_accuracy")
"""Metrics of an evaluation of which more is better."""
Facts = Mapping[str, object]
Tries = Mapping[str, Sequence[str]]
"""The values to try as they were typed, by the path of their setting."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of a group before it starts: its values by path, and its whole config."""

    values: SettingValues
    config: Config


def read_tries(words: Iterable[str]) -> Tries:
    """The lists of flags such as training.learning_rate=1e-4,3e-4; values that hold commas have semicolons between
    them. Raises `StudioError` for what is no list, and for a setting that is named twice."""
    tries: dict[str, list[str]] = {}
    for word in words:
        path, equals, text = word.partition("=")
        path = path.strip().removeprefix("--")
        if not equals:
            raise StudioError(
                f"{word!r} is not a setting with values.", "Write it as training.learning_rate=1e-4,3e-4."
            )
        if path in tries:
            raise StudioError(f"{path} is listed twice.", "Give all of its values in one list.")
        tries[path] = split_values(text)
    return tries


def split_values(text: str) -> list[str]:
    """The values of a list as it was typed."""
    separator = ";" if ";" in text else ","
    return [value for part in text.split(separator) if (value := part.strip())]


def variants(config: Config, tries: Tries) -> list[Variant]:
    """Every combination of the values, each as a whole config. Raises `StudioError` for what can't be tried, naming
    the setting and the value."""
    _check_lists(tries)
    optional = {setting.path for setting in settings() if setting.optional}
    lists = {
        path: [None if path in optional and value == "none" else value for value in values]
        for path, values in tries.items()
    }
    flat = {**flatten(config), "title": ""}
    made, problems = [], list[Problem]()
    for combination in itertools.product(*lists.values()):
        values = dict(zip(lists, combination, strict=True))
        try:
            tried = parse(nest({**flat, **values}))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        settled = flatten(tried)
        made.append(Variant({path: settled[path] for path in lists}, tried))
        problems += [problem for problem in _without_effect(settled, lists) if problem not in problems]
    if problems:
        raise ConfigError(problems)
    _check_distinct(made)
    return made


def _check_lists(tries: Tries) -> None:
    if not tries:
        raise StudioError("No setting has several values.", "Name a setting and the values to try.")
    if len(tries) > MAX_SETTINGS:
        raise StudioError(f"{len(tries)} settings are too many.", f"Try values of at most {MAX_SETTINGS} settings.")
    paths = {setting.path for setting in settings()}
    problems = [
        *(Problem(path, f"unknown setting{meant(path).words}") for path in tries if path not in paths),
        *(Problem(path, "cannot be tried with several values") for path in tries if path in NOT_TRIED),
        *(
            Problem(path, "changes nothing of what a run learns, so it cannot be tried")
            for path in tries
            if path.partition(".")[0] in NOT_LEARNED and path in paths
        ),
        *(
            Problem(path, "needs at least two values", values[0] if values else None)
            for path, values in tries.items()
            if len(values) < 2
        ),
    ]
    if problems:
        raise ConfigError(problems)
    count = math.prod(len(values) for values in tries.values())
    if count > MAX_RUNS:
        product = " × ".join(str(len(values)) for values in tries.values())
        raise StudioError(f"{product} values make {count} runs.", f"A group has at most {MAX_RUNS}: try fewer values.")


def _without_effect(settled: SettingValues, lists: Iterable[str]) -> list[Problem]:
    return [Problem(path, reason) for path in lists if path in CONDITIONS and (reason := unmet(path, settled))]


def _check_distinct(made: Sequence[Variant]) -> None:
    """Raises `StudioError` for a value that a list holds twice, in whatever form it was written."""
    combinations = [tuple(map(repr, variant.values.values())) for variant in made]
    twice = next((place for place, values in enumerate(combinations) if values in combinations[:place]), None)
    if twice is not None:
        words = value_words(made[twice].values)
        raise StudioError(f"The same values are listed twice: {words}.", "Remove one of them.")


def value_words(values: Mapping[str, object]) -> str:
    """A run's values in words: learning_rate 1e-4, r 8."""
    return ", ".join(f"{path.rpartition('.')[2]} {as_text(value)}" for path, value in values.items())


def as_text(value: object) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return float_text(value) if isinstance(value, float) else "none" if value is None else str(value)


class RunStarter(Protocol):
    """The supervisor, as it is seen by whoever starts a group."""

    @property
    def workspace(self) -> Workspace: ...

    def runs(self) -> list[RunState]: ...

    def waiting(self) -> list[QueueEntry]: ...

    def launch(
        self, config: Config, *, memory: int | None = None, group: Mapping[str, object] | None = None
    ) -> str: ...


def check_weak(config: Config) -> None:
    """Raises `StudioError` where no run could be stopped early, for want of evaluations while it trains."""
    evaluation, training, data = config.evaluation, config.training, config.data
    if evaluation.eval_strategy == "no" or not (data.validation_file or data.validation_fraction):
        raise StudioError(
            "Weak runs are recognized by their evaluations, and this config has none.",
            "Set evaluation.eval_strategy, and give validation rows.",
        )
    if evaluation.eval_strategy == "epoch" and training.max_steps <= 0 and training.num_train_epochs <= 1:
        raise StudioError(
            "A run of one epoch is evaluated only at its end, which is too late to stop it early.",
            "Set evaluation.eval_strategy to steps.",
        )


def check_group(starter: RunStarter, made: Sequence[Variant], name: str, *, stop_weak: bool) -> None:
    """Raises `StudioError` for whatever would keep one of the runs from starting, before the first does."""
    if len(name) > MAX_NAME:
        raise StudioError(f"The name has {len(name)} characters.", f"A group's name has at most {MAX_NAME}.")
    workspace = starter.workspace
    workspace.policy.check_may("start a group of runs")
    check_room(workspace, starter.waiting(), len(made))
    for variant in made:
        workspace.policy.admit(variant.config)
        if stop_weak:
            check_weak(variant.config)


def start_group(
    starter: RunStarter,
    made: Sequence[Variant],
    *,
    name: str = "",
    stop_weak: bool = False,
    memory: int | None = None,
) -> tuple[str, list[str]]:
    """Starts the runs of a group, or queues them; gives the group's id and theirs. Raises `StudioError` before the
    first starts, for whatever can be known then. `memory` is as for a single run."""
    name = " ".join(name.split())
    check_group(starter, made, name, stop_weak=stop_weak)
    base = made[0].config
    name = name or f"{default_title(base, [run.title.partition(' · ')[0] for run in starter.runs()])}"
    group_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    metric = base.evaluation.metric_for_best_model
    started: list[str] = []
    for variant in made:
        title = f"{name} · {value_words(variant.values)}"[:120]
        config = variant.config.model_copy(update={"title": title})
        group = Membership(group_id, name, variant.values, stop_weak, metric)
        try:
            started.append(starter.launch(config, memory=memory, group=group.as_facts()))
        except StudioError as error:
            if not started:
                raise
            raise StudioError(f"{len(started)} of {len(made)} runs were started. {error.message}", error.hint) from None
    return group_id, started


def heaviest(made: Sequence[Variant]) -> Config:
    """The config that needs most memory: that of the longest batches, and of these of the largest adapter."""

    def weight(config: Config) -> tuple[int, int]:
        return config.training.per_device_train_batch_size * config.data.max_length, config.lora.r

    return max((variant.config for variant in made), key=weight)


def runs_of(workspace: Workspace, group_id: str) -> list[RunFolder]:
    """The runs of a group that the caller may see, oldest first."""
    found = []
    for run in workspace.runs():
        group = membership(run.read_facts())
        if group is not None and group.id == group_id:
            found.append(run)
    return found[::-1]


def rename(workspace: Workspace, group_id: str, name: str) -> None:
    """Gives a group another name. Raises `StudioError` for none, and for one that is too long."""
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME:
        raise StudioError("A group needs a name.", f"Give it one of at most {MAX_NAME} characters.")
    for run in runs_of(workspace, group_id):
        facts, group = run.read_facts(), membership(run.read_facts())
        if group is not None:
            times = run.facts.stat()  # they date the run
            write_atomically(run.facts, json.dumps({**facts, "group": replace(group, name=name).as_facts()}, indent=2))
            os.utime(run.facts, ns=(times.st_atime_ns, times.st_mtime_ns))


def weak_runs(runs: Iterable[tuple[str, Sequence[Evaluated]]], metric: str = "loss") -> dict[str, Evaluated]:
    """The runs of a group that are in the weaker half, by id, each with the evaluation that showed it.

    `runs` are their evaluations by id. All evaluations are gone through again in the order of their times, so that the
    answer depends on them alone.
    """
    import optuna  # a third of a second, for whoever stops weak runs

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(direction="maximize" if metric in RISING else "minimize", pruner=pruner)
    in_order = sorted(
        (item.time, run, number, item) for run, items in runs for number, item in enumerate(items, start=1)
    )
    trials: dict[str, optuna.Trial] = {}
    weak: dict[str, Evaluated] = {}
    for _, run, number, item in in_order:
        value = item.loss if metric == "loss" else item.metrics.get(metric, math.nan)
        if run in weak:
            continue
        trial = trials[run] = trials.get(run) or study.ask()
        trial.report(value, number)
        if trial.should_prune():
            weak[run] = item
    return weak


class WeakRuns:
    """Stops the weak runs of groups that want it, and writes down why a run was stopped.

    What is decided follows from the runs' events alone: a supervisor that begins later comes to the same.
    """

    def __init__(self) -> None:
        self._groups: dict[str, Membership | None] = {}  # by id of the run
        self._decided: dict[str, tuple[object, dict[str, Evaluated]]] = {}  # by id of the group

    def stop(self, followers: Sequence[Follower]) -> None:
        """One look at all runs."""
        groups: dict[str, list[Follower]] = {}
        for follower in followers:
            if follower.kind is TRAIN and (group := self._group(follower)) is not None and group.stop_weak:
                groups.setdefault(group.id, []).append(follower)
        for group_id, members in groups.items():
            if any(member.alive for member in members) or group_id in self._decided:
                self._stop(group_id, members)

    def _group(self, follower: Follower) -> Membership | None:
        run_id = follower.folder.id
        if run_id not in self._groups:
            self._groups[run_id] = membership(follower.folder.read_facts())
        return self._groups[run_id]

    def _stop(self, group_id: str, members: Sequence[Follower]) -> None:
        states = {member.folder.id: member.in_short for member in members}
        mark = tuple((run_id, len(state.evaluations)) for run_id, state in states.items())
        decided = self._decided.get(group_id)
        if decided is None or decided[0] != mark:
            group = self._groups[members[0].folder.id]
            metric = group.metric if group else "loss"
            weak = weak_runs(((run_id, state.evaluations) for run_id, state in states.items()), metric)
            decided = self._decided[group_id] = (mark, weak)
        for member in members:
            if member.folder.id in decided[1]:
                self._end(member, decided[1][member.folder.id])

    def _end(self, member: Follower, evaluation: Evaluated) -> None:
        """Asks a weak run to stop; one that a person resumed after that goes on."""
        state, worker = member.in_short, member.worker
        if worker is None or worker.launched > evaluation.time:
            return
        if member.alive and not member.ended and worker.stop_asked is None:
            with contextlib.suppress(StudioError):  # a cluster that does not answer now
                member.launcher.ask_to_stop(member.folder)
        elif not member.alive and state.reason is Reason.STOPPED and (state.finished or 0.0) >= evaluation.time:
            words = f"Stopped early: in the weaker half of its group at step {evaluation.step:,}."
            append_event(member.folder, Finished(time.time(), "stopped", state.step, words, "", Reason.PRUNED))
