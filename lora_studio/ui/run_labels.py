"""Tags and note of a run on the runs tab, saved when the field is left."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.labels import Labels, read_labels, tags_of, write_labels
from lora_studio.ui import text
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Two fields. The run they belong to travels with them: another may be chosen while they are saved."""
    owner = gr.Textbox(visible=False)
    with gr.Row(elem_classes="run-labels"):
        tags = gr.Textbox(
            label="Tags", placeholder="words with commas between, to find this run by", max_lines=1, elem_id="run-tags"
        )
        note = gr.Textbox(
            label="Note", placeholder="what you tried and what you saw", lines=1, max_lines=8, elem_id="run-note"
        )
    said = gr.HTML(visible=False)

    def save(run_id: str, typed_tags: str, typed_note: str) -> Any:
        try:
            run = studio.workspace.run(run_id)
            labels = Labels(tags_of(typed_tags), typed_note.strip())
            if labels != read_labels(run):
                write_labels(run, labels)
        except StudioError as error:
            return gr.HTML(text.problem(error), visible=True)
        return gr.HTML(visible=False)

    gr.on([tags.blur, tags.submit, note.blur], save, [owner, tags, note], said, **QUIET)
    shared.run.change(lambda: gr.HTML(visible=False), None, said, **QUIET)
    return {"owner": owner, "tags": tags, "note": note}


def stamp(look: Look) -> Hashable:
    return look.run.id, stat_of(look.folder.labels)


def view(look: Look) -> dict[str, Any]:
    try:
        labels = read_labels(look.folder)
    except StudioError as error:
        labels = Labels(note=error.message)  # it is not written over: saving reads the file first, and says so
    return {
        "owner": gr.update(value=look.run.id),
        "tags": gr.update(value=", ".join(labels.tags)),
        "note": gr.update(value=labels.note),
    }
