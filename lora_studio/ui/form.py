"""The form: widgets made from the schema, values carried both ways, and the draft that outlives a reload.

Text that a person typed reaches the check unchanged. Nothing else knows both schema and widgets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.config.compute import LOCAL, THIS_MACHINE
from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import Problem, nest, parse, presets
from lora_studio.config.sections import Config
from lora_studio.config.settings import Setting, batch_words, effective_batch, flatten, settings
from lora_studio.files import source_title, split_sheet, with_sheet
from lora_studio.models.accelerators import AUTO, CPU, Capability, expected_attention
from lora_studio.models.hardware import Device
from lora_studio.units import float_text, gib
from lora_studio.workspace import Workspace

SWITCH = {True: "on", False: "off"}
NEITHER = "default"
MODEL, ADAPTER = "model.name", "model.adapter_name_or_path"
DEVICE = "compute.device"
FILES = ("data.train_file", "data.validation_file")
PATHS = (MODEL, ADAPTER, *FILES)
"""Settings that may be paths on this machine."""
SEPARATOR = " · "
"""Between a model's name and what the list of models says of it."""
TARGET = "compute.target"
LONG_TEXT = ("data.system_prompt", "generation.stop_strings", "extra", "prompt")
SAMPLING = tuple(setting for setting in settings() if setting.section == "generation")
"""The settings of how an answer is sampled, in the order of their widgets."""


def draw_widget(setting: Setting, name: str, choices: Sequence[tuple[str, str]] = ()) -> Component:
    """The widget of a setting; `name` is its element's id, `choices` what models and files are offered. Devices are
    offered when the form is filled."""
    label, info, value = setting.title, setting.description, to_widget(setting, setting.default)
    if setting.path in (MODEL, DEVICE, TARGET, *FILES):
        choices = [(str(value), str(value))] if setting.path in (DEVICE, TARGET) else choices
        return gr.Dropdown(list(choices), value=value, label=label, info=info, elem_id=name, allow_custom_value=True)
    if setting.kind == "choice":
        return gr.Dropdown(options(setting), value=value, label=label, info=info, elem_id=name, filterable=False)
    if setting.kind == "bool":
        return gr.Checkbox(value=value, label=label, info=info, elem_id=name)
    if setting.kind == "int":
        return gr.Number(value=value, label=label, info=info, elem_id=name)
    lines = 3 if setting.path in LONG_TEXT else 1
    return gr.Textbox(
        value=value,
        label=label,
        info=info,
        elem_id=name,
        lines=lines,
        max_lines=8 if lines > 1 else 1,
        placeholder="optional" if setting.path == "title" else None,
    )


def element_id(path: str) -> str:
    return "set-" + path.replace(".", "-")


def options(setting: Setting) -> list[tuple[str, str]]:
    """What a choice offers, as (words, value): switches are on and off, an optional one has its default as well."""
    offered = [SWITCH[item] if isinstance(item, bool) else str(item) for item in setting.choices]
    values = [NEITHER, *offered] if setting.optional else offered
    return [(setting.names.get(value, value), value) for value in values]


def in_words(path: str, value: Any) -> str:
    """A setting's value as the form says it, for other places of the page; of a path the name of its file."""
    setting = next(setting for setting in settings() if setting.path == path)
    if value in (None, ""):
        return "–"
    if isinstance(value, bool):
        return SWITCH[value]
    if path == ADAPTER and Path(str(value)).is_absolute():
        return _adapter_title(Path(str(value)))
    if path in PATHS and Path(str(value)).is_absolute():
        return source_title(str(value))
    text = to_widget(setting, value)
    return setting.names.get(text, text) if isinstance(text, str) else f"{text:,}"


def _adapter_title(folder: Path) -> str:
    """The run of an adapter, with the checkpoint, as commands name it; of any other folder its name."""
    if folder.name == "adapter":
        return folder.parent.name
    return f"{folder.parent.parent.name}/{folder.name}" if folder.parent.name == "checkpoints" else folder.name


def each_in_words(path: str, values: Sequence[Any]) -> list[str]:
    """Values of a setting that are compared: whole paths where different files bear the same name."""
    words = [in_words(path, value) for value in values]
    if path not in PATHS or len(set(words)) == len(set(map(str, values))):
        return words
    return [str(value or "–") for value in values]


