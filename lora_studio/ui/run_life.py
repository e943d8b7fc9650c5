"""How a run's life goes on beyond Stop and Resume: more epochs, or a new run that continues from its adapter.

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
RESUME = "<b>Resume</b> goes on with the same settings, exactly as if the run had not ended."
LONGER = "<b>More epochs</b> goes on beyond the planned end, with the learning rate of a run planned so long at first."
ADAPTER = "<b>Continue from its adapter</b> begins a new run that starts with what this one learnt, with new settings."


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Sentences, and for a run that ended a fold with the controls that fit its state."""
    parts: dict[str, Any] = {"words": gr.HTML(visible=False, elem_id="run-life")}
    with gr.Accordion("Train it further", open=False, visible=False, elem_id="run-further") as parts["further"]:
        parts["ways"] = gr.HTML()
        with gr.Row(elem_classes="run-life-row"):
            parts["epochs"] = gr.Number(1, label="Epochs more", minimum=0, scale=0, min_width=150, elem_id="run-epochs")
            parts["extend"] = gr.Button("Train more epochs", size="md", scale=0, min_width=0, elem_id="run-extend")
            parts["continue"] = gr.Button(
                "Continue from its adapter…", size="md", scale=0, min_width=0, elem_id="run-continue"
            )
    said = gr.HTML(visible=False)

    def extend(run_id: str, epochs: float | None) -> Any:
        return told(lambda: studio.supervisor.resume(run_id, checked(epochs)))

    def go_on(run_id: str) -> tuple[Any, Any]:
        return (time.time(), continuation(studio, run_id), f"Continued from {run_id}"), gr.Tabs(selected="train")

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
    state = look.run.state
    saved = bool(look.folder.checkpoint_folders())
    usable = look.run.final and (saved or look.folder.adapter.is_dir())
    longer = look.run.final and (saved or state != "done")
    words = GOING if state in ("running", "stopping") else RESUME if state in ("stopped", "failed") else ""
    ways = " ".join([LONGER] * longer + [ADAPTER] * usable)
    return {
        "words": _quiet(words) if words else None,
        "further": longer or usable,
        "ways": _quiet(ways),
        "epochs": longer,
        "extend": longer,
        "continue": usable,
    }


def _quiet(words: str) -> str:
    return f'<p class="quiet">{words}</p>'
