"""What the form holds: the preset or config file that filled it, what of it was changed, and what is wrong with it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from lora_studio.config import fields
from lora_studio.config.compute import LOCAL
from lora_studio.config.fields import SettingValues
from lora_studio.config.importing import DATASET_INFO, TITLES, Imported, import_file, read_values
from lora_studio.config.other_tools import MAX_SHOWN, tool_of
from lora_studio.config.parsing import (
    ConfigError,
    Preset,
    Problem,
    is_for_model,
    nest,
    overlay_of,
    parse,
    presets,
)
from lora_studio.config.sections import Config, Training, default_rate, defaults_of
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import problems_here
from lora_studio.models.hardware import Device, device_for, recent_devices
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.data.choice import is_there
from lora_studio.ui.train.presets import Lists
from lora_studio.workspace import DEMO_MODEL, Workspace

OWN_CHOICES = (
    *("title", "model.name", "model.revision", "data.train_file", "data.validation_file"),
    *("compute.target", "compute.device", "compute.processes"),
)
"""What a preset leaves as it is unless it names it."""
RATE = "training.learning_rate"


def with_preset(raws: Sequence[Any], overlay: Mapping[str, Any]) -> list[Any]:
    """The form of a preset; model and data stay as they are unless the preset names them."""
    overridden = forms.known_values(overlay)
    flat = {
        path: value for path, value in flatten(parse(overlay)).items() if path in overridden or path not in OWN_CHOICES
    }
    return forms.overlay(raws, flat)


def left_preset(
    workspace: Workspace, preset: str | None, raws: Sequence[Any], protected: Collection[str] = ()
) -> list[Any] | None:
    """The form without the values of a preset for the built-in model, where another model is chosen; else None.

    Its learning rate and epochs are for 2.5 M parameters. What was typed since, and `protected` settings, stay.
    """
    model = forms.values(raws)["model.name"]
    selected = presets(workspace).get(preset or "") if model != DEMO_MODEL else None
    if selected is None or is_for_model(selected, str(model)):
        return None
    overlaid = {
        path: forms.overlay(raws, {path: value}) for path, value in forms.known_values(selected.values()).items()
    }
    same = [
        path for path, filled in overlaid.items() if filled == list(raws) and path not in (*OWN_CHOICES, *protected)
    ]
    method = Training().method if "training.method" in same else forms.values(raws)["training.method"]
    default = flatten(defaults_of(method))
    return forms.overlay(raws, {path: default[path] for path in same})


def with_rate_of_method(
    workspace: Workspace, preset: str | None, before: Sequence[Any], raws: Sequence[Any]
) -> list[Any] | None:
    """The form with the default learning rate of a method that was chosen since `before`; None where it is unchanged.

    A rate that a person or the preset set stays.
    """
    then, now = forms.values(before), forms.values(raws)
    method, rate = now["training.method"], now[RATE]
    selected = presets(workspace).get(preset or "")
    if method == then["training.method"] or rate != default_rate(then["training.method"]):
        return None
    if selected is not None and RATE in preset_settings(selected)[1]:
        return None
    return forms.overlay(raws, {RATE: default_rate(method)})


def with_recipe(raws: Sequence[Any], preset: Preset, without: Collection[str] = ()) -> list[Any]:
    """The form of a preset, as `with_preset` fills it, but for the settings `without`; read once and kept."""
    flat, named = preset_settings(preset)
    protected = {path for path in OWN_CHOICES if path not in named} | set(without)
    return forms.overlay(raws, {path: value for path, value in flat.items() if path not in protected})


def baseline(workspace: Workspace, preset: str | None, method: Any) -> Mapping[str, Any]:
    """Every setting by path as the chosen preset has it, else the default under the form's method: what a changed
    field is reset to."""
    selected = presets(workspace).get(preset or "")
    base, named = preset_settings(selected) if selected else (flatten(Config()), ())
    return base if RATE in named else {**base, RATE: default_rate(method)}


def preset_settings(preset: Preset) -> tuple[Mapping[str, Any], Collection[str]]:
    """The defaults with a preset on top, and the paths that it names; those of the defaults where it is not valid."""
    return _settings_of(preset, preset.path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _settings_of(preset: Preset, _changed: int) -> tuple[SettingValues, frozenset[str]]:
    try:
        overlay = preset.values()
        return flatten(parse(overlay)), frozenset(forms.known_values(overlay))
    except StudioError:
        return flatten(Config()), frozenset()


def changed_from(base: Mapping[str, Any], raws: Sequence[Any]) -> dict[str, str]:
    """Fields that differ from the recipe, by path, each with the recipe's value in words; model and data are free."""
    pairs = zip(raws, forms.overlay(raws, base), forms.to_draft(raws), strict=True)
    return {
        path: forms.in_words(path, base[path])
        for raw, before, path in pairs
        if raw != before and path not in OWN_CHOICES
    }