def to_widget(setting: Setting, value: Any) -> Any:
    """A config's value as its widget shows it."""
    if setting.kind == "choice":
        return NEITHER if value is None else SWITCH[value] if isinstance(value, bool) else str(value)
    if setting.kind == "float":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if value is None else float_text(float(value)) if is_number else value
    if setting.kind == "mapping":
        return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if setting.kind == "str":
        return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return value


def from_widget(setting: Setting, raw: Any) -> Any:
    """What a widget holds as the config takes it; what can't be read stays as typed, for the check to name."""
    if setting.kind == "choice":
        if raw == NEITHER and setting.optional:
            return None
        switches = {text: value for value, text in SWITCH.items() if value in setting.choices}
        return switches.get(raw, raw)
    if isinstance(raw, str):
        text = raw.strip()
        if not text and (setting.optional or setting.kind in ("int", "float")):
            return None
        if setting.kind == "float":
            return _as_float(text)
        if setting.path == MODEL:
            return text.partition(SEPARATOR)[0]
        return raw if setting.path in LONG_TEXT else text
    if isinstance(raw, float) and setting.kind == "int" and raw.is_integer():
        return int(raw)
    return raw


def _as_float(text: str) -> float | str:
    """A number with a decimal point or comma; anything else unchanged."""
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return text


def values(raws: Sequence[Any]) -> SettingValues:
    """The whole form as config values by path."""
    return {setting.path: from_widget(setting, raw) for setting, raw in zip(settings(), raws, strict=True)}


def sampling(raws: Sequence[Any]) -> SettingValues:
    """The checked settings of how answers are sampled, by path, as the boxes of the chat hold them; an emptied box is
    its default."""
    values = {}
    for setting, raw in zip(SAMPLING, raws, strict=True):
        value = from_widget(setting, raw)
        values[setting.path] = setting.default if value is None else value
    generation = parse(nest(values)).generation
    return {setting.path: getattr(generation, setting.path.rpartition(".")[2]) for setting in SAMPLING}


def sampling_boxes(generation: Mapping[str, Any]) -> list[Any]:
    """What the boxes hold for these settings, given by their last names."""
    return [to_widget(setting, generation[setting.path.rpartition(".")[2]]) for setting in SAMPLING]


def read(raws: Sequence[Any]) -> Config:
    """The checked config of the form; raises ConfigError with every problem."""
    return parse(nest(values(raws)))


def shown(config: Config) -> list[Any]:
    """What every widget shows for a config, in order."""
    flat = flatten(config)
    return [to_widget(setting, flat[setting.path]) for setting in settings()]


def overlay(raws: Sequence[Any], flat: Mapping[str, Any]) -> list[Any]:
    """The form with some values by path replaced, right or wrong."""
    return [
        to_widget(setting, flat[setting.path]) if setting.path in flat else raw
        for setting, raw in zip(settings(), raws, strict=True)
    ]


def to_draft(raws: Sequence[Any]) -> SettingValues:
    """The form exactly as typed, by path."""
    return {setting.path: raw for setting, raw in zip(settings(), raws, strict=True)}


def from_draft(draft: Any, start: Sequence[Any]) -> list[Any]:
    """A kept form, on top of `start` for settings that it does not know; anything unreadable is `start` itself."""
    if not isinstance(draft, dict):
        return list(start)
    entries = (draft.get(setting.path, ...) for setting in settings())
    return [
        to_widget(setting, raw) if raw is None else raw if isinstance(raw, (str, int, float, bool)) else begun
        for setting, raw, begun in zip(settings(), entries, start, strict=True)
    ]


def beside_fields(problems: Iterable[Problem]) -> tuple[dict[str, str], list[str]]:
    """Problems by the path of their field, and those that belong to none."""
    paths = {setting.path for setting in settings()}
    fields: dict[str, str] = {}
    general: list[str] = []
    for problem in problems:
        if problem.path in paths:
            fields[problem.path] = sentence(problem.message)
        else:
            general.append(str(problem))
    return fields, general


def sentence(message: str) -> str:
    """Begins with a capital and ends with a stop."""
    text = message.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def notes(config: Config, kind: str = CPU, capability: Capability | None = None) -> dict[str, str]:
    """What settings come to together on a device of that kind (an NVIDIA GPU of that compute capability), by the path
    of the field that shows it."""
    unit = "pairs" if config.training.method == "dpo" else "rows"
    words = f"Effective batch: {batch_words(config)} = {effective_batch(config):,} {unit}."
    noted = {"training.per_device_train_batch_size": words}
    if config.model.attn_implementation == "auto":
        expected = expected_attention("auto", kind, config.model.dtype, capability)
        noted["model.attn_implementation"] = f"{expected.words}."
    return noted


