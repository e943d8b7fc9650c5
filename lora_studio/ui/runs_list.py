"""Which runs there are, on the runs tab: the list to choose from, and what stands there while there is none."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_studio.events import RunState
from lora_studio.ui import run_words, text
from lora_studio.ui.run_section import QUIET
from lora_studio.ui.studio import Shared, Studio

SELECTION = "selected-run"
_CHOOSE = """
let focused = '';
element.addEventListener('focusin', event => { focused = event.target.dataset.run || ''; });
element.addEventListener('focusout', () => { focused = ''; });
element.addEventListener('click', event => {
  const card = event.target.closest('[data-run]');
  if (card) trigger('click', {run: card.dataset.run});
});
watch('value', () => { if (focused) element.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus(); });
"""


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """The list; a click on a run makes it the one that is looked at."""
    listed = gr.HTML(js_on_load=_CHOOSE, elem_id="run-list")

    def choose(event: gr.EventData) -> str:
        studio.workspace.write_draft(SELECTION, event.run)
        return event.run

    listed.click(choose, None, shared.run, **QUIET)
    return {"list": listed}


def view(runs: Sequence[RunState], chosen: str, now: float) -> dict[str, Any]:
    """The runs, newest first."""
    if not runs:
        hint = "Press Start on the Train tab: its settings already fit the built-in model and data."
        return {"list": text.empty("No run yet", hint)}
    return {"list": run_words.cards(list(runs), chosen, now)}


def opening_run(studio: Studio) -> str:
    """The run to look at when the page opens: the one that runs, else the one last looked at, else the newest."""
    runs = studio.supervisor.runs()
    active = next((run.id for run in runs if run.state in ("running", "stopping")), None)
    last = studio.workspace.read_draft(SELECTION)
    known = {run.id for run in runs}
    return active or (last if last in known else None) or (runs[0].id if runs else "")
