"""What the components show of a form: fields, recipes, plan, problems, config file."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_studio.config.parsing import ConfigError
from lora_studio.config.presets import presets
from lora_studio.config.sections import Config
from lora_studio.ui import form as forms
from lora_studio.ui.components import Updates
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import config_file, filling, picker, problems, recipes, settings_form
from lora_studio.ui.train import presets as own
from lora_studio.ui.train.drafts import FormState
from lora_studio.ui.train.layout import TrainView
from lora_studio.ui.train.planning import in_plan
from lora_studio.ui.train.problems import ReportedProblems


def fill(
    view: TrainView, studio: Studio, preset: str | None, raws: Sequence[Any], reported: ReportedProblems | None = None
) -> Updates:
    """The whole form filled anew, with the models, files and presets that are there now."""
    workspace = studio.workspace
    config = problems.read(raws, workspace)
    available, files = presets(workspace), picker.data_choices(workspace)
    models = picker.model_choices(workspace, config if isinstance(config, Config) else None)
    choices = {forms.MODEL: models, **dict.fromkeys(forms.FILES, files)}
    updates = {
        item.widget: _choices(choices[item.setting.path], raw) if item.setting.path in choices else raw
        for item, raw in zip(view.form.fields, raws, strict=True)
    }
    return {
        **updates,
        view.preset: gr.Dropdown(choices=list(available), value=preset),
        view.about: recipes.about(available.get(preset or ""), raws),
        **own.updates(view.keeper, workspace, preset),
        **look(view, studio, (preset, raws), config, reported or ReportedProblems()),
    }


def _choices(choices: Sequence[tuple[str, str]], value: Any) -> gr.Dropdown:
    return gr.Dropdown(choices=list(choices), value=value, allow_custom_value=True)


def look(
    view: TrainView, studio: Studio, state: FormState, config: Config | ConfigError, reported: ReportedProblems
) -> Updates:
    """What the form comes to, and of its problems those that were told and are still there."""
    preset, raws = state
    valid = config if isinstance(config, Config) else None
    if isinstance(config, ConfigError):
        wrong, noted = config.problems, {}
    else:
        wrong, noted = problems.on_this_machine(config), forms.notes(config)
    summary = in_plan(view, studio, state, config)  # first: a start may be refused meanwhile
    by_field, _ = forms.beside_fields(wrong)
    reported.paths = tuple(path for path in reported.paths if path in by_field)
    in_sight = {path: message for path, message in by_field.items() if path in reported.paths}
    words = problems.summary(in_sight, reported.general)
    changed = filling.changed_from(filling.baseline(studio.workspace, preset), raws)
    return {
        **summary,
        view.checks: gr.HTML(visible=False),
        view.anyway: gr.Button(visible=False),
        view.file.text: config_file.as_yaml(raws, valid),
        view.file.result_box: gr.HTML(visible=False),
        view.reported: reported,
        view.summary: gr.HTML(words, visible=bool(words)),
        **settings_form.lines(view.form, raws, in_sight, noted, changed),
    }
