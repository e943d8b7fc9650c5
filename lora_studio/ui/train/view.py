"""The components of the train tab, drawn in the order of the keyboard, and what they show of a form and its plan.

The form outlives a reload: it is kept as it is typed, with what it was before the page filled it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config.parsing import ConfigError, presets
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.ui import form as forms
from lora_studio.ui import theme
from lora_studio.ui.components import Updates
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import card as plan_card
from lora_studio.ui.train import form_state, picker, settings_form, tries
from lora_studio.ui.train import presets as own
from lora_studio.ui.train.form_state import ReportedProblems
from lora_studio.ui.train.plan import Plan, form_plan
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class TrainView:
    """The tab's components. `reported` is what is in sight of problems, see `ReportedProblems`."""

    whole: gr.Row
    form: settings_form.SettingsForm
    preset: gr.Dropdown
    about: gr.HTML
    cards: gr.HTML
    picker: picker.Picker
    changes: own.Notice
    summary: gr.HTML
    card: plan_card.Card
    checks: gr.HTML
    start: gr.Button
    anyway: gr.Button
    file: form_state.ConfigFile
    reported: gr.State
    keeper: own.Keeper
    modules: own.ModuleChoice
    targets: settings_form.TargetEditor
    tries: tries.TriesView

    @property
    def outputs(self) -> list[Any]:
        """Everything that a change of the form may change."""
        single = [self.preset, self.about, self.cards, self.summary, self.checks, self.anyway, self.reported]
        single += [self.file.text, self.file.result_box, self.file.error_box, self.keeper.delete, self.keeper.replace]
        single += self.targets.parts
        return [*single, *self.picker.outputs, *self.changes.parts, *self.card.outputs, *self.form.parts]


def draw(workspace: Workspace, start: gr.Button) -> TrainView:
    """Draws the tab. Start comes first, where the keyboard reaches it early; a wide page shows it on the right."""
    files = picker.data_choices(workspace)
    # Hidden until the kept form is there: what is typed before that would be overwritten.
    with gr.Row(elem_classes="train", visible=False) as whole:
        form = settings_form.service()
        with gr.Column(scale=1, min_width=280, elem_classes="beside"):
            form.add("title")
            # What is wrong stands under the button, which must not move away from the pointer that pressed it.
            start.render()
            summary = gr.HTML(elem_id="form-summary", visible=False)
            checks = gr.HTML(elem_id="checks", visible=False)
            anyway = gr.Button("Start anyway", size="lg", visible=False, elem_id="start-anyway")
            card = plan_card.draw()
            several = tries.draw()
        with gr.Column(scale=3, min_width=300, elem_id="form"):
            sources = _draw_sources(form, files)
            cards = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="recipes")
            with gr.Row(elem_classes="more-recipes"):
                preset = gr.Dropdown(list(presets(workspace)), label="Preset", filterable=False, elem_id="preset")
                about = gr.HTML(elem_id="preset-about")
                opener, error_box = form_state.draw_opener()
            error_box.render()
            changes = own.draw_changes()
            settings_form.draw_basics(form)
            with settings_form.drawer(form, files) as folds:
                with folds["LoRA"]:
                    modules = own.draw_modules()
                with folds["Compute"]:
                    targets = settings_form.draw_targets()
            with gr.Accordion("Config file (YAML)", open=False, elem_id="config-file"):
                file = form_state.draw_config_file(opener, error_box)
                keeper = own.draw_presets()
    reported = gr.State(ReportedProblems())
    parts = (summary, card, checks, start, anyway, file, reported, keeper, modules, targets, several)
    return TrainView(whole, form, preset, about, cards, sources, changes, *parts)


def _draw_sources(form: settings_form.SettingsForm, files: Sequence[tuple[str, str]]) -> picker.Picker:
    """Model and data side by side, with what is known of each."""
    with gr.Row(elem_classes="sources"):
        with gr.Column(min_width=260):
            form.add(forms.MODEL)
            facts, fetch, error_box = picker.draw_model()
        with gr.Column(min_width=260):
            form.add("data.train_file", files)
            return picker.Picker(facts, fetch, error_box, picker.draw_data())


FormState = tuple[str | None, Sequence[Any]]
"""The preset that a form began with, and what its widgets hold."""


def keep_draft(view: TrainView, workspace: Workspace, state: FormState) -> Updates:
    """Keeps the form as it is, right or wrong, with the preset that it began with.

    A disk that takes nothing more is told in the summary, and the form goes on: what it holds can still be started.
    """
    try:
        forms.save_draft(workspace, *state)
    except StudioError as error:
        return {view.summary: form_state.problem_box(error)}
    return {}


def record_change(
    view: TrainView, workspace: Workspace, origin: str, before: FormState, after: FormState, lists: own.Lists = ()
) -> Updates:
    """Keeps a form that the page filled, and shows what changed from the form `before`, with an Undo.

    `origin` names what filled it, `lists` are what else is told of it. Where it can't be kept, the summary says so.
    """
    try:
        forms.save_draft(workspace, *after)
        return own.record(view.changes, workspace, origin, before, after[1], lists)
    except StudioError as error:
        return {view.summary: form_state.problem_box(error)}


