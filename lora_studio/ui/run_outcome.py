"""Whether a finished run's adapter does anything, in a sentence, at the top of the run on the runs tab."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio.ui import text
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    return {"outcome": gr.HTML(elem_id="run-outcome", visible=False)}


def stamp(look: Look) -> Hashable:
    return look.run.id, look.run.final, stat_of(look.folder.complete)


def view(look: Look) -> dict[str, Any]:
    """The sentence that the worker wrote of its measurement; nothing where it did not measure."""
    measured = look.folder.read_result().get("difference") if look.run.final else None
    if not measured:
        return {"outcome": None}
    kind = "good" if measured["moves"] else "warning"
    return {"outcome": text.notice(measured["sentence"], measured["rows_sentence"], kind)}
