"""What the page itself wrote into the train tab's form: a notice that lists the settings that changed, with an undo.

A preset, a config file, the data tab and an earlier run fill the form in one click. The values before are a draft, so
that a reload still offers to bring them back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.ui import form as forms
from lora_studio.ui import text
from lora_studio.workspace import Workspace

DRAFT = "form-before"
MAX_LISTED = 6
"""Changes listed in sight; the others are in a fold."""
MAX_VALUE_LENGTH = 40


@dataclass(frozen=True)
class Notice:
    """The notice's components, hidden while there is nothing to undo."""

    row: gr.Row
    words: gr.HTML
    undo: gr.Button

    @property
    def parts(self) -> list[Any]:
        return [self.row, self.words, self.undo]


def draw() -> Notice:
    with gr.Row(visible=False, elem_id="form-changes") as row:
        words = gr.HTML(min_width=220)
        undo = gr.Button("Undo", size="sm", scale=0, min_width=80, elem_id="form-undo")
    return Notice(row, words, undo)


def changes(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Settings that differ between two forms: (title, value before, value after) in words."""
    pairs = zip(forms.values(before).items(), forms.values(after).values(), strict=True)
    return [
        (forms.title_of(path), _in_words(path, old), _in_words(path, new)) for (path, old), new in pairs if old != new
    ]


def _in_words(path: str, value: Any) -> str:
    return text.shorten(forms.in_words(path, value), MAX_VALUE_LENGTH)


def listed(origin: str, changed: Sequence[tuple[str, str, str]]) -> str:
    """The notice as markup: where the values come from, then each change."""
    counted = text.count(len(changed), "setting")
    return text.render("train.changes", origin, counted, changed[:MAX_LISTED], changed[MAX_LISTED:])


def record(
    notice: Notice,
    workspace: Workspace,
    origin: str,
    before: tuple[str | None, Sequence[Any]],
    after: Sequence[Any],
) -> dict[Any, Any]:
    """The notice after the page filled the form; `before` is the preset and the form it had. Raises `StudioError`."""
    changed = changes(before[1], after)
    if not changed:
        return clear(notice, workspace)
    kept = {"origin": origin, "preset": before[0], "values": forms.to_draft(before[1]), "changed": changed}
    workspace.write_draft(DRAFT, kept)
    return _shown(notice, origin, changed)


def clear(notice: Notice, workspace: Workspace) -> dict[Any, Any]:
    """Nothing to undo any more: the run was started, or nothing differs. Raises `StudioError`."""
    if workspace.read_draft(DRAFT) is not None:
        workspace.write_draft(DRAFT, None)
    return {notice.row: gr.Row(visible=False)}


def reopen(notice: Notice, workspace: Workspace) -> dict[Any, Any]:
    """The notice as it was before a reload."""
    kept = _read(workspace)
    return _shown(notice, kept["origin"], kept["changed"]) if kept else {notice.row: gr.Row(visible=False)}


def _read(workspace: Workspace) -> dict[str, Any] | None:
    kept = workspace.read_draft(DRAFT)
    whole = isinstance(kept, dict) and {"origin", "preset", "values", "changed"} <= kept.keys()
    return kept if whole else None


def _shown(notice: Notice, origin: str, changed: Sequence[tuple[str, str, str]]) -> dict[Any, Any]:
    return {notice.row: gr.Row(visible=True), notice.words: listed(origin, changed)}


def wire(
    notice: Notice,
    workspace: Workspace,
    preset: gr.Dropdown,
    widgets: Sequence[Any],
    outputs: Sequence[Any],
    fill: Callable[[str | None, Sequence[Any], str, tuple[str | None, Sequence[Any]]], dict[Any, Any]],
    quiet: dict[str, Any],
) -> None:
    """`fill(preset, raws, origin, before)` fills the form; an undo is a change that can be undone itself."""

    def undo(chosen: str | None, *raws: Any) -> dict[Any, Any]:
        kept = _read(workspace)
        if kept is None:
            return {notice.row: gr.Row(visible=False)}
        return fill(kept["preset"], forms.from_draft(kept["values"], raws), "Undone", (chosen, raws))

    notice.undo.click(undo, [preset, *widgets], list(outputs), trigger_mode="once", **quiet)