def forget_changes(view: TrainView, workspace: Workspace) -> None:
    """Nothing is left to undo once a run was started, also where a full disk keeps the notice for a reload."""
    with contextlib.suppress(StudioError):
        own.clear(view.changes, workspace)


def in_plan(view: TrainView, studio: Studio, state: FormState, config: Config | ConfigError) -> Updates:
    """What depends on data, model and device: facts of both, recipes, steps, time and memory."""
    preset, raws = state
    planned = planned_of(studio, config)
    now = situation_of(studio, raws, planned)
    return {
        **plan_card.updates(view.card, planned),
        **picker.updates(view.picker, config if isinstance(config, Config) else None, planned),
        view.cards: picker.recipe_cards(now, preset, raws),
    }


def planned_of(studio: Studio, config: Config | ConfigError) -> Plan | None:
    """What the form comes to, with what the Data tab found."""
    last = studio.looks.last(studio.workspace)
    busy = studio.supervisor.busy(config) if isinstance(config, Config) else None
    return form_plan(config, studio.workspace, last, busy=bool(busy))


def situation_of(studio: Studio, raws: Sequence[Any], planned: Plan | None) -> picker.Situation:
    """What recipes are chosen by; the format of the rows is known where the data tab looked at this data."""
    last = studio.looks.last(studio.workspace)
    shape = last.shape if last and last.settings.get("data.train_file") == forms.values(raws)["data.train_file"] else ""
    return picker.situation(raws, planned, shape)


def fill(
    view: TrainView,
    studio: Studio,
    preset: str | None,
    raws: Sequence[Any],
    reported: ReportedProblems | None = None,
    before: Sequence[Any] | None = None,
) -> Updates:
    """The whole form filled anew, with the models, files, devices and presets that are there now.

    A field that holds its value already, by `before` (the page as the event sent it) and by the kept form, is not
    written: something else may be being typed into it. The kept form tells what an event in between has filled.
    """
    workspace = studio.workspace
    kept = forms.read_draft(workspace)[1]
    held = [before is not None and raw == old == now for raw, old, now in zip(raws, before or raws, kept, strict=True)]
    config = form_state.read(raws, workspace)
    available, files = presets(workspace), picker.data_choices(workspace)
    models = picker.model_choices(workspace, config if isinstance(config, Config) else None)
    targets, wrong_targets = settings_form.offered_targets(workspace)
    choices = {
        forms.MODEL: models,
        forms.TARGET: forms.known_targets(targets),
        forms.DEVICE: picker.device_choices(),
        **dict.fromkeys(forms.FILES, files),
    }
    updates: Updates = {}
    for item, raw, stays in zip(view.form.fields, raws, held, strict=True):
        if item.setting.path in choices:
            updates[item.widget] = _choices(choices[item.setting.path], {} if stays else {"value": raw})
        elif not stays:
            updates[item.widget] = raw
    # Facts of the model and data before are not those of settings that are not valid.
    facts = {} if isinstance(config, Config) else {view.picker.model_facts: "", view.picker.data_facts: ""}
    return {
        **updates,
        **facts,
        view.preset: gr.Dropdown(choices=list(available), value=preset),
        view.about: picker.preset_about(available.get(preset or ""), raws),
        **own.updates(view.keeper, workspace, preset),
        **settings_form.edited(view.targets, targets),
        view.targets.place: gr.Accordion(visible=workspace.policy.is_admin),
        view.targets.result_box: wrong_targets,
        **look(view, studio, (preset, raws), config, reported or ReportedProblems()),
    }


def _choices(choices: Sequence[tuple[str, str]], value: Mapping[str, Any]) -> gr.Dropdown:
    return gr.Dropdown(choices=list(choices), allow_custom_value=True, **value)


def look(
    view: TrainView, studio: Studio, state: FormState, config: Config | ConfigError, reported: ReportedProblems
) -> Updates:
    """What the form comes to, and of its problems those that were told and are still there."""
    preset, raws = state
    valid = config if isinstance(config, Config) else None
    if isinstance(config, ConfigError):
        wrong, noted = config.problems, {}
    else:
        device = form_state.device_of(config)
        wrong, noted = form_state.on_this_machine(config), forms.notes(config, device.kind, device.capability)
    summary = in_plan(view, studio, state, config)  # first: a start may be refused meanwhile
    by_field, _ = forms.beside_fields(wrong)
    reported.paths = tuple(path for path in reported.paths if path in by_field)
    in_sight = {path: message for path, message in by_field.items() if path in reported.paths}
    words = form_state.problem_summary(in_sight, reported.general)
    base = form_state.baseline(studio.workspace, preset, forms.values(raws)["training.method"])
    changed = form_state.changed_from(base, raws)
    return {
        **summary,
        view.checks: gr.HTML(visible=False),
        view.anyway: gr.Button(visible=False),
        view.file.text: form_state.as_yaml(raws, valid),
        view.file.result_box: gr.HTML(visible=False),
        view.file.error_box: gr.HTML(visible=False),
        view.reported: reported,
        view.summary: gr.HTML(words, visible=bool(words)),
        **settings_form.lines(view.form, raws, in_sight, noted, changed),
    }
