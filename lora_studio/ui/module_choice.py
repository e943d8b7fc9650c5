"""The real module names of the chosen model, to choose from instead of typing them into the form.

They come from the model's config alone: the session builds it without weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.client import Session
from lora_studio.ui import text

FIELDS = {"linear": "lora.target_modules", "whole": "lora.modules_to_save"}
"""Which setting each list of names is for."""


@dataclass(frozen=True)
class ModuleChoice:
    """The components, drawn into the fold that holds both settings."""

    look: gr.Button
    said: gr.HTML
    lists: dict[str, gr.Dropdown]

    @property
    def parts(self) -> list[Any]:
        return [self.said, *self.lists.values()]


def draw() -> ModuleChoice:
    look = gr.Button("Show the names of this model's modules", size="sm", elem_id="modules-look")
    said = gr.HTML(visible=False, elem_id="modules-said")
    words = {
        "linear": ("Modules for the adapter", "What you choose is written into Target modules."),
        "whole": ("Modules to train whole", "What you choose is written into Modules trained whole; mostly none."),
    }
    lists = {
        kind: gr.Dropdown(
            [], label=label, info=info, multiselect=True, visible=False, value=[], elem_id=f"modules-{kind}"
        )
        for kind, (label, info) in words.items()
    }
    return ModuleChoice(look, said, lists)


def names(session: Session, model: str, revision: str | None) -> dict[str, list[str]]:
    """Names of the model's modules by kind. Raises `StudioError` where the model can't be looked at."""
    found = session.call("modules", model=model, revision=revision or None)
    return {kind: list(found[kind]) for kind in FIELDS}


def wire(
    choice: ModuleChoice,
    session: Session,
    model: Sequence[gr.Textbox],
    given: Sequence[Any],
    shown: Sequence[Any],
    change: Callable[[dict[str, Any], Sequence[Any]], dict[Any, Any]],
    quiet: dict[str, Any],
) -> None:
    """`model` are the widgets of name and revision; `change(settings, given)` puts settings into the form."""

    def look(name: str, revision: str) -> Iterator[dict[Any, Any]]:
        yield {choice.said: gr.HTML(text.progress("Reading the model's config"), visible=True)}
        try:
            found = names(session, name.strip(), revision.strip())
        except StudioError as error:
            yield {choice.said: gr.HTML(text.problem(error), visible=True)}
            return
        shown_lists = {
            box: gr.Dropdown(choices=found[kind], value=[], visible=True) for kind, box in choice.lists.items()
        }
        yield {choice.said: gr.HTML(visible=False), **shown_lists}

    def writer(path: str) -> Callable[..., dict[Any, Any]]:
        def write(chosen: list[str], *values: Any) -> dict[Any, Any]:
            return change({path: ", ".join(chosen) or ("all-linear" if path == FIELDS["linear"] else None)}, values)

        return write

    choice.look.click(look, list(model), choice.parts, trigger_mode="once", **quiet)
    for kind, box in choice.lists.items():
        box.input(writer(FIELDS[kind]), [box, *given], list(shown), **quiet)
