"""What the form offers to choose from: base models on this machine, data, and recipes that fit both and the device.

Of models only config files and file sizes are read: no weights, no network.
"""

import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.parsing import Preset, presets
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.models.accelerators import AUTO, FOUR_BIT
from lora_studio.models.hardware import Device, device_for, recent_devices
from lora_studio.models.shape import architecture, hub_cache, model_folder, read_config
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.components import Updates
from lora_studio.ui.train.card import VERDICTS, short
from lora_studio.ui.train.form_state import OWN_CHOICES, preset_settings, with_recipe
from lora_studio.ui.train.plan import Plan, fit_of
from lora_studio.units import GIB
from lora_studio.workspace import DEMO_MODEL, Workspace, shipped_data

QLORA_BY_MEMORY = ((20, "gpu-24gb"), (12, "gpu-16gb"), (0, "gpu-8gb"))
"""From this much memory (GiB), the preset for a GPU."""
COMPARED = {"preference": "preference", "feedback": "kto"}
"""The built-in sets of rows to compare, and their formats: pairs, and answers labelled good or bad."""
OWN_WORDS = (("model.name", "model"), ("data.train_file", "dataset"))
MAX_LISTED = 4
"""Changes on a card; the others are counted."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A card. `preset` is what it fills the form with, all but the settings `without`."""

    preset: str
    title: str
    about: str
    without: tuple[str, ...] = ()
    unavailable: str = ""
    suggested: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What recipes are chosen by: the base model, the format of rows that are to be compared ("" for others), the
    device, and whether the model fits in 16 bits (None where that is not known)."""

    model: str
    compared: str
    device: Device
    fits: bool | None


def situation(raws: Sequence[Any], planned: Plan | None, shape: str) -> Situation:
    """`shape` is the format of the rows as the data tab found it, "" where nobody looked."""
    typed = forms.values(raws)
    data = str(typed["data.train_file"])
    memory = planned.memory if planned else None
    full = memory is not None and typed["model.quantization"] == "none"
    compared = shape if shape in COMPARED.values() else COMPARED.get(data, "") if data in shipped_data() else ""
    device = device_for(str(typed["compute.device"]), recent_devices())
    return Situation(str(typed["model.name"]), compared, device, memory.verdict == "fits" if full and memory else None)


def recipes(now: Situation) -> tuple[Recipe, ...]:
    """The four cards, in the same order wherever the page is opened; one of them is suggested."""
    on_gpu, demo = now.device.is_gpu, now.model == DEMO_MODEL
    in_4bit = on_gpu and FOUR_BIT not in now.device.lacks
    suggested = (
        "preference" if now.compared else "demo" if demo else "qlora" if in_4bit and now.fits is False else "lora"
    )
    memory = now.device.memory_total / GIB
    qlora = next(name for least, name in QLORA_BY_MEMORY if memory >= least)
    # Rows of one's own are not replaced by the built-in ones.
    own_rows = ("data.train_file",) if now.compared else ()
    labelled = now.compared == "kto"
    preset, title = ("kto", "Preference (KTO)") if labelled else ("preference", "Preference (DPO)")
    plain = "16-bit base model, for a GPU that holds it." if on_gpu else "For a machine without a GPU: short rows."
    four_bit = (
        f"4-bit base model, for a GPU with {memory:.0f} GiB."
        if in_4bit
        else "4-bit base model: a quarter of the memory."
    )
    return (
        Recipe("demo", "Demo", "Built-in model learns to talk like a pirate.", suggested=suggested == "demo"),
        Recipe("lora" if on_gpu else "cpu", "LoRA", plain, suggested=suggested == "lora"),
        Recipe(
            qlora,
            "QLoRA for this GPU" if in_4bit else "QLoRA",
            four_bit,
            unavailable="" if in_4bit else "Not on Apple GPUs" if on_gpu else "Needs a GPU",
            suggested=suggested == "qlora",
        ),
        Recipe(
            f"demo-{preset}" if demo else preset,
            title,
            "Learns from answers labelled good or bad."
            if labelled
            else "Learns from pairs: chosen and rejected answers.",
            own_rows,
            suggested=suggested == "preference",
        ),
    )


def filled(recipe: Recipe, raws: Sequence[Any]) -> list[Any]:
    """The form after a click on a card."""
    return with_recipe(raws, presets()[recipe.preset], recipe.without)


def effects(recipe: Recipe, raws: Sequence[Any]) -> list[str]:
    """What a click on the card would change in the form as it is: "Epochs 8", model and data first."""
    paths = list(forms.to_draft(raws))
    after = filled(recipe, raws)
    changed = [path for path, old, new in zip(paths, raws, after, strict=True) if old != new]
    named = preset_settings(presets()[recipe.preset])[1]
    ordered = sorted(changed, key=lambda path: (path not in OWN_CHOICES, path not in named))
    values = forms.values(after)
    return [f"{forms.title_of(path)} {html.shorten(forms.in_words(path, values[path]), 24)}" for path in ordered]


def recipe_cards(now: Situation, selected: str | None, raws: Sequence[Any]) -> str:
    """The cards; `selected` is the preset that the form began with."""
    cards = []
    for recipe in recipes(now):
        changes = [] if recipe.unavailable else effects(recipe, raws)
        more = len(changes) - MAX_LISTED
        if more == 1:
            more = 0
        listed = changes[: MAX_LISTED if more > 0 else None]
        cards.append((recipe, _use(recipe, selected, raws), listed, max(more, 0)))
    return html.render("train.recipes", cards)


def _use(recipe: Recipe, selected: str | None, raws: Sequence[Any]) -> str:
    """Whether the form is the recipe's, in words; "" where it began with another one."""
    if recipe.preset != selected:
        return ""
    values, named = preset_settings(presets()[recipe.preset])
    typed = forms.values(raws)
    others = [word for path, word in OWN_WORDS if path in named and values[path] != typed[path]]
    if others:
        return f"In use, other {' and '.join(others)}"
    return "In use, changed" if any(typed[path] != values[path] for path in named) else "In use"


