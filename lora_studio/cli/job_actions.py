"""What `runs` does with the id of an evaluation or an export, which go on without the terminal that started them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_studio.cli import evaluate_command, export_command
from lora_studio.cli.terminal import confirmed, duration, print_json, progress_line, say, size
from lora_studio.errors import StudioError
from lora_studio.evaluations import evaluations
from lora_studio.events import RunState
from lora_studio.exports import exports
from lora_studio.files import bytes_in
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.evaluating import Evaluations
from lora_studio.jobs.exporting import Exports
from lora_studio.jobs.folder_jobs import FolderJobs
from lora_studio.workspace import JobFolder, Workspace

ACTIONS = ("show", "follow", "stop", "cancel", "resume", "delete")


@dataclass(frozen=True, slots=True)
class Job:
    """An evaluation or an export; `follow` tells of it until it ends, `progress` in one line how far it is.

    `resume` lets it go on, or raises `StudioError`.
    """

    noun: str
    jobs: FolderJobs[Any]
    folder: JobFolder
    follow: Callable[[bool], int]
    progress: Callable[[RunState], str]
    resume: Callable[[], None]


def find(workspace: Workspace, name: str) -> Job | None:
    """The evaluation or export of that id."""
    for evaluation in evaluations(workspace):
        if evaluation.id == name:
            answering = Evaluations(workspace)
            resume = partial(answering.resume, name)
            follow = partial(evaluate_command.tell_to_end, answering, evaluation, leaves=True)
            return Job("evaluation", answering, evaluation, follow, evaluate_command.answered_line, resume)
    for export in exports(workspace):
        if export.id == name:
            making = Exports(workspace)
            follow = partial(export_command.tell_to_end, making, export, leaves=True)
            return Job("export", making, export, follow, progress_line, _no_resume)
    return None


def _no_resume() -> None:
    raise StudioError(
        "An export can't be resumed: nothing half-finished of it is kept.",
        "Start it again with `python -m lora_studio export`.",
    )


def act(job: Job, action: str, as_json: bool, *, sure: bool = False) -> int:
    """One of `ACTIONS`; the exit code. Unless `sure`, a person is asked before anything is deleted."""
    name = job.folder.id
    if action == "follow":
        return job.follow(as_json)
    if action == "delete":
        state = job.jobs.state(name)
        if state.final and not sure:
            ask(f"{job.noun} {name} ({state.title}, {size(bytes_in(job.folder.path))})")
        job.jobs.delete(name)
        say(f"Deleted {job.noun} {name}.")
        if as_json:
            print_json({job.noun: name, "state": "deleted"})
        return 0
    if action in ("stop", "cancel"):
        _end(job, at_once=action == "cancel")
    if action == "resume":
        job.resume()
        say(f"Resumed. It goes on in the background: `python -m lora_studio runs follow {name}` tells of it.")
    state = job.jobs.state(name)
    if as_json:
        message, hint = ending_words(state)
        print_json({job.noun: name, "state": state.state, "reason": state.reason, "message": message, "hint": hint})
    else:
        print("\n".join(_describe(job, state)))
    return 0


def ask(what: str) -> None:
    """Asks whether that may be deleted. Raises `StudioError` where nobody says yes."""
    if not confirmed(f"Delete {what} for good?"):
        raise StudioError(f"Nothing was deleted. What would go is {what}.", "Say y when asked, or add --yes.")


def _end(job: Job, *, at_once: bool) -> None:
    """Asks the child to end, or ends it, and stays until it has."""
    if job.jobs.state(job.folder.id).final:
        say(f"This {job.noun} has ended already.")
        return
    if at_once:
        job.jobs.kill(job.folder.id, cancelled=True)
    else:
        job.jobs.stop(job.folder.id)
    while not job.jobs.state(job.folder.id).final:
        time.sleep(0.1)


def _describe(job: Job, state: RunState) -> list[str]:
    lines = [f"{state.id}  {state.title}", f"state       {state.state}, phase {state.phase or '-'}"]
    if state.final:
        lines.append(f"took        {duration(state.seconds)}")
    elif told := job.progress(state):
        lines.append(f"progress    {told}")
    return [*lines, *(text for text in ending_words(state) if text)]


def going_on(workspace: Workspace) -> list[str]:
    """A line for each evaluation and export that works now, with how to end it."""
    found = []
    for noun, jobs in (("evaluation", Evaluations(workspace)), ("export", Exports(workspace))):
        states = [state for state in jobs.all() if not state.final]
        found += [
            f"The {noun} {state.id} ({state.title}) is going on; `runs stop {state.id}` ends it." for state in states
        ]
    return found
