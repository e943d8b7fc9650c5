"""Events of single fields and of the config file: a reset, the search, a model's size, editing, opening and saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import fetch_numbers
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.components import QUIET, Updates
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import config_file, drafts, filling, problems, settings_form
from lora_studio.ui.train import view as views
from lora_studio.ui.train.layout import TrainView
from lora_studio.ui.train.problems import ReportedProblems

Show = Callable[..., Updates]
"""Fills the form: (preset, raws, origin, before) and problems to report."""


def wire_fields(view: TrainView, studio: Studio) -> None:
    """A field is reset to the recipe's value; a search opens the group of a setting; a model's size is looked up."""
    workspace, form = studio.workspace, view.form

    def reset(event: gr.EventData, preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        base = filling.baseline(workspace, preset)
        path = next((path for path in base if forms.element_id(path) == event.value), None)
        if path is None:
            return {view.reported: gr.skip()}
        after = forms.overlay(raws, {path: base[path]})
        updates = views.look(view, studio, (preset, after), problems.read(after, workspace), reported)
        value = after[list(forms.to_draft(raws)).index(path)]
        return {**updates, form.widget(path): value, **drafts.keep(view, workspace, (preset, after))}

    def find(query: str, *raws: Any) -> Updates:
        return settings_form.matched(form, query, raws)

    def select(event: gr.EventData, query: str, *raws: Any) -> Updates:
        return settings_form.matched(form, query, raws, str(event.value))

    def fetch(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        config = problems.read(raws, workspace)
        try:
            if isinstance(config, Config):
                fetch_numbers(config, studio.inspector)
        except StudioError as error:
            return {view.picker.error_box: gr.HTML(html.problem(error), visible=True)}
        return views.look(view, studio, (preset, raws), config, reported)

    inputs = [view.preset, view.reported, *form.widgets]
    form.service.click(reset, inputs, view.outputs, **QUIET)
    view.picker.fetch.click(fetch, inputs, view.outputs, trigger_mode="once", api_visibility="private")
    assert form.query
    assert form.matches
    found = [form.matches, *form.openers]
    form.query.change(find, [form.query, *form.widgets], found, trigger_mode="always_last", **QUIET)
    form.matches.click(select, [form.query, *form.widgets], found, **QUIET)


def wire_config_file(view: TrainView, show: Show) -> None:
    """The config file is edited in place, opened and saved."""
    file, widgets = view.file, view.form.widgets

    def open_file(path: str, preset: str | None, *raws: Any) -> Updates:
        try:
            filled, by_field, general = config_file.from_file(path)
        except StudioError as error:
            return {file.result_box: config_file.problem_box(error)}
        reported = ReportedProblems(tuple(by_field), tuple(general))
        return show(None, filled, f"Config file {Path(path).name}", (preset, raws), reported)

    def apply(text: str, preset: str | None, *raws: Any) -> Updates:
        try:
            filled = config_file.from_text(text)
        except StudioError as error:
            return {file.result_box: config_file.problem_box(error)}
        return show(preset, filled, "Edited config", (preset, raws))

    whole = [view.preset, *widgets]
    file.open.upload(open_file, [file.open, *whole], view.outputs, **QUIET)
    file.apply.click(apply, [file.text, *whole], view.outputs, trigger_mode="once", **QUIET)
    named = [file.text, *(view.form.widget(path) for path in ("title", "model.name", "data.train_file"))]
    file.save.click(None, named, js="studio.saveConfig", api_visibility="private")
