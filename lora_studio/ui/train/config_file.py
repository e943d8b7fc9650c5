"""The form as a YAML config: edited in place, opened from a file, saved under the run's name, without defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from lora_studio.config import fields
from lora_studio.config.parsing import nest
from lora_studio.config.presets import overlay_of
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.errors import StudioError
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.train.problems import problems_of

HINT = "What differs from the defaults. Edit it here and apply it, or open a file."


@dataclass(frozen=True)
class ConfigFile:
    """The components. `text` is what is edited."""

    text: gr.Code
    apply: gr.Button
    open: gr.UploadButton
    save: gr.Button
    result_box: gr.HTML


def draw() -> ConfigFile:
    gr.HTML(html.quiet(HINT))
    text = gr.Code(
        language="yaml", label="Config (YAML)", show_label=False, interactive=True, max_lines=24, elem_id="form-yaml"
    )
    result_box = gr.HTML(visible=False, elem_id="form-yaml-result")
    with gr.Row(elem_classes="actions"):
        apply = gr.Button("Apply changes", size="sm", elem_id="form-yaml-apply")
        opened = gr.UploadButton("Open file…", file_types=[".yaml", ".yml"], size="sm", elem_id="form-yaml-open")
        save = gr.Button("Save file", size="sm", elem_id="form-yaml-save")
    return ConfigFile(text, apply, opened, save, result_box)


def as_yaml(raws: Sequence[Any], config: Config | None) -> str:
    """What differs from the defaults, as a config file; of a form that is not valid, as it is typed."""
    if config is not None:
        overlay = overlay_of(config)
    else:
        defaults = {setting.path: setting.default for setting in settings()}
        overlay = nest({path: value for path, value in forms.values(raws).items() if value != defaults[path]})
    return yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True, width=120) if overlay else ""


def from_text(text: str) -> list[Any]:
    """The form of an edited config. Raises `StudioError` with every problem: nothing is taken of a wrong one."""
    try:
        values = fields.load(text)
    except yaml.YAMLError as error:
        raise StudioError(f"This is not valid YAML: {error}", "Check indentation and colons.") from None
    if values is not None and not isinstance(values, dict):
        raise StudioError("This holds no settings.", "A config is `section:` with names and values below it.")
    problems = problems_of(values or {})
    if problems:
        head = "One setting is not valid:" if len(problems) == 1 else f"{len(problems)} settings are not valid:"
        raise StudioError(head, "\n".join(str(problem) for problem in problems))
    return forms.overlay(forms.shown(Config()), forms.known_values(values or {}))


def from_file(path: str) -> tuple[list[Any], dict[str, str], list[str]]:
    """The form of a config file right or wrong, its problems by path, and those that belong to no field.

    Raises `StudioError` for a file that is no config.
    """
    values = fields.read_yaml(Path(path))
    raws = forms.overlay(forms.shown(Config()), forms.known_values(values))
    return (raws, *forms.beside_fields(problems_of(values)))


def problem_box(error: StudioError) -> gr.HTML:
    return gr.HTML(html.problem(error), visible=True)