def preset_about(preset: Preset | None, raws: Sequence[Any]) -> str:
    """What a chosen preset is for, and which of its own model and data the form has not."""
    if preset is None:
        return ""
    typed = forms.values(raws)
    values, named = preset_settings(preset)
    model = values["model.name"] if "model.name" in named else None
    data = values["data.train_file"] if "data.train_file" in named else None
    notes = [preset.about]
    if model and model != typed["model.name"]:
        notes.append(f"Its settings are for {model}: check them for the model above.")
    elif model == DEMO_MODEL and data != typed["data.train_file"]:
        notes.append(f"Its epochs are for its own data ({data}): check them for the data above.")
    return html.quiet(" ".join(notes))


BUILT_IN, FOLDER, CACHED, EXPORTED, USED = "built in", "folder", "downloaded", "exported here", "used before"
MODEL_FOLDERS = "models"
"""Where people keep models: this folder in the workspace, beside the program, and at home."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
MAX_MODELS = 60
MAX_RUNS = 100  # the newest that are asked for their model
RECENT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model to train on. `name` is what `model.name` takes; parameters and size are None if they are unknown here."""

    name: str
    origin: str
    parameters: int | None = None
    disk_bytes: int | None = None


def local_models(workspace: Workspace) -> list[LocalModel]:
    """What the caller may train on, each model once: built in, used before, folders, downloaded ones, exports."""
    used = [(name, USED) for name in _used_before(workspace)]
    origins: dict[str, str] = {}
    for name, origin in ((DEMO_MODEL, BUILT_IN), *used, *_folders_at(workspace.root, _moment())):
        if _may_use(workspace, name):
            origins.setdefault(name, origin)
    return [describe(name, origin) for name, origin in list(origins.items())[:MAX_MODELS]]


def describe(name: str, origin: str = USED) -> LocalModel:
    """A model's numbers from its files on this machine; none for a model that is not here."""
    folder = model_folder(name)
    if folder is None:
        return LocalModel(name, origin)
    try:
        changed = (folder / "config.json").stat().st_mtime_ns
    except OSError:
        return LocalModel(name, origin)
    return LocalModel(name, origin, *_numbers(folder, changed))


def _moment() -> int:
    return int(time.monotonic() / RECENT_SECONDS)


@functools.lru_cache(maxsize=8)
def _folders_at(root: Path, _moment: int) -> tuple[tuple[str, str], ...]:
    """Names of models in folders and caches; asked of the disk at most every few seconds."""
    return tuple(_folders(root))


def _folders(root: Path) -> Iterator[tuple[str, str]]:
    for place in dict.fromkeys((root / MODEL_FOLDERS, Path(MODEL_FOLDERS), Path.home() / MODEL_FOLDERS)):
        yield from ((str(folder.resolve()), FOLDER) for folder in _models_below(place))
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = model_folder(name)
        if snapshot is not None and is_language_model(snapshot):
            yield name, CACHED
    for folder in sorted((root / "exports").glob("*/*")):
        if is_language_model(folder):
            yield str(folder), EXPORTED


def _models_below(place: Path) -> Iterator[Path]:
    """Model folders in a folder, and in those below it (publisher/model)."""
    for pattern in ("*", "*/*"):
        yield from (folder for folder in sorted(place.glob(pattern)) if is_language_model(folder))