def known_values(nested: Mapping[str, Any]) -> SettingValues:
    """The settings that a nested mapping names, by path, right or wrong; names that are no settings are left out."""
    flat = {}
    for setting in settings():
        section, _, leaf = setting.path.rpartition(".")
        holder = nested.get(section) if section else nested
        if isinstance(holder, Mapping) and leaf in holder:
            flat[setting.path] = holder[leaf]
    return flat


def title_of(path: str) -> str:
    """A setting's title, for a list of what is wrong."""
    return next((setting.title for setting in settings() if setting.path == path), path)


def known_devices(offered: Iterable[Device]) -> list[tuple[str, str]]:
    """What the field for devices offers: auto, and each device with its name and free memory."""
    return [
        ("auto: free, most memory", AUTO),
        *((f"{device.title}{SEPARATOR}{gib(device.memory_free)} free", device.choice) for device in offered),
    ]


def known_files(shipped: Mapping[str, str], workspace: Workspace) -> list[tuple[str, str]]:
    """What a data field offers: the sets that come with the studio (name -> title), then uploaded files."""
    return [*((f"{title} ({name})", name) for name, title in shipped.items()), *uploaded(workspace)]


SHEETS = "sheets"
MAX_WORKBOOKS = 20


def uploaded(workspace: Workspace) -> list[tuple[str, str]]:
    """The uploaded files, and after each workbook the sheets that were read of it, as (label, value)."""
    sheets = workbooks(workspace)
    return [
        (source_title(name), name)
        for path in map(str, workspace.uploads())
        for name in (path, *(with_sheet(path, sheet) for sheet in sheets.get(path, ())))
    ]


def workbooks(workspace: Workspace) -> dict[str, list[str]]:
    """The sheets of the workbooks with several that were analyzed, by their files."""
    draft = workspace.read_draft(SHEETS)
    sheets = draft if isinstance(draft, dict) else {}
    return {path: [str(title) for title in titles] for path, titles in sheets.items() if isinstance(titles, list)}


def keep_sheets(workspace: Workspace, source: str, sheets: Sequence[str]) -> bool:
    """Keeps which sheets a dataset's file has, and says whether that is news; a file with no choice is forgotten."""
    path, before = split_sheet(source)[0], workbooks(workspace)
    several = list(sheets) if len(sheets) > 1 else []
    if before.pop(path, []) == several:
        return False
    after = before | ({path: several} if several else {})
    workspace.write_draft(SHEETS, dict(list(after.items())[-MAX_WORKBOOKS:]))
    return True


def known_targets(names: Iterable[str]) -> list[tuple[str, str]]:
    """What a target's field offers: this machine, then the targets of the workspace."""
    return [(THIS_MACHINE, LOCAL), *((name, name) for name in names)]


DRAFT = "form"
FIRST_PRESET = "demo"


def save_draft(workspace: Workspace, preset: str | None, raws: Sequence[Any]) -> None:
    workspace.write_draft(DRAFT, {"preset": preset, "values": to_draft(raws)})


def read_draft(workspace: Workspace) -> tuple[str | None, list[Any]]:
    """The kept form with the preset it began from; the first preset's where nothing is kept."""
    draft = workspace.read_draft(DRAFT)
    if not isinstance(draft, dict):
        return FIRST_PRESET, list(_first_form())
    preset = draft.get("preset")
    return preset if preset in presets(workspace) else None, from_draft(draft.get("values"), _first_form())


@cache  # a preset that comes with the studio: no other may bear its name
def _first_form() -> tuple[Any, ...]:
    return tuple(shown(parse(presets()[FIRST_PRESET].values())))


def sampling_like(workspace: Workspace, name: str) -> list[Any]:
    """The sampling widgets' values as a preset has them; the defaults for any other name."""
    config = parse(presets(workspace)[name].values() if name in sampling_presets(workspace) else {})
    return sampling_boxes(config.generation.model_dump())


def sampling_presets(workspace: Workspace) -> list[str]:
    """Presets that set how answers are sampled."""
    return [name for name, preset in presets(workspace).items() if "generation" in preset.values()]
