"""Tags and note of a run on the runs tab, saved when the field is left."""

import json
from collections.abc import Callable, Hashable
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.labels import Labels, read_labels, tags_of, write_labels
from lora_studio.ui import text
from lora_studio.ui.run_section import QUIET, Look
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import Workspace


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Two fields. What they were filled with travels along: another run may be chosen while they are saved.

    They are filled when a run is opened and never while it is looked at: what is being typed is not written over.
    """
    filled = gr.Textbox(visible=False)
    with gr.Row(elem_classes="run-labels"):
        tags = gr.Textbox(
            label="Tags", placeholder="words with commas between, to find this run by", max_lines=1, elem_id="run-tags"
        )
        note = gr.Textbox(
            label="Note", placeholder="what you tried and what you saw", lines=1, max_lines=8, elem_id="run-note"
        )
    said = gr.HTML(visible=False)

    def save(name: str) -> Callable[[str, str], tuple[Any, Any]]:
        def handler(before: str, typed: str) -> tuple[Any, Any]:
            try:
                return saved(studio.workspace, json.loads(before), name, typed), gr.HTML(visible=False)
            except StudioError as error:
                return gr.skip(), gr.HTML(text.problem(error), visible=True)

        return handler

    # One after the other, none left out: the second field may be left while the first is still being saved.
    queued: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "labels", **QUIET}
    gr.on([tags.blur, tags.submit], save("tags"), [filled, tags], [filled, said], **queued)
    note.blur(save("note"), [filled, note], [filled, said], **queued)
    shared.run.change(lambda: gr.HTML(visible=False), None, said, **QUIET)
    return {"filled": filled, "tags": tags, "note": note}


def saved(workspace: Workspace, before: dict[str, str], name: str, typed: str) -> Any:
    """Writes the one field that was changed, and gives what the fields hold now; nothing where it was only left."""
    if typed == before[name]:
        return gr.skip()
    run = workspace.run(before["run"])
    old = read_labels(run)
    new = Labels(tags_of(typed), old.note) if name == "tags" else Labels(old.tags, typed.strip())
    write_labels(run, new)
    return json.dumps({**before, name: typed})


def stamp(look: Look) -> Hashable:
    return look.run.id


def view(look: Look) -> dict[str, Any]:
    try:
        labels = read_labels(look.folder)
    except StudioError as error:
        labels = Labels(note=error.message)  # it is not written over: saving reads the file first, and says so
    shown = {"tags": ", ".join(labels.tags), "note": labels.note}
    filled = json.dumps({"run": look.run.id, **shown})
    return {name: gr.update(value=value) for name, value in {"filled": filled, **shown}.items()}
