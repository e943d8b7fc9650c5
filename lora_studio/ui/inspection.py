"""What the data tab's events do: keep an upload, inspect a file, correct its reading, move the cut line, turn pages.

Reading and tokenizing happen in the inspector, a child process that runs the code that training runs. What was chosen
and what was found are drafts in the workspace, so that a reload shows them again. Drawing is data_tab.py's, words are
data_view.py's and data_findings.py's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import data_findings, data_view, reading_form, text
from lora_studio.ui.data_choice import (
    CHOICE,
    MAPPING,
    PATHS,
    check,
    handed_over,
    remembered,
    request_of,
    sources,
    values_of,
)
from lora_studio.ui.reading_form import ReadingForm
from lora_studio.ui.studio import Studio

FOUND = "data-found"  # the draft of what the inspector said of the choice
KEPT_BACK = ("A share of the training rows", "")


@dataclass(frozen=True)
class Controls:
    """What a person chooses; `chosen` has it in the order of `PATHS`."""

    source: gr.Dropdown
    model: gr.Textbox
    max_length: gr.Number
    truncation: gr.Dropdown
    train_on: gr.Dropdown
    prompt_style: gr.Dropdown
    system_prompt: gr.Textbox
    validation: gr.Dropdown
    percentiles: gr.Textbox
    mapping: gr.State
    upload: gr.File
    upload_validation: gr.UploadButton
    look: gr.Button
    stop: gr.Button

    def chosen(self) -> list[Any]:
        """The settings' widgets in the order of `PATHS`."""
        return self.all()[: len(PATHS)]

    def all(self) -> list[Any]:
        return list(vars(self).values())


@dataclass(frozen=True)
class View:
    """What is shown of an inspected file. `found` is the inspector's result, `index` the conversation looked at."""

    status: gr.HTML
    body: gr.Column
    summary: gr.HTML
    reading: ReadingForm
    train: gr.Button
    histogram: gr.HTML
    cut: gr.Slider
    sentence: gr.HTML
    use: gr.Button
    suggestion: gr.HTML
    take: gr.Button
    forecast: gr.HTML
    percentiles: gr.HTML
    position: gr.HTML
    previous: gr.Button
    next: gr.Button
    row: gr.Number
    conversation: gr.HTML
    tokens: gr.HTML
    bad_line: gr.HTML
    bad_rows: gr.HTML
    hygiene: gr.HTML
    table: gr.HTML
    cache: gr.HTML
    clear: gr.Button
    found: gr.State
    index: gr.State

    def all(self) -> list[Any]:
        """Every component, those of the reading's form among them."""
        return [*(part for part in vars(self).values() if part is not self.reading), *self.reading.all()]


Updates = dict[Any, Any]


