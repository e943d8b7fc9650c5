"""What the data tab's events do: keep an upload, inspect a file, move the cut line, turn the pages.

Reading and tokenizing happen in the inspector, a child process that runs the code that training runs. What was chosen
and what was found are drafts in the workspace, so that a reload shows them again. Drawing is data_tab.py's, words are
data_view.py's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.config import settings
from lora_studio.errors import StudioError
from lora_studio.ui import data_view, text
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace, shipped_data

CHOICE, FOUND = "data", "data-found"  # the two drafts: what was chosen, what the inspector said of it
SETTINGS = {setting.path: setting for setting in settings()}
PATHS = (
    "data.train_file",
    "model.name",
    "data.max_length",
    "data.truncation",
    "data.train_on",
    "data.prompt_style",
    "data.system_prompt",
)
PHASES = {
    "tokenizer": "Loading the tokenizer",
    "read": "Reading rows",
    "convert": "Converting rows",
    "encode": "Making tokens",
}


@dataclass(frozen=True)
class Controls:
    """What a person chooses; the first seven in the order of `PATHS`."""

    source: gr.Dropdown
    model: gr.Textbox
    max_length: gr.Number
    truncation: gr.Dropdown
    train_on: gr.Dropdown
    prompt_style: gr.Dropdown
    system_prompt: gr.Textbox
    upload: gr.File
    look: gr.Button
    stop: gr.Button

    def chosen(self) -> list[Component]:
        """The settings' widgets in the order of `PATHS`."""
        first = [self.source, self.model, self.max_length, self.truncation]
        return [*first, self.train_on, self.prompt_style, self.system_prompt]

    def all(self) -> list[Component]:
        return [*self.chosen(), self.upload, self.look, self.stop]


@dataclass(frozen=True)
class View:
    """What is shown of an inspected file. `found` is the inspector's result, `index` the conversation looked at."""

    status: gr.HTML
    body: gr.Column
    summary: gr.HTML
    train: gr.Button
    histogram: gr.HTML
    cut: gr.Slider
    sentence: gr.HTML
    use: gr.Button
    position: gr.HTML
    previous: gr.Button
    next: gr.Button
    row: gr.Number
    conversation: gr.HTML
    tokens: gr.HTML
    bad_line: gr.HTML
    bad_rows: gr.HTML
    table: gr.HTML
    found: gr.State
    index: gr.State

    def all(self) -> list[Component | gr.Column]:
        return list(vars(self).values())


Updates = dict[Any, Any]


def sources(workspace: Workspace) -> list[tuple[str, str]]:
    """What can be chosen: uploads, newest first, then the sets that come with the studio, as (label, value)."""
    uploads = [(path.name, str(path)) for path in workspace.uploads()]
    shipped = [(f"{data.title} (built in)", name) for name, data in shipped_data().items()]
    return uploads + shipped


def remembered(workspace: Workspace) -> dict[str, Any]:
    """The last choice by config path; the schema's defaults where there is none, or where its file is gone."""
    values = {path: SETTINGS[path].default for path in PATHS}
    draft = workspace.read_draft(CHOICE)
    if isinstance(draft, dict) and isinstance(draft.get("settings"), dict):
        values |= {path: value for path, value in draft["settings"].items() if path in values}
    if values["data.train_file"] not in {value for _, value in sources(workspace)}:
        values["data.train_file"] = SETTINGS["data.train_file"].default
    return values


def values_of(chosen: Sequence[Any]) -> dict[str, Any]:
    """The widgets' values by config path, as the config takes them."""
    values = dict(zip(PATHS, chosen, strict=True))
    values["model.name"] = str(values["model.name"] or "").strip()
    values["data.system_prompt"] = values["data.system_prompt"] or None
    return values


def request_of(values: dict[str, Any]) -> dict[str, Any]:
    """The inspector's parameters: settings by their last name, the model as `model`."""
    named = {path.rpartition(".")[2]: value for path, value in values.items() if path != "model.name"}
    return {**named, "model": values["model.name"], "show_examples": 1}