@dataclass
class ReportedProblems:
    """Problems that the person was told of: `paths` of fields, and `general` ones that belong to no field.

    A field is not called wrong while it is being typed, only once a start or a file brought the mistake to light.
    Events that run at once share the object: a start may be refused while an edit before it is still looked at.
    """

    paths: tuple[str, ...] = ()
    general: tuple[str, ...] = ()


def read(raws: Sequence[Any], workspace: Workspace) -> Config | ConfigError:
    """The config of the form, or what is wrong with it: read once for all that an event shows of it."""
    try:
        return checked(raws, workspace)
    except ConfigError as error:
        return error


def checked(raws: Sequence[Any], workspace: Workspace) -> Config:
    """The config of the form, with files that are there and may be read. Raises `ConfigError` with every problem."""
    config = forms.read(raws)
    problems = []
    try:
        workspace.policy.check_request({"model": config.model.name, "revision": config.model.revision})
    except StudioError as error:
        problems.append(Problem("model.name", error.message, config.model.name))
    for path, name in (
        ("data.train_file", config.data.train_file),
        ("data.validation_file", config.data.validation_file),
    ):
        if name and not is_there(name, workspace):
            problems.append(Problem(path, "there is no such file; choose one, or upload it on the Data tab", name))
    if problems:
        raise ConfigError(problems)
    return config


def on_this_machine(config: Config) -> list[Problem]:
    """What this machine's devices can't do of a valid config."""
    return problems_here(config, recent_devices()) if config.compute.target == LOCAL else []


def device_of(config: Config) -> Device:
    """The device that a valid config would train on, as far as this machine knows it."""
    return device_for(config.compute.device, recent_devices())


