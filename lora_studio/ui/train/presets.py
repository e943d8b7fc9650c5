"""Presets of one's own, the modules to choose from, and the notice of what filled the form.

Module names come from the model's config without weights. A preset, a config file, the Data tab and an earlier run fill
the form in one click, which Undo takes back.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import ConfigError, NameTakenError, delete_preset, own_presets, save_preset
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import Modules
from lora_studio.jobs.session import Session
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.components import QUIET, Updates
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class Keeper:
    """The fold's components."""

    name: gr.Textbox
    about: gr.Textbox
    save: gr.Button
    replace: gr.Button
    delete: gr.Button
    result_box: gr.HTML


def draw_presets() -> Keeper:
    with gr.Accordion("Save as preset", open=False, elem_id="preset-keeper"):
        with gr.Row():
            name = gr.Textbox(label="Name", info="Letters, digits, dashes.", max_lines=1, elem_id="preset-name")
            about = gr.Textbox(
                label="Description",
                info="One sentence for the list of presets.",
                max_lines=1,
                elem_id="preset-sentence",
            )
        result_box = gr.HTML(visible=False, elem_id="preset-said")
        with gr.Row(elem_classes="actions"):
            save = gr.Button("Save preset", size="sm", elem_id="preset-save")
            replace = gr.Button("Replace preset", size="sm", visible=False, elem_id="preset-replace")
            delete = gr.Button("Delete preset", size="sm", visible=False, elem_id="preset-delete")
    return Keeper(name, about, save, replace, delete, result_box)


def updates(keeper: Keeper, workspace: Workspace, preset: str | None) -> Updates:
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
        preset = save_preset(workspace, name, read(raws), about, replace=again)
    except NameTakenError as error:
        return None, html.problem(error), True
    except ConfigError as error:
        words = "\n".join(str(problem) for problem in error.problems)
        return None, html.notice("Only valid settings can be saved:", words, "error"), False
    except StudioError as error:
        return None, html.problem(error), False
    return preset.name, html.notice(f"Saved as preset {preset.name}.", "", "good"), False


def wire_presets(
    keeper: Keeper,
    workspace: Workspace,
    preset: gr.Dropdown,
    widgets: Sequence[Any],
    outputs: Sequence[Any],
    read: Callable[[Sequence[Any]], Config],
    show: Callable[[str | None, Sequence[Any]], Updates],
) -> None:
    """`show(preset, raws)` fills the tab anew with a preset chosen."""
    touched = [*outputs, keeper.name, keeper.about, keeper.result_box, keeper.replace]

    def saved(again: bool, name: str, about: str, raws: Sequence[Any]) -> Updates:
        preset_name, words, ask = keep(workspace, read, name, about, raws, again)
        result = {keeper.result_box: gr.HTML(words, visible=True), keeper.replace: gr.Button(visible=ask)}
        return (
            result if preset_name is None else {**show(preset_name, raws), **result, keeper.name: "", keeper.about: ""}
        )

    def save(name: str, about: str, *raws: Any) -> Updates:
        return saved(False, name, about, raws)

    def replace(name: str, about: str, *raws: Any) -> Updates:
        return saved(True, name, about, raws)

    def delete(name: str | None, *raws: Any) -> Updates:
        try:
            delete_preset(workspace, name or "")
        except StudioError as error:
            return {keeper.result_box: gr.HTML(html.problem(error), visible=True)}
        words = html.notice(f"Preset {name} deleted.", "The settings in the form stay.", "info")
        return {**show(None, raws), keeper.result_box: gr.HTML(words, visible=True)}

    keeper.save.click(save, [keeper.name, keeper.about, *widgets], touched, trigger_mode="once", **QUIET)
    keeper.replace.click(replace, [keeper.name, keeper.about, *widgets], touched, trigger_mode="once", **QUIET)
    keeper.delete.click(delete, [preset, *widgets], touched, trigger_mode="once", **QUIET)


FIELDS = {"linear": "lora.target_modules", "whole": "lora.modules_to_save"}
"""Which setting each list of names is for."""


@dataclass(frozen=True)
class ModuleChoice:
    """The components, drawn into the fold that holds both settings."""

    look: gr.Button
    result_box: gr.HTML
    lists: dict[str, gr.Dropdown]

    @property
    def parts(self) -> list[Any]:
        return [self.result_box, *self.lists.values()]


def draw_modules() -> ModuleChoice:
    look = gr.Button("List the modules of this model", size="sm", elem_id="modules-look")
    result_box = gr.HTML(visible=False, elem_id="modules-said")
    words = {
        "linear": ("Target modules of this model", "Your choice fills Target modules."),
        "whole": ("Modules to train in full", "Your choice fills Modules to save."),
    }
    lists = {
        kind: gr.Dropdown(
            [], label=label, info=info, multiselect=True, visible=False, value=[], elem_id=f"modules-{kind}"
        )
        for kind, (label, info) in words.items()
    }
    return ModuleChoice(look, result_box, lists)


def names(session: Session, model: str, revision: str | None) -> dict[str, list[str]]:
    """Names of the model's modules by kind. Raises `StudioError` where the model can't be looked at."""
    names = session.call(Modules(model=model, revision=revision or None))
    return {"linear": names.linear, "whole": names.whole}


