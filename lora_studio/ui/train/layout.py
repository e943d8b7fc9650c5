"""The components of the train tab, drawn in the order in which the keyboard reaches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config.presets import presets
from lora_studio.ui import form as forms
from lora_studio.ui import theme
from lora_studio.ui.train import card as plan_card
from lora_studio.ui.train import config_file, picker, settings_form
from lora_studio.ui.train import presets as own
from lora_studio.ui.train.problems import ReportedProblems
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
    file: config_file.ConfigFile
    reported: gr.State
    keeper: own.Keeper
    modules: own.ModuleChoice

    @property
    def outputs(self) -> list[Any]:
        """Everything that a change of the form may change."""
        single = [self.preset, self.about, self.cards, self.summary, self.checks, self.anyway, self.reported]
        single += [self.file.text, self.file.result_box, self.keeper.delete, self.keeper.replace]
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
        with gr.Column(scale=3, min_width=300, elem_id="form"):
            sources = _draw_sources(form, files)
            cards = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="recipes")
            with gr.Row(elem_classes="more-recipes"):
                preset = gr.Dropdown(list(presets(workspace)), label="Preset", filterable=False, elem_id="preset")
                about = gr.HTML(elem_id="preset-about")
            changes = own.draw_changes()
            settings_form.draw_basics(form)
            with settings_form.drawer(form, files) as folds, folds["LoRA"]:
                modules = own.draw_modules()
            with gr.Accordion("Config file (YAML)", open=False, elem_id="config-file"):
                file = config_file.draw()
                keeper = own.draw_presets()
    reported = gr.State(ReportedProblems())
    parts = (summary, card, checks, start, anyway, file, reported, keeper, modules)
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
