"""Settings, log, tags and note of a run on the Runs tab."""

import json
from collections.abc import Callable, Hashable
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.runs import summary
from lora_studio.runs.summary import Tags, read_tags, tags_of, write_tags
from lora_studio.ui import html
from lora_studio.ui.components import QUIET, Components, EventOptions, Shared, stat_of
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import Workspace


def build_settings(studio: Studio, shared: Shared) -> Components:
    """The run's settings as YAML."""
    return {"settings": gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24)}


def stamp_settings(view: RunView) -> Hashable:
    return view.run.id, summary.words(view.run)


def view_settings(view: RunView) -> ViewValues:
    longer = summary.words(view.run)
    return {"settings": (f"# {longer}\n" if longer else "") + view.folder.config.read_text(encoding="utf-8")}


def build_log(studio: Studio, shared: Shared) -> Components:
    """The end of the worker's log."""
    log = gr.Textbox(lines=14, max_lines=14, label="Log", show_label=False, container=False, elem_id="log")
    return {"log": log}


def stamp_log(view: RunView) -> Hashable:
    return view.run.id, stat_of(view.folder.log)


def view_log(view: RunView) -> ViewValues:
    return {"log": view.studio.supervisor.log(view.run.id)}


def build_labels(studio: Studio, shared: Shared) -> Components:
    """Two fields. What they were filled with travels along: another run may be chosen while they are saved.

    They are filled when a run is opened and never while it is looked at: what is being typed is not written over.
    """
    filled = gr.Textbox(visible=False)
    with gr.Row(elem_classes="run-labels"):
        tags = gr.Textbox(
            label="Tags", placeholder="Comma-separated, to find this run by", max_lines=1, elem_id="run-tags"
        )
        note = gr.Textbox(
            label="Note", placeholder="What you tried and what you saw", lines=1, max_lines=8, elem_id="run-note"
        )
    error_box = gr.HTML(visible=False)

    def save(name: str) -> Callable[[str, str], tuple[Any, Any]]:
        def handler(before: str, typed: str) -> tuple[Any, Any]:
            try:
                return saved(studio.workspace, json.loads(before), name, typed), gr.HTML(visible=False)
            except StudioError as error:
                return gr.skip(), gr.HTML(html.problem(error), visible=True)

        return handler

    # One after the other, none left out: the second field may be left while the first is still being saved.
    queued: EventOptions = {"trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "labels", **QUIET}
    gr.on([tags.blur, tags.submit], save("tags"), [filled, tags], [filled, error_box], **queued)
    note.blur(save("note"), [filled, note], [filled, error_box], **queued)
    shared.run.change(lambda: gr.HTML(visible=False), None, error_box, **QUIET)
    return {"filled": filled, "tags": tags, "note": note}


def saved(workspace: Workspace, before: dict[str, str], name: str, typed: str) -> Any:
    """Writes the one field that was changed, and gives what the fields hold now; nothing where it was only left."""
    if typed == before[name]:
        return gr.skip()
    run = workspace.run(before["run"])
    old = read_tags(run)
    new = Tags(tags_of(typed), old.note) if name == "tags" else Tags(old.tags, typed.strip())
    write_tags(run, new)
    return json.dumps({**before, name: typed})


def stamp_labels(view: RunView) -> Hashable:
    return view.run.id


def view_labels(view: RunView) -> ViewValues:
    try:
        labels = read_tags(view.folder)
    except StudioError as error:
        labels = Tags(note=error.message)  # it is not written over: saving reads the file first, and says so
    fields = {"tags": ", ".join(labels.tags), "note": labels.note}
    filled = json.dumps({"run": view.run.id, **fields})
    return {name: gr.update(value=value) for name, value in {"filled": filled, **fields}.items()}