def problems_of(settings: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the settings of a config file."""
    try:
        parse(settings)
    except ConfigError as error:
        return error.problems
    return []


def problem_summary(fields: Mapping[str, str], general: Sequence[str]) -> str:
    """All that is wrong in one place, by the titles of the fields."""
    lines = [f"{forms.title_of(path)}: {message}" for path, message in fields.items()]
    parts = []
    if lines:
        head = "One setting is not valid:" if len(lines) == 1 else f"{len(lines)} settings are not valid:"
        parts.append(html.notice(head, "\n".join(lines), "error"))
    if general:
        parts.append(html.notice("Not taken from the file:", "\n".join(general), "warning"))
    return "".join(parts)


HINT = "What differs from the defaults. Edit it here and apply it."


@dataclass(frozen=True)
class ConfigFile:
    """The components. `text` is what is edited; the button that opens files stands beside the presets."""

    text: gr.Code
    apply: gr.Button
    open: gr.UploadButton
    save: gr.Button
    result_box: gr.HTML
    error_box: gr.HTML


def draw_opener() -> tuple[gr.UploadButton, gr.HTML]:
    """The button that opens a config file, of this studio or another trainer, and where it says what is wrong."""
    opener = gr.UploadButton(
        "Open a config file…",
        file_count="multiple",
        file_types=[".yaml", ".yml", ".json"],
        size="sm",
        scale=0,
        min_width=170,
        elem_id="form-yaml-open",
    )
    return opener, gr.HTML(visible=False, elem_id="open-file-problem", render=False)


def draw_config_file(opener: gr.UploadButton, error_box: gr.HTML) -> ConfigFile:
    gr.HTML(html.quiet(HINT))
    text = gr.Code(
        language="yaml", label="Config (YAML)", show_label=False, interactive=True, max_lines=24, elem_id="form-yaml"
    )
    result_box = gr.HTML(visible=False, elem_id="form-yaml-result")
    with gr.Row(elem_classes="actions"):
        apply = gr.Button("Apply changes", size="sm", elem_id="form-yaml-apply")
        save = gr.Button("Save file", size="sm", elem_id="form-yaml-save")
    return ConfigFile(text, apply, opener, save, result_box, error_box)


def as_yaml(raws: Sequence[Any], config: Config | None) -> str:
    """What differs from the defaults, as a config file; of a form that is not valid, as it is typed."""
    if config is not None:
        overlay = overlay_of(config)
    else:
        values = forms.values(raws)
        defaults = flatten(defaults_of(values["training.method"]))
        overlay = nest({path: value for path, value in values.items() if value != defaults[path]})
    return yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True, width=120) if overlay else ""


def from_settings(flat: Mapping[str, Any]) -> list[Any]:
    """The form of settings by path, right or wrong, over the defaults of their method."""
    return forms.overlay(forms.shown(defaults_of(flat.get("training.method"))), flat)


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
    return from_settings(forms.known_values(values or {}))


@dataclass(frozen=True)
class OpenedFile:
    """The form of an opened file right or wrong, its problems by path and those that belong to no field, and what else
    is told of the file."""

    raws: list[Any]
    origin: str
    by_field: dict[str, str]
    general: list[str]
    lists: Lists = ()


def open_files(paths: Sequence[Path], raws: Sequence[Any], workspace: Workspace) -> OpenedFile:
    """The form of a config file of this studio or of another trainer, with LLaMA-Factory's dataset_info.json beside it.

    Raises `StudioError` for files that are no config, and for a method that the studio does not have.
    """
    configs = [path for path in paths if path.name != DATASET_INFO]
    if len(configs) != 1:
        raise StudioError("This is not one config file.", f"Open one, alone or with its {DATASET_INFO}.")
    values = read_values(configs[0])
    tool = tool_of(values)
    if tool is None:
        filled = from_settings(forms.known_values(values))
        return OpenedFile(filled, f"Config file {configs[0].name}", *forms.beside_fields(problems_of(values)))
    info = next((path for path in paths if path.name == DATASET_INFO), None)
    uploads = {path.name: str(path) for path in workspace.uploads()}
    imported = import_file(configs[0], info, uploads=uploads)
    filled = _with_imported(imported, raws)
    form = read(filled, workspace)
    problems = forms.beside_fields(form.problems if isinstance(form, ConfigError) else ())
    origin = f"{imported.tool.title} file {configs[0].name}"
    return OpenedFile(filled, origin, *problems, lists=_lists(imported))


def _with_imported(imported: Imported, raws: Sequence[Any]) -> list[Any]:
    """The form of an imported file: peft's settings are those of the adapter alone, others are a whole run's."""
    if imported.tool.name == "peft":
        return forms.overlay(raws, imported.settings)
    now = forms.values(raws)
    free = {path: now[path] for path in OWN_CHOICES if path not in imported.settings}
    return forms.overlay(from_settings(imported.settings), free)


def _lists(imported: Imported) -> Lists:
    """What became of each key of the file, with the titles of the page."""
    lists: list[tuple[str, list[tuple[str, str]]]] = []
    for kind in ("differs", "none", "taken", "same"):
        lines = [
            (_in_words(line.key, line.value, line.settings), forms.sentence(line.note) if line.note else "")
            for line in imported.of(kind)
        ]
        lists.append((TITLES[kind], lines))
    lists.append(("Without a value", [(key, "") for key in imported.empty]))
    defaults = [(_in_words("", "", {path: value}), "") for path, value in imported.defaults.items()]
    lists.append((f"Defaults of {imported.tool.title}", defaults))
    unchanged = [(f"{forms.title_of(path)}: {words} there", "") for path, words in imported.unchanged.items()]
    lists.append(("Left at the defaults here", unchanged))
    return [(title, lines) for title, lines in lists if lines]


def _in_words(key: str, value: str, settings: Mapping[str, Any]) -> str:
    here = ", ".join(
        f"{forms.title_of(path)}: {html.shorten(forms.in_words(path, new), MAX_SHOWN)}"
        for path, new in settings.items()
    )
    key_text = f"{key}: {value}" if value else key
    return " → ".join(filter(None, (key_text, here)))


def problem_box(error: StudioError) -> gr.HTML:
    return gr.HTML(html.problem(error), visible=True)
