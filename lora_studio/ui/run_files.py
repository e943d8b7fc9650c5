"""A run's log and its settings, as its folder holds them, on the runs tab."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio import lengthened
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Two folds."""
    parts: dict[str, Any] = {}
    with gr.Accordion("Log", open=False):
        parts["log"] = gr.Textbox(lines=14, max_lines=14, show_label=False, container=False, elem_id="log")
    with gr.Accordion("Settings of this run", open=False):
        parts["settings"] = gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24)
    return parts


def stamp(look: Look) -> Hashable:
    return look.run.id, stat_of(look.folder.log), lengthened.words(look.run)


def view(look: Look) -> dict[str, Any]:
    longer = lengthened.words(look.run)
    return {
        "log": look.studio.supervisor.log(look.run.id),
        "settings": (f"# {longer}\n" if longer else "") + look.folder.config.read_text(encoding="utf-8"),
    }
