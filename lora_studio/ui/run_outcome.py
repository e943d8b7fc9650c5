"""How a run ended, at the top of the runs tab: why it failed or stopped, or what its adapter does beside the base."""

from collections.abc import Hashable, Mapping
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.health import is_worse
from lora_studio.jobs.ending_words import ending_words
from lora_studio.parsing import parse, read_yaml
from lora_studio.ui import text
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """The ending in words, and the comparison with the base."""
    return {
        "ending": gr.HTML(elem_id="run-ending", visible=False),
        "outcome": gr.HTML(elem_id="run-outcome", visible=False),
    }


def stamp(look: Look) -> Hashable:
    return look.mark, stat_of(look.folder.complete)


def view(look: Look) -> dict[str, Any]:
    """Why the run ended, where that needs words; the comparison, where there is one."""
    measured = comparison(look)
    return {"ending": ending(look.run) or None, "outcome": compared(measured, look.folder) if measured else None}


def comparison(look: Look) -> dict[str, Any] | None:
    """A finished run's comparison with its base; None where it was not measured."""
    return look.folder.read_result().get("difference") if look.run.final else None


def is_collapsed(look: Look) -> bool:
    """Whether the run's adapter is worse than its base."""
    measured = comparison(look)
    return measured is not None and is_worse(measured, _method(look.folder))


def _method(folder: RunFolder) -> str:
    try:
        return parse(read_yaml(folder.config)).training.method
    except StudioError:  # settings of an older version
        return "sft"


def ending(run: RunState) -> str:
    """What a person should know of how a run ended; "" while it goes on, or where there is nothing to add."""
    message, hint = ending_words(run)
    if not run.final or not (message or hint):
        return ""
    return text.notice(message, hint, "error" if run.state == "failed" else "info")


def compared(measured: Mapping[str, Any], folder: RunFolder) -> str:
    """The worker's sentence on base and adapter: an error where the adapter is the worse of both."""
    kind = "error" if is_worse(measured, _method(folder)) else "good" if measured["moves"] else "warning"
    return text.notice(measured["sentence"], measured["rows_sentence"], kind)
