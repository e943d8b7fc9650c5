"""Results of runs in the terminal: list, comparison, tags, notes, and measurements as CSV."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lora_studio.cli.following import step_line
from lora_studio.cli.output import age, print_json, say, table
from lora_studio.config.parsing import load_config
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, bytes_in
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import STATES, TRAIN, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.checkpoints import checkpoints, deletions
from lora_studio.runs.health import Diagnosis, in_words, of_folder, verdict, winner
from lora_studio.runs.summary import Tags, differences, overview, read_tags, results, tags_of, to_csv, write_tags
from lora_studio.units import count, duration, size
from lora_studio.workspace import RunFolder, Workspace

RESULT_ACTIONS = ("tag", "note", "compare", "csv")
HEAD = ("run", "state", "step", "loss", "eval loss", "best", "time", "MB", "created", "tags")


def act_on_results(
    workspace: Workspace, supervisor: Supervisor, action: str, run_id: str, more: Sequence[str], as_json: bool
) -> None:
    """One of `ACTIONS` on a run, or on several."""
    run = workspace.run(run_id)
    if action == "compare":
        _compare(workspace, supervisor, [run_id, *more], as_json)
    elif action == "csv":
        print(to_csv(supervisor.state(run.id)), end="")
    else:
        if more:
            old = read_tags(run)
            typed = (", " if action == "tag" else " ").join(more)
            new = Tags(tags_of(typed), old.note) if action == "tag" else Tags(old.tags, typed.strip())
            write_tags(run, new)
        labels = read_tags(run)
        if as_json:
            print_json({"run": run.id, **asdict(labels)})
        else:
            print(", ".join(labels.tags) if action == "tag" else labels.note)


def list_runs(workspace: Workspace, supervisor: Supervisor, as_json: bool) -> None:
    """Every run with its key numbers, newest first."""
    overviews = [(overview(workspace.run(state.id), state), state) for state in supervisor.runs()]
    sizes = {run.id: bytes_in(workspace.run(run.id).path) for run, _ in overviews}
    if as_json:
        print_json({"runs": [run.row() | {"bytes": sizes[run.id]} for run, _ in overviews]})
        return
    if not overviews:
        say("There are no runs yet. Start one: `python -m lora_studio train demo`")
        return
    rows = [
        (
            run.id,
            STATES[run.state].lower(),
            f"{run.step}/{run.total_steps}" if run.total_steps else "-",
            _number(run.loss),
            _number(run.eval_loss),
            _number(run.best_loss),
            duration(run.seconds) if run.seconds else "-",
            f"{sizes[run.id] / 1e6:.1f}",
            age(run.created),
            ", ".join(run.labels.tags),
        )
        for run, _ in overviews
    ]
    print(table(HEAD, rows))
    for run, _ in overviews:
        if run.damaged:
            say(f"note: {' and '.join(run.damaged)} of {run.id} cannot be read: damaged.")


def what_came_out(run: RunFolder, state: RunState) -> list[str]:
    """Lines on a run's labels, its adapter beside the base, and its checkpoints."""
    summary = overview(run, state)
    lines = []
    if summary.labels.tags:
        lines.append(f"tags        {', '.join(summary.labels.tags)}")
    if summary.labels.note:
        lines.append(f"note        {summary.labels.note}")
    if measured := summary.result.get("difference"):
        lines.append(f"adapter     {measured['sentence']} {measured['rows_sentence']}")
    for item in reversed(checkpoints(run, state)):
        loss = "not evaluated" if item.loss is None else f"validation loss {item.loss:.4f}"
        lines.append(f"checkpoint  {item.name}: {loss}, {item.bytes / 1e6:.1f} MB{', best' if item.best else ''}")
    return [*lines, f"size        {bytes_in(run.path) / 1e6:.1f} MB"]


