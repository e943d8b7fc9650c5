"""Estimated and measured memory of a run on the runs tab, and the button that starts it smaller after it ran out."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.advice import correction
from lora_studio.config import Config
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.hardware import devices
from lora_studio.parsing import merge, nest, parse, read_yaml
from lora_studio.ui import text
from lora_studio.ui.plan_words import gib
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A line of numbers, and the button that is there only after the memory ran out."""
    parts: dict[str, Any] = {"numbers": gr.HTML(elem_id="run-memory", visible=False)}
    parts["retry"] = gr.Button(variant="primary", visible=False, elem_id="run-retry")
    said = gr.HTML(visible=False)

    def start(run_id: str) -> tuple[Any, Any]:
        folder = studio.workspace.run(run_id)
        change = retry_of(folder, studio.supervisor.state(run_id))
        if change is None:
            return gr.skip(), gr.HTML(visible=False)
        try:
            smaller = parse(merge(config_of(folder).model_dump(), nest(change["settings"])))  # out of a file: checked
            return studio.supervisor.launch(smaller), gr.HTML(visible=False)
        except StudioError as error:
            return gr.skip(), gr.HTML(text.problem(error), visible=True)

    parts["retry"].click(start, shared.run, [shared.run, said], trigger_mode="once", **QUIET)
    return parts


def stamp(look: Look) -> Hashable:
    return look.mark, stat_of(look.folder.complete)


def view(look: Look) -> dict[str, Any]:
    change = retry_of(look.folder, look.run)
    label = f"Start it again so: {change['title']}" if change else ""
    button = gr.update(value=label, visible=bool(change))
    return {"numbers": words(look.run, look.folder.read_result()) or None, "retry": button}


def words(run: RunState, result: dict[str, Any]) -> str:
    """Estimated x GiB, measured y GiB, and why checkpointing is on or off."""
    if run.memory is None:
        return ""
    measured = result.get("peak_memory_bytes")
    parts = [f"estimated {gib(run.memory.measurable_bytes)}"]
    parts += [f"measured {gib(measured)}"] if measured else []
    sentence = f"Memory: {', '.join(parts)}. {run.memory.reason}".strip()
    return text.quiet(sentence)


def config_of(folder: RunFolder) -> Config:
    return parse(read_yaml(folder.config))


def retry_of(folder: RunFolder, run: RunState) -> dict[str, Any] | None:
    """The change that fits, after the memory ran out: the worker's own word, or ours where it was killed."""
    if run.state != "failed":
        return None
    if run.reason is None or not run.reason.by_the_system:
        found: dict[str, Any] | None = folder.read_result().get("retry")
        return found
    device = devices()[0]
    chosen = run.memory.gradient_checkpointing if run.memory else None
    room = run.memory.available_bytes if run.memory else device.memory_total
    change = correction(config_of(folder), chosen, device.kind, needed=0, available=room)
    return {"title": change.title, "settings": dict(change.settings)} if change else None
