"""What a person chooses on the Data tab. The fields that choose a dataset are drawn here: the list of known ones, an
upload, the sheet of a workbook, a dataset of the Hub.

The sheet is part of the dataset's name, as subset and split of a dataset of the Hub are. The page opens nobody's file:
which sheets a workbook has is told by the child that analyzes it, and kept for the lists of datasets.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.errors import StudioError
from lora_studio.files import split_sheet, with_sheet
from lora_studio.models.hub import dataset_name, is_dataset_name, parse_dataset_name
from lora_studio.ui import form, theme
from lora_studio.ui.data.choice import PATHS
from lora_studio.workspace import Workspace

DELETES = "Delete this file? Unfinished runs can't be resumed without it."
FIRST_SHEET = ("First sheet with rows", "")


@dataclass(frozen=True)
class DataControls:
    """What a person chooses; `chosen` has it in the order of `PATHS`."""

    source: gr.Dropdown
    model: gr.Textbox
    max_length: gr.Number
    truncation: gr.Dropdown
    train_on: gr.Dropdown
    prompt_style: gr.Dropdown
    system_prompt: gr.Textbox
    enable_thinking: gr.Dropdown
    encoding: gr.Textbox
    validation: gr.Dropdown
    validation_fraction: gr.Number
    split_seed: gr.Number
    max_samples: gr.Number
    max_eval_samples: gr.Number
    percentiles: gr.Textbox
    bad_rows: gr.Radio
    mapping: gr.State
    upload_validation: gr.UploadButton
    upload: gr.File
    sheet: gr.Dropdown
    uploads: gr.HTML
    hub_id: gr.Textbox
    hub_subset: gr.Textbox
    hub_split: gr.Textbox
    hub_load: gr.Button
    whole: gr.Column
    look: gr.Button
    train: gr.Button
    stop: gr.Button

    def chosen(self) -> list[Any]:
        """The settings' widgets in the order of `PATHS`."""
        return self.all()[: len(PATHS)]

    def all(self) -> list[Any]:
        return list(vars(self).values())


class SourceFields(NamedTuple):
    """The components; `hub_id`, `hub_subset` and `hub_split` make a name when `hub_load` is pressed."""

    source: gr.Dropdown
    upload: gr.File
    sheet: gr.Dropdown
    uploads: gr.HTML
    hub_id: gr.Textbox
    hub_subset: gr.Textbox
    hub_split: gr.Textbox
    hub_load: gr.Button


def draw_source(values: SettingValues, offered: list[tuple[str, str]]) -> SourceFields:
    source = gr.Dropdown(
        offered,
        value=values["data.train_file"],
        label="Dataset",
        filterable=True,
        allow_custom_value=True,
        info="A built-in dataset, an uploaded file, or a path.",
        elem_id="data-source",
    )
    sheet = gr.Dropdown([FIRST_SHEET], value="", label="Sheet", info="", visible=False, elem_id="data-sheet")
    upload = gr.File(
        label="Upload JSON, JSONL, CSV, Excel, Parquet, Arrow, text",
        height=112,
        elem_id="data-upload",
        type="filepath",
        file_count="multiple",
    )
    with gr.Accordion("Uploaded files", open=False, elem_id="data-kept"):
        uploads = gr.HTML(js_on_load=theme.on_load("clicks", questions={"delete": DELETES}))
    with gr.Accordion("From the Hub", open=False, elem_id="data-hub"):
        with gr.Row():
            identifier = gr.Textbox(label="Dataset ID", placeholder="owner/name", max_lines=1, min_width=180, scale=2)
            subset = gr.Textbox(label="Subset", placeholder="default", max_lines=1, min_width=100)
            split = gr.Textbox(label="Split", placeholder="train", max_lines=1, min_width=100)
        load = gr.Button("Load dataset", size="sm", scale=0, min_width=140)
    return SourceFields(source, upload, sheet, uploads, identifier, subset, split, load)


def sheet_of(workspace: Workspace, source: str) -> gr.Dropdown:
    """The field of the sheet for a chosen dataset: out of sight unless it is a workbook with several."""
    path, sheet = split_sheet(source)
    titles = form.workbooks(workspace).get(path, [])
    choices = [FIRST_SHEET, *((title, title) for title in titles)]
    chosen = next((title for title in titles if title.casefold() == sheet.casefold()), sheet)
    if chosen and chosen not in titles:  # a hidden sheet
        choices.append((chosen, chosen))
    return gr.Dropdown(choices=choices, value=chosen, visible=len(titles) > 1)


def on_sheet(source: str, sheet: str) -> str:
    """The dataset that is another sheet of the same workbook; without a name its first sheet with rows."""
    return with_sheet(split_sheet(source)[0], sheet)


def from_hub(identifier: str, subset: str, split: str) -> str:
    """The dataset of the Hub by its fields. Raises `StudioError` for an id that can't be."""
    return dataset_name(identifier or "", subset or "", split or "")


def hub_of(source: str) -> tuple[str, str, str] | None:
    """ID, subset and split of a chosen dataset of the Hub; None for any other, whose fields stay as they are."""
    try:
        plain, options = parse_dataset_name(source) if is_dataset_name(source) else ("", {})
    except StudioError:
        return None
    return (plain, options.get("config", ""), options.get("split", "")) if plain else None