class Inspection:
    """What the tab's events do. Keeps no state but whether a stop was asked for."""

    def __init__(self, studio: Studio, controls: Controls, view: View) -> None:
        self.studio, self.controls, self.view = studio, controls, view
        self._stopping = False

    def keep_upload(self, path: str | None) -> Updates:
        """Copies an upload into the workspace and chooses it."""
        if path is None:
            return {}
        kept = self.studio.workspace.save_upload(Path(path))
        return {
            self.controls.source: gr.Dropdown(choices=sources(self.studio.workspace), value=str(kept)),
            self.controls.upload: None,
        }

    def look(self, *chosen: Any) -> Iterator[Updates]:
        """Inspects the chosen file and shows what was found; a failure is a sentence, and the choice stays."""
        c, v = self.controls, self.view
        values = values_of(chosen)
        self._stopping = False
        yield {
            v.status: gr.HTML(text.progress("Starting the reader"), visible=True),
            c.look: gr.Button(interactive=False),
            c.stop: gr.Button(visible=True),
        }
        idle = {c.look: gr.Button(interactive=True), c.stop: gr.Button(visible=False)}
        try:
            self._check(values)
            self.studio.workspace.write_draft(CHOICE, {"settings": values})
            result: dict[str, Any] = {}
            for answer in self.studio.inspector.stream("inspect", **request_of(values)):
                if answer["kind"] == "result":
                    result = answer
                else:
                    yield {v.status: _step(answer)}
            self.studio.workspace.write_draft(FOUND, {"settings": values, "result": result})
            yield idle | self.show(result) | {v.status: gr.HTML("", visible=False)}
        except StudioError as error:
            said = text.notice("Stopped. The file is still chosen.") if self._stopping else text.problem(error)
            gone = {} if self._stopping else {v.body: gr.Column(visible=False)}
            yield idle | gone | {v.status: gr.HTML(said, visible=True)}

    def _check(self, values: dict[str, Any]) -> None:
        """Refuses what the page's own controls would not send."""
        if values["data.train_file"] not in {value for _, value in sources(self.studio.workspace)}:
            raise StudioError("No data is chosen.", "Choose a set that comes with the studio, or drop a file.")
        if not values["model.name"]:
            raise StudioError("No model is named.", f"Its tokenizer counts the tokens. {_about('model.name')}")
        setting, length = SETTINGS["data.max_length"], values["data.max_length"]
        if length is None or not (setting.minimum or 0) <= length <= (setting.maximum or length):
            raise StudioError(
                f"The longest row can't be {length}.", f"Give {setting.minimum:,.0f} to {setting.maximum:,.0f} tokens."
            )
        values["data.max_length"] = int(length)

    def stop(self) -> None:
        """Ends the inspector's child: certain in every phase, and the next look starts a new one."""
        self._stopping = True
        self.studio.inspector.close()

    def show(self, result: dict[str, Any]) -> Updates:
        """Everything that is known of a file."""
        v = self.view
        low, high = data_view.cut_bounds(result)
        length = result["max_length"]
        bad = bool(result["bad_row_list"])
        return {
            v.body: gr.Column(visible=True),
            v.summary: data_view.summary(result),
            v.cut: gr.Slider(minimum=low, maximum=high, value=min(max(length, low), high)),
            **self.move_cut(result, length),
            v.bad_line: data_view.bad_rows_line(result),
            v.bad_rows: gr.HTML(data_view.bad_rows_table(result), visible=bad),
            v.table: data_view.rows_table(result),
            v.found: result,
            **self._paint(result["examples"][0] if result["examples"] else None, 0, result["usable_rows"]),
        }

    def move_cut(self, result: dict[str, Any] | None, length: float) -> Updates:
        """The line and its sentence, from numbers that are already counted."""
        if not result:
            return {}
        at = data_view.nearest_cut(result["cut_curve"], length)["max_length"]
        return {
            self.view.histogram: data_view.histogram(result, length),
            self.view.sentence: data_view.cut_sentence(result, length),
            self.view.use: gr.Button(f"Use {at:,} as the longest row", visible=at != result["max_length"]),
        }

    def use_cut(self, result: dict[str, Any] | None, length: float) -> Any:
        """The cut line's place becomes the longest row."""
        return data_view.nearest_cut(result["cut_curve"], length)["max_length"] if result else gr.skip()

    def back(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index)

    def forward(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index + 2)

    def go(self, result: dict[str, Any] | None, number: float | None) -> Updates:
        """Shows one conversation, counted from 1; beyond an end stands the end."""
        if not result or number is None:
            return {}
        index = min(max(int(number) - 1, 0), result["usable_rows"] - 1)
        try:
            return self._paint(self._preview(index), index, result["usable_rows"])
        except StudioError as error:
            return {self.view.conversation: text.problem(error), self.view.tokens: ""}

    def _preview(self, index: int) -> dict[str, Any]:
        """The inspector keeps the last file in memory; one that was closed since has to read it again."""
        inspector = self.studio.inspector
        if not inspector.running:
            draft = self.studio.workspace.read_draft(FOUND)
            inspector.call("inspect", **request_of(draft["settings"]))
        return inspector.call("preview", row_index=index)

    def _paint(self, preview: dict[str, Any] | None, index: int, rows: int) -> Updates:
        v = self.view
        if preview is None:
            return {
                v.conversation: text.empty("No conversation to show", "Every row is bad or left out."),
                v.tokens: "",
            }
        return {
            v.position: data_view.position(preview, index, rows),
            v.row: gr.Number(value=index + 1, maximum=rows),
            v.index: index,
            v.conversation: data_view.conversation(preview),
            v.tokens: data_view.tokens(preview),
            v.previous: gr.Button(interactive=index > 0),
            v.next: gr.Button(interactive=index < rows - 1),
        }

    def repaint(self) -> Updates:
        """After a reload: the last choice, and what was found for it."""
        workspace = self.studio.workspace
        values = remembered(workspace)
        updates: Updates = dict(zip(self.controls.chosen(), (values[path] for path in PATHS), strict=True))
        updates[self.controls.source] = gr.Dropdown(choices=sources(workspace), value=values["data.train_file"])
        updates[self.controls.system_prompt] = values["data.system_prompt"] or ""
        found = workspace.read_draft(FOUND)
        if isinstance(found, dict) and found["settings"] == values:
            updates |= self.show(found["result"]) | {self.view.status: gr.HTML("", visible=False)}
        return updates

    def hand_over(self, *chosen: Any) -> tuple[tuple[float, dict[str, Any]], gr.Tabs]:
        """To the train tab, with everything chosen here: what was looked at is what is trained on."""
        values = values_of(chosen)
        self.studio.workspace.write_draft(CHOICE, {"settings": values})
        return (time.time(), values), gr.Tabs(selected="train")


def _step(answer: dict[str, Any]) -> str:
    phase = str(answer.get("phase", ""))
    return text.progress(
        PHASES.get(phase, phase.capitalize() or "Working"), answer.get("done", 0), answer.get("total", 0)
    )


def _about(path: str) -> str:
    return SETTINGS[path].description