def describe(run: RunFolder, state: RunState) -> list[str]:
    """Lines on what a run is, how far it is, and how it fares."""
    diagnoses = _health(run, state)
    outcome = verdict(state, diagnoses, run.read_result().get("difference") if state.final else None)
    lines = [f"{state.id}  {state.title}", f"state       {STATES[state.state].lower()}, phase {state.phase or '-'}"]
    if state.kind == TRAIN.name:
        lines.append(f"verdict     {outcome.title}. {outcome.sentence}".rstrip())
    if state.device:
        lines.append(f"device      {state.device}, {state.dtype}")
    if state.data is not None:
        measured = count(state.data.validation_rows, "validation row")
        lines.append(f"data        {count(state.data.train_rows, 'training row')}, {measured}")
    if state.model is not None:
        lines.append(f"parameters  {state.model.trainable_parameters:,} trainable of {state.model.parameters:,}")
    if state.steps:
        lines.append(f"progress    {step_line(state)}")
    lines += [f"evaluation  step {item.step}: validation loss {item.loss:.4f}" for item in state.evaluations]
    if state.final:
        lines.append(f"took        {duration(state.seconds)}")
    lines += [f"health      {in_words(diagnosis)}" for diagnosis in diagnoses]
    return [*lines, *(text for text in ending_words(state) if text)]


def _health(run: RunFolder, state: RunState) -> list[Diagnosis]:
    return of_folder(state, run.config, time.time(), run.read_result().get("difference"))


def what_goes(workspace: Workspace, supervisor: Supervisor, run_id: str) -> str:
    """What a person is asked about before a run is deleted; "" for one that can't be, which the supervisor refuses."""
    deletion = next(iter(deletions(workspace, [run_id], supervisor.runs())), None)
    if deletion is None or deletion.against:
        return ""
    after = f", from which {' and '.join(deletion.continued_by)} started" if deletion.continued_by else ""
    return f"run {run_id} ({deletion.title}, {size(deletion.bytes)} with checkpoints and adapter{after})"


def _whole(run: RunFolder, state: RunState) -> JsonObject:
    """Everything known of a run but its many logged steps, of which the last stands for all."""
    facts = asdict(replace(state, steps=state.steps[-1:]))
    message, hint = ending_words(state)
    ending = {"message": message, "hint": hint}
    return {
        "run": facts.pop("id"),
        **facts,
        **ending,
        "health": [asdict(diagnosis) for diagnosis in _health(run, state)],
    }


def facts_of(run: RunFolder, state: RunState) -> JsonObject:
    """All that is known of a run, for a script."""
    return (
        _whole(run, state)
        | overview(run, state).row()
        | {
            "bytes": bytes_in(run.path),
            "checkpoints": [asdict(item) for item in checkpoints(run, state)],
        }
    )


def _compare(workspace: Workspace, supervisor: Supervisor, names: Sequence[str], as_json: bool) -> None:
    runs = [workspace.run(name) for name in names]
    if len({run.id for run in runs}) < 2:
        raise StudioError(
            "A comparison needs at least two runs.", "Give both: `python -m lora_studio runs compare RUN RUN`."
        )
    overviews = [(overview(run, state), state) for run in runs for state in [supervisor.state(run.id)]]
    configs = [load_config(run.config) for run in runs]
    settings, outcome, best = differences(configs), results(overviews), winner(overviews, configs)
    if as_json:
        changed_settings = [{"path": item.path, "title": item.title, "values": item.values} for item in settings]
        print_json(
            {
                "runs": [run.id for run in runs],
                "settings": changed_settings,
                "results": [asdict(item) for item in outcome],
                "winner": None if best.place is None else runs[best.place].id,
            }
        )
        return
    print(f"{'No winner' if best.place is None else 'Winner'}: {best.reason}")
    head = ("", *(run.title for run, _ in overviews))
    print(table(head, [(item.name, *(_with_unit(value, item.unit) for value in item.values)) for item in outcome]))
    print()
    print(
        table(head, [(item.path, *map(_shown, item.values)) for item in settings])
        if settings
        else ("The settings are identical.")
    )


def _with_unit(value: Any, unit: str) -> str:
    """A result as a person reads it."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return size(value) if unit == "bytes" else duration(value) if unit == "seconds" else _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