def wire_modules(
    choice: ModuleChoice,
    session: Session,
    model: Sequence[gr.Textbox],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    change: Callable[[SettingValues, Sequence[Any]], Updates],
) -> None:
    """`model` are the widgets of name and revision; `change(settings, given)` puts settings into the form."""

    def look(name: str, revision: str) -> Iterator[Updates]:
        yield {choice.result_box: gr.HTML(html.progress("Reading the model config"), visible=True)}
        try:
            modules = names(session, name.strip(), revision.strip())
        except StudioError as error:
            yield {choice.result_box: gr.HTML(html.problem(error), visible=True)}
            return
        shown_lists = {
            box: gr.Dropdown(choices=modules[kind], value=[], visible=True) for kind, box in choice.lists.items()
        }
        yield {choice.result_box: gr.HTML(visible=False), **shown_lists}

    def writer(path: str) -> Callable[..., Updates]:
        def write(selected: list[str], *values: Any) -> Updates:
            return change({path: ", ".join(selected) or ("all-linear" if path == FIELDS["linear"] else None)}, values)

        return write

    choice.look.click(look, list(model), choice.parts, trigger_mode="once", **QUIET)
    for kind, box in choice.lists.items():
        box.input(writer(FIELDS[kind]), [box, *inputs], list(outputs), **QUIET)


DRAFT = "form-before"
MAX_LISTED = 6
"""Changes listed in sight; the others are in a fold."""
MAX_VALUE_LENGTH = 40


Lists = Sequence[tuple[str, Sequence[tuple[str, str]]]]
"""What else is told of the origin of a form: titles, each with lines of (text, remark)."""


class FormBefore(TypedDict):
    """The draft that an undo brings back: the form as it was, and the changes since."""

    origin: str
    preset: str | None
    values: SettingValues
    changed: list[tuple[str, str, str]]
    lists: NotRequired[Lists]


@dataclass(frozen=True)
class Notice:
    """The notice's components, hidden while there is nothing to undo."""

    row: gr.Row
    words: gr.HTML
    undo: gr.Button

    @property
    def parts(self) -> list[Any]:
        return [self.row, self.words, self.undo]


def draw_changes() -> Notice:
    with gr.Row(visible=False, elem_id="form-changes") as row:
        words = gr.HTML(min_width=220)
        undo = gr.Button("Undo", size="sm", scale=0, min_width=80, elem_id="form-undo")
    return Notice(row, words, undo)


def changes(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Settings that differ between two forms: (title, value before, value after) in words."""
    pairs = zip(forms.values(before).items(), forms.values(after).values(), strict=True)
    changed = []
    for (path, old), new in pairs:
        if old != new:
            words = [html.shorten(value, MAX_VALUE_LENGTH) for value in forms.each_in_words(path, (old, new))]
            changed.append((forms.title_of(path), words[0], words[1]))
    return changed


def listed(origin: str, changed: Sequence[tuple[str, str, str]], lists: Lists = ()) -> str:
    """The notice as markup: where the values come from, then each change, and what else is told."""
    counted = html.count(len(changed), "setting")
    return html.render("train.changes", origin, counted, changed[:MAX_LISTED], changed[MAX_LISTED:], lists)


def record(
    notice: Notice,
    workspace: Workspace,
    origin: str,
    before: tuple[str | None, Sequence[Any]],
    after: Sequence[Any],
    lists: Lists = (),
) -> Updates:
    """The notice after the page filled the form; `before` is the preset and the form it had. Raises `StudioError`."""
    changed = changes(before[1], after)
    if not (changed or lists):
        return clear(notice, workspace)
    values = forms.to_draft(before[1])
    draft: FormBefore = {"origin": origin, "preset": before[0], "values": values, "changed": changed, "lists": lists}
    workspace.write_draft(DRAFT, draft)
    return _shown(notice, origin, changed, lists)


def clear(notice: Notice, workspace: Workspace) -> Updates:
    """Nothing to undo any more: the run was started, or nothing differs. Raises `StudioError`."""
    if workspace.read_draft(DRAFT) is not None:
        workspace.write_draft(DRAFT, None)
    return {notice.row: gr.Row(visible=False)}


def reopen(notice: Notice, workspace: Workspace) -> Updates:
    """The notice as it was before a reload."""
    draft = _read(workspace)
    if draft is None:
        return {notice.row: gr.Row(visible=False)}
    return _shown(notice, draft["origin"], draft["changed"], draft.get("lists", ()))


def _read(workspace: Workspace) -> FormBefore | None:
    draft = workspace.read_draft(DRAFT)
    whole = isinstance(draft, dict) and {"origin", "preset", "values", "changed"} <= draft.keys()
    return draft if whole else None


def _shown(notice: Notice, origin: str, changed: Sequence[tuple[str, str, str]], lists: Lists) -> Updates:
    return {notice.row: gr.Row(visible=True), notice.words: listed(origin, changed, lists)}


def wire_changes(
    notice: Notice,
    workspace: Workspace,
    preset: gr.Dropdown,
    widgets: Sequence[Any],
    outputs: Sequence[Any],
    fill: Callable[[str | None, Sequence[Any], str, tuple[str | None, Sequence[Any]]], Updates],
) -> None:
    """`fill(preset, raws, origin, before)` fills the form; an undo is a change that can be undone itself."""

    def undo(current: str | None, *raws: Any) -> Updates:
        draft = _read(workspace)
        if draft is None:
            return {notice.row: gr.Row(visible=False)}
        return fill(draft["preset"], forms.from_draft(draft["values"], raws), "Undo", (current, raws))

    notice.undo.click(undo, [preset, *widgets], list(outputs), trigger_mode="once", **QUIET)
