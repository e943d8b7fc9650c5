"""The queue on the runs tab: the jobs that work, and those that wait for the device, in order, each with its buttons.

A run that was never started can be edited: it leaves the queue, and its settings stand in the train form.
"""

import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.queue import Waiting, is_shown
from lora_studio.ui import html, theme
from lora_studio.ui.sections import QUIET, Look
from lora_studio.ui.studio import Shared, Studio

EXPLAINED = "One job holds the device at a time. Others start one after the other, from the top, also after a restart."


def build_queue(studio: Studio, shared: Shared) -> dict[str, Any]:
    """The list, hidden while nothing waits, and what went wrong with an action."""
    listed = gr.HTML(js_on_load=theme.on_load("clicks"), visible=False, elem_id="run-queue")
    error_box = gr.HTML(visible=False)

    def act(event: gr.EventData) -> dict[Any, Any]:
        try:
            if event.act == "edit":
                return {shared.form: edit(studio, event.value), shared.tabs: gr.Tabs(selected="train")}
            if event.act in ("out", "stop"):
                studio.supervisor.stop(event.value)
            else:
                studio.supervisor.move(event.value, -1 if event.act == "up" else 1)
        except StudioError as error:
            return {error_box: gr.HTML(html.problem(error), visible=True)}
        return {error_box: gr.HTML(visible=False)}

    listed.click(act, None, [error_box, shared.form, shared.tabs], **QUIET)
    return {"queue": listed}


def edit(studio: Studio, run_id: str) -> tuple[float, dict[str, Any], str]:
    """Takes a waiting run away and gives its settings. Raises `StudioError` for one that trained before."""
    run = studio.workspace.run(run_id)
    if studio.supervisor.state(run.id).state != "queued" or run.worker.exists():
        raise StudioError(
            "Only a run that was never started can be edited.", "Take it out, or continue from its adapter."
        )
    values = flatten(parse(read_yaml(run.config)))
    studio.supervisor.delete(run.id)
    return time.time(), values, f"Edited run {run.id}"


def stamp_queue(look: Look) -> Hashable:
    working = look.studio.supervisor.working()
    return tuple(look.studio.supervisor.waiting()), tuple((job.id, job.state) for job in working)


def view_queue(look: Look) -> dict[str, Any]:
    supervisor, workspace = look.studio.supervisor, look.studio.workspace
    waiting, working = supervisor.waiting(), supervisor.working()
    hidden = {entry.job for entry in waiting if not is_shown(workspace, entry)}
    hidden |= {job.id for job in working if not workspace.policy.can_read(KINDS[job.kind].folder_of(workspace, job.id))}
    other_kinds = [job for job in working if job.kind != TRAIN.name]
    titles = {entry.job: supervisor.state(entry.job).title for entry in waiting if entry.job not in hidden}
    listed = rows(waiting, titles, hidden, working) if waiting or other_kinds else None
    return {"queue": listed}


Button = tuple[str, str, str, str, bool]
"""What a click asks for, of which job, the words on it, what it is about, and whether it is off."""


def rows(
    waiting: Sequence[Waiting],
    titles: Mapping[str, str],
    hidden: Collection[str] = (),
    working: Sequence[RunState] = (),
) -> str:
    """The jobs that work and those that wait, the next one first, each with its buttons; of those hidden no more than
    that they are there."""
    items = [_working(job, hidden=job.id in hidden) for job in working]
    for place, entry in enumerate(waiting):
        if entry.job in hidden:
            items.append((str(place + 1), f"Another visitor's {KINDS[entry.kind].noun}", "", ()))
            continue
        name = titles.get(entry.job) or entry.job
        buttons = [
            ("up", entry.job, "↑", f"Move {name} up", place == 0),
            ("down", entry.job, "↓", f"Move {name} down", place == len(waiting) - 1),
            ("edit", entry.job, "Edit", f"Edit {name}", False),
            ("out", entry.job, "Take out", f"Take {name} out of the queue", False),
        ]
        editable = entry.kind == TRAIN.name and not entry.resume
        offered = [act for act in buttons if act[0] != "edit" or editable]
        items.append((str(place + 1), name, purpose(entry), offered))
    return html.render("runs.queue", "Waiting for their turn" if waiting else "Working now", EXPLAINED, items)


def _working(job: RunState, *, hidden: bool) -> tuple[str, str, str, Sequence[Button]]:
    noun = KINDS[job.kind].noun
    if hidden:
        return "▸", f"Another visitor's {noun}", "", ()
    name, stopping = job.title or job.id, job.state == "stopping"
    activity = f"{noun}, {'stopping' if stopping else 'works'}"
    return "▸", name, activity, [("stop", job.id, "Stop", f"Stop {name}", stopping)]


def purpose(entry: Waiting) -> str:
    """What a waiting job is to do."""
    if entry.kind != TRAIN.name:
        return f"{KINDS[entry.kind].noun}, {'goes on' if entry.resume else 'begins'}"
    if entry.extra_epochs:
        return f"goes on for {entry.extra_epochs:g} more epoch{'' if entry.extra_epochs == 1 else 's'}"
    return "goes on from its last checkpoint" if entry.resume else "begins"
