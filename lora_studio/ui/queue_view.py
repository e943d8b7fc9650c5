"""The queue on the runs tab: the runs that wait for the device, in order, each with what can be done with it.

A run that was never started can be edited: it leaves the queue, and its settings stand in the train form.
"""

import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.waiting import Waiting
from lora_studio.parsing import parse, read_yaml
from lora_studio.settings import flatten
from lora_studio.ui import browser, text
from lora_studio.ui.run_section import QUIET, Look
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder

EXPLAINED = "One run trains at a time. These start one after the other, from the top, also after a restart."


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """The list, hidden while nothing waits, and what went wrong with an action."""
    listed = gr.HTML(js_on_load=browser.on_load("clicks"), visible=False, elem_id="run-queue")
    said = gr.HTML(visible=False)

    def act(event: gr.EventData) -> dict[Any, Any]:
        try:
            if event.act == "edit":
                return {shared.form: edit(studio, event.value), shared.tabs: gr.Tabs(selected="train")}
            if event.act == "out":
                studio.supervisor.stop(event.value)
            else:
                studio.supervisor.move(event.value, -1 if event.act == "up" else 1)
        except StudioError as error:
            return {said: gr.HTML(text.problem(error), visible=True)}
        return {said: gr.HTML(visible=False)}

    listed.click(act, None, [said, shared.form, shared.tabs], **QUIET)
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


def stamp(look: Look) -> Hashable:
    return tuple(look.studio.supervisor.waiting())


def view(look: Look) -> dict[str, Any]:
    waiting = look.studio.supervisor.waiting()
    titles = {state.id: state.title for state in look.studio.supervisor.runs()}
    workspace = look.studio.workspace
    hidden = {entry.run for entry in waiting if not workspace.shows(RunFolder(workspace.runs_folder / entry.run))}
    return {"queue": rows(waiting, titles, hidden) if waiting else None}


def rows(waiting: Sequence[Waiting], titles: Mapping[str, str], hidden: Collection[str] = ()) -> str:
    """The waiting runs, the next one first, each with its buttons; of those hidden no more than that they wait."""
    items: list[tuple[str, str, Sequence[tuple[str, str, str, str, bool]]]] = []
    for place, entry in enumerate(waiting):
        if entry.run in hidden:
            items.append(("Another visitor's run", "", ()))
            continue
        name = titles.get(entry.run) or entry.run
        buttons = [
            ("up", entry.run, "↑", f"Move {name} up", place == 0),
            ("down", entry.run, "↓", f"Move {name} down", place == len(waiting) - 1),
            ("edit", entry.run, "Edit", f"Edit {name}", False),
            ("out", entry.run, "Take out", f"Take {name} out of the queue", False),
        ]
        items.append((name, purpose(entry), [act for act in buttons if act[0] != "edit" or not entry.resume]))
    return text.render("runs.queue", EXPLAINED, items)


def purpose(entry: Waiting) -> str:
    """What a waiting run is to do."""
    if entry.extra_epochs:
        return f"goes on for {entry.extra_epochs:g} more epoch{'' if entry.extra_epochs == 1 else 's'}"
    return "goes on from its last checkpoint" if entry.resume else "begins"
