"""`runs`: lists, shows, stops, cancels, resumes and deletes runs, also those that the page started, and the queue."""

import argparse
import dataclasses
import time
from typing import Any

from lora_studio.cli import job_actions
from lora_studio.cli.run_results import ACTIONS, act, facts_of, list_runs, what_came_out
from lora_studio.cli.terminal import duration, print_json, say, size, table
from lora_studio.cli.train_command import follow_to_end, result_of, step_line
from lora_studio.deletion import deletions
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.health import Diagnosis, in_words, of_folder
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.waiting import Waiting, is_shown
from lora_studio.units import count
from lora_studio.workspace import RunFolder, Workspace

BEGINS = {False: "begins", True: "goes on"}


def runs(workspace: Workspace, given: argparse.Namespace) -> int:
    """One of the actions on one run, or the list of all."""
    supervisor = Supervisor(workspace)
    if given.action == "list":
        list_runs(workspace, supervisor, given.json)
        for line in job_actions.going_on(supervisor):
            say(line)
        return 0
    if given.action == "queue":
        return queue(supervisor, given.json)
    if given.run is None:
        raise StudioError(f"Which run is to be used for `runs {given.action}`?", "Give its id, or `last`.")
    if given.more and given.action not in ACTIONS:
        raise StudioError(f"`runs {given.action}` takes one run.", f"Leave {' '.join(given.more)} out.")
    if given.action in ACTIONS:
        act(workspace, supervisor, given.action, given.run, given.more, given.json)
        return 0
    _, folder = supervisor.find(given.run)
    if given.action in ("up", "down"):
        supervisor.move(folder.id, -1 if given.action == "up" else 1)
        return queue(supervisor, given.json)
    if isinstance(folder, RunFolder):
        return act_on_run(workspace, supervisor, folder, given.action, given.json, sure=given.yes)
    return job_actions.act(supervisor, folder.id, given.action, given.json, sure=given.yes)


def act_on_run(
    workspace: Workspace, supervisor: Supervisor, run: RunFolder, action: str, as_json: bool, *, sure: bool = False
) -> int:
    """Follows, stops, cancels, resumes, deletes or shows a run; the exit code."""
    if action == "follow":
        return follow_to_end(supervisor, run, as_json, leaves=True)
    if action == "stop":
        job_actions.end(supervisor, TRAIN, run.id, at_once=False)
    elif action == "cancel":
        _cancel(supervisor, run.id)
    elif action == "resume":
        supervisor.resume(run.id)
        say("Resumed. It goes on in the background: `python -m lora_studio runs list` shows how far it is.")
    elif action == "delete":
        if not sure:
            _ask(workspace, supervisor, run.id)
        supervisor.delete(run.id)
        say(f"Deleted run {run.id}.")
        if as_json:
            print_json({"run": run.id, "state": "deleted"})
        return 0
    state = supervisor.state(run.id)
    health = of_folder(state, run.config, time.time(), run.read_result().get("difference"))
    if as_json:
        facts = _facts(state, health) | facts_of(run, state) if action == "show" else result_of(run, state)
        print_json(facts)
    elif action == "show":
        print("\n".join([_describe(state, health), *what_came_out(run, state)]))
    else:
        print(_describe(state, health))
    return 0


def _ask(workspace: Workspace, supervisor: Supervisor, run_id: str) -> None:
    """Asks before a run is deleted; nothing of one that can't be, which the supervisor refuses."""
    found = next(iter(deletions(workspace, [run_id], supervisor.runs())), None)
    if found is None or found.against:
        return
    after = f", on whose adapter {' and '.join(found.continued_by)} began" if found.continued_by else ""
    job_actions.ask(f"run {run_id} ({found.title}, {size(found.bytes)} with its checkpoints and adapter{after})")


def queue(supervisor: Supervisor, as_json: bool) -> int:
    """The jobs that wait, the next one first."""
    waiting = supervisor.waiting()
    if as_json:
        print_json({"running": supervisor.busy(), "queue": [entry.job for entry in waiting]})
    elif not waiting:
        say("No job waits. One that is started while another holds the device is put into the queue.")
    else:
        rows = [
            (
                place,
                entry.job,
                KINDS[entry.kind].noun,
                _title(supervisor, entry),
                "goes on" if entry.resume else "begins",
            )
            for place, entry in enumerate(waiting, start=1)
        ]
        print(table(("place", "job", "kind", "name", "what it does"), rows))
    return 0


def _title(supervisor: Supervisor, entry: Waiting) -> str:
    return supervisor.state(entry.job).title if is_shown(supervisor.workspace, entry) else ""


def _facts(state: RunState, health: list[Diagnosis]) -> dict[str, Any]:
    """Everything known of a run but its many logged steps, of which the last stands for all."""
    facts = dataclasses.asdict(dataclasses.replace(state, steps=state.steps[-1:]))
    message, hint = ending_words(state)
    told = {"message": message, "hint": hint}
    return {"run": facts.pop("id"), **facts, **told, "health": [dataclasses.asdict(found) for found in health]}


def _describe(state: RunState, health: list[Diagnosis]) -> str:
    lines = [f"{state.id}  {state.title}", f"state       {state.state}, phase {state.phase or '-'}"]
    if state.device:
        lines.append(f"device      {state.device}, {state.dtype}")
    if state.data is not None:
        measured = count(state.data.validation_rows, "validation row")
        lines.append(f"data        {count(state.data.train_rows, 'training row')}, {measured}")
    if state.model is not None:
        lines.append(f"parameters  {state.model.trainable_parameters:,} trained of {state.model.parameters:,}")
    if state.steps:
        lines.append(f"progress    {step_line(state)}")
    lines += [f"measured    step {item.step}: validation loss {item.loss:.4f}" for item in state.evaluations]
    if state.final:
        lines.append(f"took        {duration(state.seconds)}")
    lines += [f"health      {in_words(found)}" for found in health]
    lines += [text for text in ending_words(state) if text]
    return "\n".join(lines)


def _cancel(supervisor: Supervisor, run_id: str) -> None:
    """Ends the run at once and says what is left of it."""
    if supervisor.state(run_id).final:
        say(f"Run {run_id} has ended already.")
        return
    supervisor.cancel(run_id)
    while not (state := supervisor.state(run_id)).final:
        time.sleep(0.05)
    kept = f"{state.checkpoints[-1].name} is the last that is kept." if state.checkpoints else "It has no checkpoint."
    say(f"Cancelled run {run_id}: nothing more was saved. {kept}")
