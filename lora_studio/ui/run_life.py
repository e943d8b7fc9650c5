"""What can be done with a run's life beside Stop and Resume: cancel it, give it more epochs, continue from its adapter.

Each has a sentence on what is kept, because the difference is not plain from the words on the buttons.
"""

import time
from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.parsing import parse, read_yaml
from lora_studio.settings import flatten
from lora_studio.ui import text
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio

GOING = (
    "<b>Stop</b> ends after the step and saves a checkpoint. <b>Cancel</b> ends at once: what came after the last "
    "checkpoint is lost, the checkpoints stay. Resume goes on after either."
)
ENDED = (
    "<b>Resume</b> goes on with the same settings, exactly as if the run had not ended. <b>More epochs</b> does so "
    "beyond the planned end, with the learning rate of a run that was so long from the start."
)
ADAPTER = "<b>Continue from its adapter</b> begins a new run that starts with what this one learnt, with new settings."


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A sentence and the controls that fit the run's state."""
    parts: dict[str, Any] = {}
    parts["words"] = gr.HTML(visible=False, elem_id="run-life")
    with gr.Row(elem_classes="run-life-row"):
        parts["cancel"] = gr.Button("Cancel", variant="stop", visible=False, size="sm", scale=0, elem_id="run-cancel")
        parts["epochs"] = gr.Number(1, label="Epochs more", minimum=0, visible=False, scale=0, elem_id="run-epochs")
        parts["extend"] = gr.Button("Train more epochs", visible=False, size="sm", scale=0, elem_id="run-extend")
        parts["continue"] = gr.Button(
            "Continue from its adapter…", visible=False, size="sm", scale=0, elem_id="run-continue"
        )
    said = gr.HTML(visible=False)

    def cancel(run_id: str) -> Any:
        return told(lambda: studio.supervisor.cancel(run_id))

    def extend(run_id: str, epochs: float | None) -> Any:
        return told(lambda: studio.supervisor.resume(run_id, checked(epochs)))

    def go_on(run_id: str) -> tuple[Any, Any]:
        return (time.time(), continuation(studio, run_id)), gr.Tabs(selected="train")

    parts["cancel"].click(cancel, shared.run, said, **QUIET)
    parts["extend"].click(extend, [shared.run, parts["epochs"]], said, **QUIET)
    parts["continue"].click(go_on, shared.run, [shared.form, shared.tabs], **QUIET)
    shared.run.change(lambda: gr.HTML(visible=False), None, said, **QUIET)
    return parts


def told(action: Any) -> Any:
    """Does something and shows what went wrong with it."""
    try:
        action()
    except StudioError as error:
        return gr.HTML(text.problem(error), visible=True)
    return gr.HTML(visible=False)


def checked(epochs: float | None) -> float:
    """The number of epochs as typed. Raises `StudioError` where there is none."""
    if not epochs or epochs < 0:
        raise StudioError("How many epochs more?", "Type a number above 0, such as 1 or 0.5.")
    return float(epochs)


def continuation(studio: Studio, run_id: str) -> dict[str, Any]:
    """The train form's values for a new run that begins with this run's adapter."""
    run = studio.workspace.run(run_id)
    values = flatten(parse(read_yaml(run.config)))
    title = f"{studio.supervisor.state(run.id).title or 'run'}, continued"
    return values | {"title": title[:120], "model.adapter_name_or_path": run.id}


def stamp(look: Look) -> Hashable:
    return look.run.id, look.run.state, stat_of(look.folder.checkpoints), stat_of(look.folder.adapter)


def view(look: Look) -> dict[str, Any]:
    going = look.run.state in ("running", "stopping")
    saved = bool(look.folder.checkpoint_folders())
    usable = look.run.final and (saved or look.folder.adapter.is_dir())
    longer = look.run.final and (saved or look.run.state != "done")
    sentences = [GOING if going else "", ENDED if longer else "", ADAPTER if usable else ""]
    return {
        "words": f'<p class="quiet">{" ".join(filter(None, sentences))}</p>' if any(sentences) else None,
        "cancel": going,
        "epochs": longer,
        "extend": longer,
        "continue": usable,
    }
