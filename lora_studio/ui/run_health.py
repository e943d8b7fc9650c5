"""What is wrong with a run, on the runs tab: a short list, each entry with what mends it and a button that applies it.

The button fills the train tab's form with the run's own settings and the change; nothing starts by itself.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.health import Diagnosis, of_folder
from lora_studio.lengthened import settings_of
from lora_studio.settings import flatten
from lora_studio.ui import browser, form, run_words, text
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder

_LOOK_SECONDS = 5  # a silence grows without any event
WORDS = {"error": "Serious", "warning": "Look at this"}


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """The list; a click on a button goes to the train tab."""
    found = gr.HTML(js_on_load=browser.on_load("clicks"), elem_id="run-health", visible=False)

    def apply(event: gr.EventData, run_id: str) -> tuple[Any, Any]:
        values = changed(studio, run_id, event.value)
        if values is None:
            return gr.skip(), gr.skip()
        origin = f"{run_words.name_of(studio.supervisor.state(run_id))} with the change"
        return (time.time(), values, origin), gr.Tabs(selected="train")

    found.click(apply, shared.run, [shared.data, shared.tabs], **QUIET)
    return {"found": found}


def stamp(look: Look) -> Hashable:
    return (
        look.mark,
        stat_of(look.folder.complete),
        int(look.now / _LOOK_SECONDS) if look.run.state == "running" else None,
    )


def view(look: Look) -> dict[str, Any]:
    found = of_folder(look.run, look.folder.config, look.now, measured(look.folder, look.run))
    return {"found": listed(found) if found else None}


def measured(folder: RunFolder, run: RunState) -> dict[str, Any] | None:
    """A finished run's comparison with its base."""
    return folder.read_result().get("difference") if run.final else None


def changed(studio: Studio, run_id: str, name: str) -> dict[str, Any] | None:
    """The run's settings with the change of a diagnosis, by path; None where the run or the trouble is gone."""
    try:
        run, folder = studio.supervisor.state(run_id), studio.workspace.run(run_id)
    except StudioError:
        return None
    for found in of_folder(run, folder.config, time.time(), measured(folder, run)):
        if found.name == name:
            return {**flatten(settings_of(folder, run)), **found.settings}
    return None


def listed(found: Sequence[Diagnosis]) -> str:
    """The list as markup."""
    return text.render("runs.health", [(each, WORDS[each.severity], _changes(each)) for each in found])


def _changes(found: Diagnosis) -> str:
    return ", ".join(f"{form.title_of(path)}: {form.in_words(path, value)}" for path, value in found.settings.items())