def is_language_model(folder: Path) -> bool:
    """Whether a folder holds the weights of a model that answers in text, and is no adapter."""
    if not os.path.isfile(folder / "config.json") or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return False
    config = read_config(str(folder)) or {}
    names = config.get("architectures") or ["ForCausalLM"]
    named = any(str(name).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names)
    return named and architecture(config) is not None


@functools.lru_cache(maxsize=256)
def _numbers(folder: Path, _changed: int) -> tuple[int | None, int | None]:
    """Parameters, and bytes of the weights on the disk."""
    model = architecture(read_config(str(folder)) or {})
    octets = 0
    for pattern in WEIGHTS:
        octets = octets or sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())
    return (model.parameters if model and model.counted else None), (octets or None)


def _used_before(workspace: Workspace) -> list[str]:
    names = (run.read_facts().get("model") for run in workspace.runs()[:MAX_RUNS])
    return list(dict.fromkeys(str(name) for name in names if name))


def _may_use(workspace: Workspace, name: str) -> bool:
    try:
        workspace.policy.check_request({"model": name})
    except StudioError:
        return False
    return True


@dataclass(frozen=True)
class Picker:
    """What stands under both fields. `fetch` reads the config of a model of the Hub."""

    model_facts: gr.HTML
    fetch: gr.Button
    error_box: gr.HTML
    data_facts: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.model_facts, self.fetch, self.error_box, self.data_facts]


def model_choices(workspace: Workspace, config: Config | None) -> list[tuple[str, str]]:
    """Models on this machine as (label, value); the label has size and whether a run with these settings fits."""
    device = device_for(config.compute.device if config else AUTO, recent_devices())
    return [(_label(model, config, device), model.name) for model in local_models(workspace)]


def _label(model: LocalModel, config: Config | None, device: Device) -> str:
    parts = [model.name, model.origin]
    if model.parameters:
        parts.append(short(model.parameters))
    fit = fit_of(model.name, config, device) if config else ""
    return forms.SEPARATOR.join([*parts, VERDICTS[fit][1].lower()] if fit else parts)


def device_choices() -> list[tuple[str, str]]:
    """Devices that the form offers."""
    return forms.known_devices(recent_devices())


def data_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """Files that the form offers: the studio's own sets, then what was uploaded."""
    return forms.known_files({name: item.title for name, item in shipped_data().items()}, workspace)


def model_facts(config: Config, planned: Plan) -> str:
    """Size and fit of the chosen model."""
    model = describe(config.model.name)
    facts = [f"{short(model.parameters)} parameters" if model.parameters else ""]
    facts.append(f"{html.size(model.disk_bytes)} on disk" if model.disk_bytes else "")
    memory = planned.memory
    if memory is None:
        return html.render(
            "train.source", ["Not on this machine: downloaded at the start"], ("warn", "size unknown"), ""
        )
    fit = VERDICTS[memory.verdict]
    words = f"{fit[1].lower()}: {html.gib(memory.estimate.total)}"
    words += f" of {html.gib(memory.available)}" if memory.available else ""
    return html.render("train.source", [fact for fact in facts if fact], (fit[0], words), "")


def data_facts(planned: Plan) -> str:
    """Rows and tokens of the chosen data, how they are read, and the way to their preview."""
    lengths, facts = planned.lengths, []
    if planned.rows is not None:
        facts.append(f"{planned.rows:,} training rows")
        if lengths:
            about = "" if lengths.counted else "≈ "
            facts.append(
                f"{about}{round(planned.rows * lengths.mean, -2 if not lengths.counted else None):,.0f} tokens"
            )
    if lengths and lengths.longest:
        facts.append(f"at most {lengths.longest:,} a row")
    return html.render("train.source", facts or ["Rows not counted yet"], None, planned.reading, True)


def updates(picker: Picker, config: Config | None, planned: Plan | None) -> Updates:
    """What stands under both fields; nothing while settings are not valid."""
    if config is None or planned is None:
        return {picker.error_box: gr.HTML(visible=False)}
    return {
        picker.model_facts: model_facts(config, planned),
        picker.data_facts: data_facts(planned),
        picker.fetch: gr.Button(visible=planned.memory is None),
        picker.error_box: gr.HTML(visible=False),
    }


def draw_model() -> tuple[gr.HTML, gr.Button, gr.HTML]:
    facts = gr.HTML(elem_id="model-facts")
    fetch = gr.Button("Look up size", size="sm", visible=False, elem_id="plan-fetch")
    return facts, fetch, gr.HTML(visible=False, elem_id="plan-error")


def draw_data() -> gr.HTML:
    return gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="data-facts")
