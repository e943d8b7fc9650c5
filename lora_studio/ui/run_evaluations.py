"""The evaluations in which a run's adapter or one of its checkpoints answered, on the runs tab."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.evaluations import of_run
from lora_studio.job_folders import EvaluationFolder
from lora_studio.ui import browser, job_list, text
from lora_studio.ui.evaluate_words import headline
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio, opening


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A fold with the list and the way to the evaluate tab."""
    with gr.Accordion("Evaluations", open=False, elem_id="run-evaluations") as fold:
        listed = gr.HTML(js_on_load=browser.on_load("clicks"))

    def act(event: gr.EventData) -> Any:
        return opening("evaluate", **{"job" if event.act == "open" else "adapter": str(event.value)})

    listed.click(act, None, [shared.wish, shared.tabs], **QUIET)
    return {"fold": fold, "listed": listed}


def stamp(look: Look) -> Hashable:
    return look.run.id, look.run.final, len(look.run.checkpoints), touched(look.studio.workspace.evaluations_folder)


def touched(folder: Path) -> tuple[tuple[str, int], ...]:
    """When each evaluation's folder last got a file: its numbers come as one."""
    if not folder.is_dir():
        return ()
    return tuple((name, stat_of(folder / name)[1]) for name in sorted(os.listdir(folder)))


def view(look: Look) -> dict[str, Any]:
    found = of_run(look.studio.workspace, look.run.id)
    words = f"Evaluations: {len(found)}" if found else "Evaluations"
    return {"fold": gr.update(label=words), "listed": listing(found, look.run.id, bool(look.run.checkpoints))}


def listing(found: list[EvaluationFolder], run_id: str, there: bool) -> str:
    """Each evaluation with what it came to, and a button to make another; `there` says whether an adapter is."""
    another = job_list.buttons(("new", run_id, "Evaluate this run…")) if there else ""
    if not found:
        return text.empty("No evaluation yet", "A test file shows what the adapter learned, beside its base.") + another
    return text.render("runs.evaluations", [_listed(folder) for folder in found]) + another


def _listed(folder: EvaluationFolder) -> tuple[str, str, str]:
    measured = folder.read_result()
    return folder.id, folder.read_facts()["title"], headline(measured) if measured else "not measured yet"
