"""The curves of a run on the runs tab, and how a person wants them drawn.

The wish is kept in the workspace and holds for every run, so that a reload does not lose it.
"""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import plots, run_words
from lora_studio.ui.curves import Style
from lora_studio.ui.run_section import QUIET, Look
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import Workspace

STYLE = "chart-style"


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Controls and chart. A change of the controls is drawn at once."""
    with gr.Column(visible=False) as row:
        controls = plots.controls(kept_style(studio.workspace))
    chart = plots.chart()

    def draw(run_id: str, *wishes: Any) -> Any:
        studio.workspace.write_draft(STYLE, list(wishes))
        try:
            run = studio.supervisor.state(run_id)
        except StudioError:  # deleted meanwhile: the tab takes it away
            return gr.skip()
        return studio.curves.draw({run_words.name_of(run): run}, plots.style(*wishes))

    changes = [widget.input for widget in controls.widgets]
    gr.on(changes, draw, [shared.run, *controls.widgets], chart, trigger_mode="always_last", **QUIET)
    return {"controls": row, "chart": chart}


def kept_style(workspace: Workspace) -> Style:
    """How curves were drawn last."""
    kept = workspace.read_draft(STYLE)
    try:
        return plots.style(*kept) if isinstance(kept, list) else Style()
    except (TypeError, ValueError):
        return Style()


def stamp(look: Look) -> Hashable:
    return look.mark, kept_style(look.studio.workspace)


def view(look: Look) -> dict[str, Any]:
    run = look.run
    style = kept_style(look.studio.workspace)
    return {"controls": bool(run.steps), "chart": look.studio.curves.draw({run_words.name_of(run): run}, style)}
