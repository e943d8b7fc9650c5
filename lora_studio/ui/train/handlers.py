"""What changes the form: typing, recipes, resets, search, config files, and settings from other tabs."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.parsing import presets
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import fetch_numbers
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET, EventOptions, Handover, Shared, Updates, Wish
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import card as plan_card
from lora_studio.ui.train import form_state, picker, settings_form
from lora_studio.ui.train import presets as own
from lora_studio.ui.train import view as views
from lora_studio.ui.train.form_state import ReportedProblems
from lora_studio.ui.train.view import FormState, TrainView

Show = Callable[..., Updates]
"""Fills the form: (preset, raws, origin, before), problems to report, and what else is told of the origin."""


def wire_fields(view: TrainView, studio: Studio) -> None:
    """A field is reset to the recipe's value; a search opens the group of a setting; a model's size is looked up."""
    workspace, form = studio.workspace, view.form

    def reset(event: gr.EventData, preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        base = form_state.baseline(workspace, preset, forms.values(raws)["training.method"])
        path = next((path for path in base if forms.element_id(path) == event.value), None)
        if path is None:
            return {view.reported: gr.skip()}
        after = forms.overlay(raws, {path: base[path]})
        updates = views.look(view, studio, (preset, after), form_state.read(after, workspace), reported)
        value = after[list(forms.to_draft(raws)).index(path)]
        return {**updates, form.widget(path): value, **views.keep_draft(view, workspace, (preset, after))}

    def find(query: str, *raws: Any) -> Updates:
        return settings_form.matched(form, query, raws)

    def select(event: gr.EventData, query: str, *raws: Any) -> Updates:
        return settings_form.matched(form, query, raws, str(event.value))

    def fetch(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        config = form_state.read(raws, workspace)
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


def wire_config_file(view: TrainView, studio: Studio, show: Show) -> None:
    """The config file is edited in place, opened and saved."""
    file, widgets = view.file, view.form.widgets

    def open_file(paths: list[str], preset: str | None, *raws: Any) -> Updates:
        try:
            opened = form_state.open_files([Path(path) for path in paths], raws, studio.workspace)
        except StudioError as error:
            return {file.error_box: form_state.problem_box(error)}
        reported = ReportedProblems(tuple(opened.by_field), tuple(opened.general))
        return show(None, opened.raws, opened.origin, (preset, raws), reported, opened.lists)

    def apply(text: str, preset: str | None, *raws: Any) -> Updates:
        try:
            filled = form_state.from_text(text)
        except StudioError as error:
            return {file.result_box: form_state.problem_box(error)}
        return show(preset, filled, "Edited config", (preset, raws))

    whole = [view.preset, *widgets]
    opened = file.open.upload(open_file, [file.open, *whole], view.outputs, **QUIET)
    opened.then(None, js=theme.call("showChanges"), api_visibility="private")
    file.apply.click(apply, [file.text, *whole], view.outputs, trigger_mode="once", **QUIET)
    named = [file.text, *(view.form.widget(path) for path in ("title", "model.name", "data.train_file"))]
    file.save.click(None, named, js="studio.saveConfig", api_visibility="private")


IN_TURN: EventOptions = {"concurrency_id": "form", "concurrency_limit": 1}  # of two that fill it, the last one tells


def wire(view: TrainView, shared: Shared, studio: Studio) -> None:
    """Wires all that changes the form."""
    workspace = studio.workspace

    def show(
        preset: str | None,
        raws: Sequence[Any],
        origin: str,
        before: FormState,
        reported: ReportedProblems | None = None,
        lists: own.Lists = (),
    ) -> Updates:
        filled = views.fill(view, studio, preset, raws, reported, before[1])
        return filled | views.record_change(view, workspace, origin, before, (preset, raws), lists)

    def change(settings: Mapping[str, Any], values: Sequence[Any]) -> Updates:
        preset, *raws = values
        return show(preset, forms.overlay(raws, settings), "Your choice", (preset, raws))

    def renamed(preset: str | None, raws: Sequence[Any]) -> Updates:
        return views.fill(view, studio, preset, raws, before=raws) | views.keep_draft(view, workspace, (preset, raws))

    whole = [view.preset, *view.form.widgets]
    of_model = [view.form.widget("model.name"), view.form.widget("model.revision")]
    own.wire_modules(view.modules, studio.inspector, of_model, whole, view.outputs, change)
    own.wire_presets(view.keeper, workspace, view.preset, view.form.widgets, view.outputs, forms.read, renamed)
    settings_form.wire_targets(
        view.targets, workspace, lambda name: studio.supervisor.try_out(name), view.form.widget(forms.TARGET)
    )
    own.wire_changes(view.changes, workspace, view.preset, view.form.widgets, view.outputs, show)
    plan_card.wire(view.card, whole, view.outputs, change)
    _keep(view, studio)
    wire_fields(view, studio)
    _recipes(view, studio, show)
    wire_config_file(view, studio, show)
    _take_over(view, shared, studio, show)


def _keep(view: TrainView, studio: Studio) -> None:
    """Each change is kept and shown for what it comes to; a load of the page brings the kept form back."""
    workspace = studio.workspace

    def changed(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        without_preset = form_state.left_preset(workspace, preset, raws)
        if without_preset is None:
            about = {view.about: picker.preset_about(presets(workspace).get(preset or ""), raws)} if preset else {}
            config = form_state.read(raws, workspace)
            updates = views.look(view, studio, (preset, raws), config, reported)
            return updates | about | views.keep_draft(view, workspace, (preset, raws))
        origin = f"Preset {preset} is for the built-in model"
        cleared = {view.preset: gr.Dropdown(value=None), view.about: ""}
        return cleared | written(None, raws, without_preset, origin, reported)

    def written(
        preset: str | None, raws: Sequence[Any], filled: Sequence[Any], origin: str, reported: ReportedProblems
    ) -> Updates:
        """Only what changes is written: the model's name may still be being typed."""
        pairs = zip(view.form.fields, raws, filled, strict=True)
        changes = {item.widget: new for item, old, new in pairs if old != new}
        updates = views.look(view, studio, (preset, filled), form_state.read(filled, workspace), reported)
        return {**updates, **changes} | views.record_change(view, workspace, origin, (preset, raws), (preset, filled))

    def method_changed(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        before = forms.read_draft(workspace)[1]  # the form is kept at every edit
        rated = form_state.with_rate_of_method(workspace, preset, before, raws)
        if rated is None:
            return changed(preset, reported, *raws)
        return written(preset, raws, rated, "Method", reported)

    def restore() -> Updates:
        preset, raws = forms.read_draft(workspace)
        updates = views.fill(view, studio, preset, raws) | own.reopen(view.changes, workspace)
        return {**updates, view.whole: gr.Row(visible=True)}

    def recount() -> Updates:
        state = forms.read_draft(workspace)
        return views.in_plan(view, studio, state, form_state.read(state[1], workspace))

    inputs = [view.preset, view.reported, *view.form.widgets]
    gr.on(view.form.edits, changed, inputs, view.outputs, trigger_mode="always_last", **QUIET)
    method = view.form.widget(settings_form.METHOD)
    method.input(method_changed, inputs, view.outputs, trigger_mode="always_last", **QUIET)
    gr.on(None, restore, None, [*view.outputs, view.whole], **QUIET)
    tab = view.whole.parent
    assert isinstance(tab, gr.Tab)  # what the data tab counted since is known when this one is opened again
    tab.select(recount, None, [*view.card.outputs, *view.picker.outputs, view.cards], **IN_TURN, **QUIET)


def _recipes(view: TrainView, studio: Studio, show: Show) -> None:
    """A card or the list of presets fills the form."""
    workspace = studio.workspace

    def use_preset(name: str, *raws: Any) -> Updates:
        filled = form_state.with_preset(raws, presets(workspace)[name].values())
        return show(name, filled, f"Preset {name}", (forms.read_draft(workspace)[0], raws))

    def use_recipe(event: gr.EventData, preset: str | None, *raws: Any) -> Updates:
        planned = views.planned_of(studio, form_state.read(raws, workspace))
        now = views.situation_of(studio, raws, planned)
        recipe = next((item for item in picker.recipes(now) if item.preset == event.value), None)
        if recipe is None or recipe.unavailable:
            return {view.reported: gr.skip()}
        return show(recipe.preset, picker.filled(recipe, raws), f"Recipe {recipe.title}", (preset, raws))

    whole = [view.preset, *view.form.widgets]
    # A dropdown's `input` also fires when it is left without a choice; `select` only when an option is chosen.
    view.preset.select(use_preset, whole, view.outputs, **QUIET)
    view.cards.click(use_recipe, whole, view.outputs, trigger_mode="once", **QUIET)


def _take_over(view: TrainView, shared: Shared, studio: Studio, show: Show) -> None:
    """What other tabs hand over: settings on top of the form, or a whole config. The notice of changes is in sight."""
    workspace = studio.workspace

    def use_data(handover: Handover, preset: str | None, *raws: Any) -> Updates:
        _, settings, origin, *_ = handover
        filled = forms.overlay(raws, settings)
        if form_state.RATE not in settings:
            filled = form_state.with_rate_of_method(workspace, preset, raws, filled) or filled
        without_preset = form_state.left_preset(workspace, preset, filled, settings)
        if without_preset is not None:
            origin += f" (preset {preset} is for the built-in model)"
        after = (preset, filled) if without_preset is None else (None, without_preset)
        return show(*after, origin, (preset, raws)) | {view.start: gr.Button(interactive=True)}

    def use_config(handover: Handover, preset: str | None, *raws: Any) -> Updates:
        filled = form_state.from_settings(handover.settings)
        return show(handover.preset, filled, handover.origin, (preset, raws))

    inputs = [view.preset, *view.form.widgets]

    def preview(data: str) -> tuple[Wish, gr.Tabs]:
        return Wish(data=data, time=time.time()), gr.Tabs(selected="data")

    view.picker.data_facts.click(preview, view.form.widget("data.train_file"), [shared.wish, shared.tabs], **QUIET)
    events = (
        shared.data.change(use_data, [shared.data, *inputs], [*view.outputs, view.start], **IN_TURN, **QUIET),
        shared.form.change(use_config, [shared.form, *inputs], view.outputs, **QUIET),
    )
    for event in events:
        event.then(None, js=theme.call("showChanges"), api_visibility="private")