class Inspection:
    """What the tab's events do. Keeps no state but whether a stop was asked for."""

    def __init__(self, studio: Studio, controls: Controls, view: View) -> None:
        self.studio, self.controls, self.view = studio, controls, view
        self._stopping = False

    def keep_upload(self, paths: list[str] | None) -> Updates:
        """Copies an upload into the workspace and chooses it; several files become a folder of their own."""
        if not paths:
            return {}
        kept = self.studio.workspace.save_uploads([Path(path) for path in paths])
        c, offered = self.controls, sources(self.studio.workspace)
        return {
            c.source: gr.Dropdown(choices=offered, value=str(kept)),
            c.validation: gr.Dropdown(choices=[KEPT_BACK, *offered]),
            c.upload: None,
        }

    def keep_validation(self, path: str) -> Updates:
        """Copies a second file into the workspace and chooses it to measure on."""
        kept = self.studio.workspace.save_upload(Path(path))
        c, offered = self.controls, sources(self.studio.workspace)
        return {
            c.source: gr.Dropdown(choices=offered),
            c.validation: gr.Dropdown(choices=[KEPT_BACK, *offered], value=str(kept)),
        }

    def look(self, *chosen: Any) -> Iterator[Updates]:
        """Inspects the chosen file and shows what was found; a failure is a sentence, and the choice stays."""
        yield from self._inspect(values_of(chosen))

    def look_anew(self, *chosen: Any) -> Iterator[Updates]:
        """Another file is read as it is recognised, not as the one before was corrected to be."""
        yield from self._inspect({**values_of(chosen), MAPPING: None})

    def use_reading(self, result: dict[str, Any] | None, *given: Any) -> Iterator[Updates]:
        """Reads the file as the form says. `given` are the form's fields, then what is chosen."""
        fields = len(self.view.reading.fields())
        if result:
            mapping = reading_form.mapping_from(given[:fields], result["mapping"])
            yield from self._inspect({**values_of(given[fields:]), MAPPING: mapping}, correcting=result)

    def take_reading(self, result: dict[str, Any] | None, index: int | None, *chosen: Any) -> Iterator[Updates]:
        """Reads the file in another of the ways that it can be read."""
        if result and index is not None:
            mapping = result["readings"][index]["mapping"] or None
            yield from self._inspect({**values_of(chosen), MAPPING: mapping}, correcting=result)

    def _inspect(self, values: dict[str, Any], *, correcting: dict[str, Any] | None = None) -> Iterator[Updates]:
        """`correcting` is what was found with the reading that is to be changed: it stays where the new one fails."""
        c, v, workspace = self.controls, self.view, self.studio.workspace
        self._stopping = False
        yield {
            v.status: gr.HTML(text.progress("Starting the reader"), visible=True),
            v.reading.said: gr.HTML("", visible=False),
            c.look: gr.Button(interactive=False),
            c.stop: gr.Button(visible=True),
            **({} if correcting is not None else {c.mapping: values[MAPPING]}),
        }
        idle = {c.look: gr.Button(interactive=True), c.stop: gr.Button(visible=False)}
        try:
            check(values)
            if correcting is None:
                workspace.write_draft(CHOICE, {"settings": values})
            result: dict[str, Any] = {}
            for answer in self.studio.inspector.stream("inspect", **request_of(values, workspace)):
                if answer["kind"] == "result":
                    result = answer
                else:
                    first = self.show(answer["sample"], values) if answer.get("sample") else {}
                    yield first | {v.status: data_findings.step(answer)}
            workspace.write_draft(CHOICE, {"settings": values})
            workspace.write_draft(FOUND, {"settings": values, "result": result})
            shown = self.show(result, values) | self.measure_cache()
            yield idle | shown | {c.mapping: values[MAPPING], v.status: gr.HTML("", visible=False)}
        except StudioError as error:
            yield idle | self._failed(error, correcting)

    def _failed(self, error: StudioError, correcting: dict[str, Any] | None) -> Updates:
        """A stop leaves what is in sight; a reading that does not fit is told beside its form."""
        v = self.view
        before = {} if correcting is None else {v.reading.choice: reading_form.chosen(correcting)}
        if self._stopping:
            return before | {v.status: gr.HTML(text.notice("Stopped. The file is still chosen."), visible=True)}
        said = gr.HTML(text.problem(error), visible=True)
        if correcting is not None:
            return before | {v.reading.said: said, v.status: gr.HTML("", visible=False)}
        return {v.status: said, v.body: gr.Column(visible=False)}

    def stop(self) -> None:
        """Ends the inspector's child: certain in every phase, and the next look starts a new one."""
        self._stopping = True
        self.studio.inspector.close()

    def show(self, result: dict[str, Any], values: dict[str, Any]) -> Updates:
        """Everything that is known of a file."""
        v = self.view
        low, high = data_view.cut_bounds(result)
        length, wanted = result["max_length"], result["suggested"]["max_length"]
        bad = bool(result["bad_row_list"])
        return {
            v.body: gr.Column(visible=True),
            v.summary: data_findings.first_look(result) + data_view.summary(result),
            **reading_form.fill(v.reading, result, corrected=values[MAPPING] is not None),
            v.suggestion: data_findings.suggestion(result),
            v.take: gr.Button(f"Take the suggestion: {text.count(wanted, 'token')}", visible=wanted != length),
            v.forecast: data_findings.forecast(result),
            v.percentiles: data_findings.percentiles(result),
            v.hygiene: data_findings.hygiene(result),
            v.cut: gr.Slider(minimum=low, maximum=high, value=min(max(length, low), high)),
            **self.move_cut(result, length),
            v.bad_line: data_view.bad_rows_line(result),
            v.bad_rows: gr.HTML(data_view.bad_rows_table(result), visible=bad),
            v.table: data_view.rows_table(result),
            v.found: result,
            **self._paint(result["examples"][0] if result["examples"] else None, 0, result),
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

    def take_suggestion(self, result: dict[str, Any] | None) -> Any:
        """The length that suits the data becomes the longest row."""
        return result["suggested"]["max_length"] if result else gr.skip()

    def measure_cache(self) -> Updates:
        octets = self.studio.workspace.cache_size()
        return {self.view.cache: data_findings.cache(octets), self.view.clear: gr.Button(interactive=octets > 0)}

    def clear_cache(self) -> Updates:
        """Prepared rows are made again when they are wanted."""
        self.studio.workspace.clear_cache()
        return self.measure_cache()

    def back(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index)

    def forward(self, result: dict[str, Any] | None, index: int) -> Updates:
        return self.go(result, index + 2)

    def go(self, result: dict[str, Any] | None, number: float | None) -> Updates:
        """Shows one conversation, counted from 1; beyond an end stands the end."""
        if not result or number is None or result["sampled"] is not None:
            return {}
        index = min(max(int(number) - 1, 0), result["usable_rows"] - 1)
        try:
            return self._paint(self._preview(index), index, result)
        except StudioError as error:
            return {self.view.conversation: text.problem(error), self.view.tokens: ""}

    def _preview(self, index: int) -> dict[str, Any]:
        """The inspector keeps the last file in memory; one that was closed since has to read it again."""
        inspector = self.studio.inspector
        if not inspector.running:
            draft = self.studio.workspace.read_draft(FOUND)
            inspector.call("inspect", **request_of(draft["settings"], self.studio.workspace))
        return inspector.call("preview", row_index=index)

    def _paint(self, preview: dict[str, Any] | None, index: int, result: dict[str, Any]) -> Updates:
        v, rows = self.view, result["usable_rows"]
        idle = result["sampled"] is None  # at a first look the reader is busy with the whole file
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
            v.previous: gr.Button(interactive=idle and index > 0),
            v.next: gr.Button(interactive=idle and index < rows - 1),
        }

    def repaint(self) -> Updates:
        """After a reload: the last choice, and what was found for it."""
        workspace = self.studio.workspace
        values = remembered(workspace)
        updates: Updates = dict(zip(self.controls.chosen(), (values[path] for path in PATHS), strict=True))
        offered = sources(workspace)
        updates[self.controls.source] = gr.Dropdown(choices=offered, value=values["data.train_file"])
        second = gr.Dropdown(choices=[KEPT_BACK, *offered], value=values["data.validation_file"] or "")
        updates[self.controls.validation] = second
        updates[self.controls.system_prompt] = values["data.system_prompt"] or ""
        updates |= self.measure_cache()
        found = workspace.read_draft(FOUND)
        if isinstance(found, dict) and found["settings"] == values:
            updates |= self.show(found["result"], values) | {self.view.status: gr.HTML("", visible=False)}
        return updates

    def hand_over(self, *chosen: Any) -> tuple[tuple[float, dict[str, Any]], gr.Tabs]:
        """To the train tab, with everything chosen here: what was looked at is what is trained on."""
        values = values_of(chosen)
        workspace = self.studio.workspace
        workspace.write_draft(CHOICE, {"settings": values})
        found = workspace.read_draft(FOUND)
        known = isinstance(found, dict) and found["settings"] == values
        shape = found["result"]["format"] if known else ""
        return (time.time(), handed_over(values, shape)), gr.Tabs(selected="train")
