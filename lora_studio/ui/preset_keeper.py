"""The fold under the presets: keep the form's settings as a preset of one's own, replace or delete one.

The tab gives a function that reads the form and one that shows it anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config import Config
from lora_studio.errors import StudioError
from lora_studio.parsing import ConfigError
from lora_studio.presets import NameTakenError, delete_preset, own_presets, save_preset
from lora_studio.ui import text
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class Keeper:
    """The fold's components."""

    name: gr.Textbox
    about: gr.Textbox
    save: gr.Button
    replace: gr.Button
    delete: gr.Button
    said: gr.HTML


def draw() -> Keeper:
    with gr.Accordion("Keep these settings as a preset of your own", open=False, elem_id="preset-keeper"):
        with gr.Row():
            name = gr.Textbox(label="Name", info="Letters, digits, dashes.", max_lines=1, elem_id="preset-name")
            about = gr.Textbox(
                label="What it is for", info="One sentence for the list.", max_lines=1, elem_id="preset-sentence"
            )
        said = gr.HTML(visible=False, elem_id="preset-said")
        with gr.Row(elem_classes="actions"):
            save = gr.Button("Save preset", size="sm", elem_id="preset-save")
            replace = gr.Button("Replace it", size="sm", visible=False, elem_id="preset-replace")
            delete = gr.Button("Delete this preset", size="sm", visible=False, elem_id="preset-delete")
    return Keeper(name, about, save, replace, delete, said)


def updates(keeper: Keeper, workspace: Workspace, preset: str | None) -> dict[Any, Any]:
    """What the fold shows beside a chosen preset: only one's own can be deleted."""
    label = f"Delete {preset}" if preset in own_presets(workspace) else ""
    return {keeper.delete: gr.Button(label, visible=bool(label)), keeper.replace: gr.Button(visible=False)}


def keep(
    workspace: Workspace,
    read: Callable[[Sequence[Any]], Config],
    name: str,
    about: str,
    raws: Sequence[Any],
    again: bool,
) -> tuple[str | None, str, bool]:
    """Saves the form: the preset's name or None, what to say, and whether to ask for a replacement."""
    try:
        kept = save_preset(workspace, name, read(raws), about, replace=again)
    except NameTakenError as error:
        return None, text.problem(error), True
    except ConfigError as error:
        words = "\n".join(str(problem) for problem in error.problems)
        return None, text.notice("Only settings that are right can be kept:", words, "error"), False
    except StudioError as error:
        return None, text.problem(error), False
    return kept.name, text.notice(f"Kept as {kept.name}.", "It is in the list of presets now.", "good"), False


def wire(
    keeper: Keeper,
    workspace: Workspace,
    preset: gr.Dropdown,
    widgets: Sequence[Any],
    shown: Sequence[Any],
    read: Callable[[Sequence[Any]], Config],
    show: Callable[[str | None, Sequence[Any]], dict[Any, Any]],
    quiet: dict[str, Any],
) -> None:
    """`show(preset, raws)` fills the tab anew with a preset chosen."""
    outputs = [*shown, keeper.name, keeper.about, keeper.said, keeper.replace]

    def saved(again: bool, name: str, about: str, raws: Sequence[Any]) -> dict[Any, Any]:
        kept, words, ask = keep(workspace, read, name, about, raws, again)
        said = {keeper.said: gr.HTML(words, visible=True), keeper.replace: gr.Button(visible=ask)}
        return said if kept is None else {**show(kept, raws), **said, keeper.name: "", keeper.about: ""}

    def save(name: str, about: str, *raws: Any) -> dict[Any, Any]:
        return saved(False, name, about, raws)

    def replace(name: str, about: str, *raws: Any) -> dict[Any, Any]:
        return saved(True, name, about, raws)

    def delete(name: str | None, *raws: Any) -> dict[Any, Any]:
        try:
            delete_preset(workspace, name or "")
        except StudioError as error:
            return {keeper.said: gr.HTML(text.problem(error), visible=True)}
        words = text.notice(f"{name} is deleted.", "The settings in the form stay.", "info")
        return {**show(None, raws), keeper.said: gr.HTML(words, visible=True)}

    keeper.save.click(save, [keeper.name, keeper.about, *widgets], outputs, trigger_mode="once", **quiet)
    keeper.replace.click(replace, [keeper.name, keeper.about, *widgets], outputs, trigger_mode="once", **quiet)
    keeper.delete.click(delete, [preset, *widgets], outputs, trigger_mode="once", **quiet)
