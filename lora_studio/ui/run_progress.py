"""A run in numbers on the runs tab: what a person should know of it, and what it comes to so far."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.events import RunState
from lora_studio.ui import live, text
from lora_studio.ui.run_section import Look
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Notices, phases and tiles."""
    return {
        "notices": gr.HTML(elem_id="run-notices"),
        "phases": gr.HTML(elem_id="run-phases"),
        "numbers": gr.HTML(elem_id="run-numbers"),
    }


def stamp(look: Look) -> Hashable:
    """Times pass while the run goes on."""
    return look.mark, None if look.run.final else int(look.now)


def view(look: Look) -> dict[str, Any]:
    return {
        "notices": notices(look.run) or None,
        "phases": live.phases(look.run),
        "numbers": text.tiles(live.numbers(look.run, look.now)),
    }


def notices(run: RunState) -> str:
    """The warnings of a run, each once."""
    return "".join(text.notice(message, kind="warning") for message in dict.fromkeys(run.warnings))
