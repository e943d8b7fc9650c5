"""The checkpoints of a run that are on disk, on the runs tab."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.events import RunState
from lora_studio.ui import run_words, text
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A fold with the table."""
    with gr.Accordion("Checkpoints", open=False):
        return {"table": gr.HTML()}


def stamp(look: Look) -> Hashable:
    return look.run.id, tuple(look.run.checkpoints), stat_of(look.folder.checkpoints)


def view(look: Look) -> dict[str, Any]:
    return {"table": checkpoints(look.run, look.folder.checkpoints)}


def checkpoints(run: RunState, folder: Path) -> str:
    """The checkpoints that are still on disk, with step, validation loss and size; the best one is named."""
    rows = []
    present = [item for item in run.checkpoints if (folder / item.name).is_dir()]
    best = min((item for item in present if item.loss is not None), key=lambda item: item.loss or 0.0, default=None)
    for item in reversed(present):
        octets = sum(path.stat().st_size for path in (folder / item.name).rglob("*") if path.is_file())
        loss = run_words.figure(item.loss) + (" (best)" if item is best and len(present) > 1 else "")
        rows.append((item.name, f"{item.step:,}", loss, text.size(octets)))
    if not rows:
        return text.empty("No checkpoint yet", "One is saved after each epoch, unless the settings say otherwise.")
    return text.table(("Checkpoint", "Step", "Validation loss", "Size"), rows, "Checkpoints of this run")
