"""The choices of the Data tab as settings by path, kept as a draft; what goes to the reader and the Train tab."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_studio.config.compute import Compute
from lora_studio.config.fields import SettingValues
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.data.readers.documents import BINARY
from lora_studio.errors import StudioError
from lora_studio.files import split_sheet
from lora_studio.jobs.protocol import Inspect
from lora_studio.models.hub import is_dataset_name
from lora_studio.ui import form as forms
from lora_studio.ui.form import read_draft
from lora_studio.workspace import Workspace, safe_name, shipped_data

CHOICE = "data"  # the draft of what was chosen
BAD_ROWS = "data.bad_rows"
MAPPING = "data.mapping"
PERCENTILES = "look.percentiles"
THINKING = "data.enable_thinking"
ENCODING = "data.encoding"
SPLIT = ("data.validation_fraction", "data.split_seed", "data.max_samples", "data.max_eval_samples")
SETTINGS = {setting.path: setting for setting in settings()}
PATHS = (
    "data.train_file",
    "model.name",
    "data.max_length",
    "data.truncation",
    "data.train_on",
    "data.prompt_style",
    "data.system_prompt",
    THINKING,
    ENCODING,
    "data.validation_file",
    *SPLIT,
    PERCENTILES,
    BAD_ROWS,
    MAPPING,
)
DEFAULTS = {path: setting.default for path, setting in SETTINGS.items()} | {
    MAPPING: None,
    PERCENTILES: "50, 90, 95, 99",
}
OUTDATING = {path: SETTINGS[path].title for path in PATHS if path in SETTINGS and path not in (BAD_ROWS, MAPPING)} | {
    PERCENTILES: "Percentiles"
}
"""Settings whose change makes an analysis outdated, with their titles."""
STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")


def sources(workspace: Workspace) -> list[tuple[str, str]]:
    """What is offered: uploads, newest first, then the sets that come with the studio, as (label, value)."""
    uploads = [item for item in forms.uploaded(workspace) if Path(item[1]).suffix.lower() not in BINARY]
    shipped = [(f"{data.title} (built in)", name) for name, data in shipped_data().items()]
    return uploads + shipped


def is_there(name: str, workspace: Workspace) -> bool:
    """Whether a name can mean data: a set that comes with the studio, files, a sheet, a folder, a pattern, or a set
    of the Hub.

    Of files that may not be read it is not told whether they are there.
    """
    try:
        workspace.policy.check_path(name)
    except StudioError:
        return False
    if name in shipped_data() or is_dataset_name(name):
        return True
    path = Path(split_sheet(name)[0]).expanduser()
    try:
        return path.exists() or (set("*?[") & set(path.name) != set() and any(path.parent.glob(path.name)))
    except (OSError, ValueError):  # a name that no file can bear
        return False


def stem_of(name: str) -> str:
    """The name of a dataset for a file that is made of it, without ending and options."""
    path, sheet = split_sheet(name)
    return safe_name("-".join(filter(None, (Path(path.partition("?")[0]).stem, sheet))), "dataset")


def remembered(workspace: Workspace) -> SettingValues:
    """The last choice by path; the defaults where there is none, or where its file is gone."""
    values = {path: DEFAULTS[path] for path in PATHS}
    draft = workspace.read_draft(CHOICE)
    if isinstance(draft, dict) and isinstance(draft.get("settings"), dict):
        values |= {path: value for path, value in draft["settings"].items() if path in values}
    if not is_there(str(values["data.train_file"]), workspace):
        values["data.train_file"], values[MAPPING] = DEFAULTS["data.train_file"], None
    if values["data.validation_file"] and not is_there(str(values["data.validation_file"]), workspace):
        values["data.validation_file"] = None
    return values


def values_of(widget_values: Sequence[Any]) -> SettingValues:
    """The widgets' values by path, as the config takes them."""
    values = dict(zip(PATHS, widget_values, strict=True))
    for path in ("data.train_file", "model.name", "data.validation_file"):
        values[path] = str(values[path] or "").strip()
    values["data.validation_file"] = values["data.validation_file"] or None
    values["data.system_prompt"] = values["data.system_prompt"] or None
    values[ENCODING] = str(values[ENCODING] or "").strip() or None
    values[THINKING] = forms.from_widget(SETTINGS[THINKING], values[THINKING])
    values[PERCENTILES] = str(values[PERCENTILES] or "").strip() or DEFAULTS[PERCENTILES]
    return values


def check(values: SettingValues) -> None:
    """Refuses what can't be read before a child is started for it."""
    if not values["data.train_file"]:
        raise StudioError("No dataset is chosen.", "Choose a built-in dataset, or upload a file.")
    if not values["model.name"]:
        about = SETTINGS["model.name"].description
        raise StudioError("No model is named.", f"Its tokenizer counts the tokens. {about}")
    setting, length = SETTINGS["data.max_length"], values["data.max_length"]
    if length is None or not (setting.minimum or 0) <= length <= (setting.maximum or length):
        raise StudioError(
            f"{setting.title} can't be {length}.", f"Give {setting.minimum:,.0f} to {setting.maximum:,.0f} tokens."
        )
    values["data.max_length"] = int(length)
    for path in SPLIT:
        values[path] = _number(path, values[path])
    percentiles(values[PERCENTILES])


def _number(path: str, value: float | None) -> float | int | None:
    """A number within the setting's bounds, whole where its default is; empty where that means something."""
    setting = SETTINGS[path]
    if value is None and setting.default is None:
        return None
    low, high = setting.minimum or 0, setting.maximum
    if value is None or value < low or (high is not None and value > high):
        bounds = f"{low:g} to {high:g}" if high is not None else f"{low:g} or more"
        raise StudioError(f"{setting.title} can't be {'empty' if value is None else value}.", f"Give {bounds}.")
    return value if isinstance(setting.default, float) else int(value)


def percentiles(typed: str) -> list[float]:
    """Numbers from 0 to 100, with commas or spaces between them."""
    try:
        shares = [float(part.rstrip("%")) for part in typed.replace(",", " ").replace(";", " ").split() if part != "%"]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 100 for share in shares):
        raise StudioError(f"{typed!r} are not all percentiles.", "Give numbers from 0 to 100, such as 50, 90, 99.9.")
    return shares


class Targeting(Protocol):
    """The targets of a workspace, as far as they say in how many processes a run trains."""

    @property
    def workspace(self) -> Workspace: ...

    def placed(self, config: Config) -> Config:
        """The config as its target trains it. Raises `StudioError` for one that it can't."""


def request_of(values: SettingValues, targets: Targeting) -> Inspect:
    """The reader's parameters: settings by their last name, the model as `model`, how many rows a step has.

    Bad rows never stop a look: what is wrong with them is what a person wants to see.
    """
    settings = {path.removeprefix("data."): value for path, value in values.items() if path.startswith("data.")}
    return Inspect(
        **settings | {"bad_rows": "skip", **_rows_a_step(targets)},
        model=values["model.name"],
        cache_folder=str(targets.workspace.cache_folder),
        show_examples=1,
        percentiles=percentiles(values[PERCENTILES]),
    )


def _rows_a_step(targets: Targeting) -> dict[str, int]:
    """Batch size, accumulation and processes as the train tab's form has them; the schema's where it says nothing
    usable."""
    typed = forms.values(read_draft(targets.workspace)[1])
    sizes = {}
    for name in STEP:
        value = typed[f"training.{name}"]
        sizes[name] = value if type(value) is int and value > 0 else DEFAULTS[f"training.{name}"]
    try:
        compute = Compute.model_validate({name: typed[f"compute.{name}"] for name in Compute.model_fields})
        return {**sizes, "processes": targets.placed(Config(compute=compute)).compute.world_size}
    except (ValueError, StudioError):
        return sizes


METHODS_OF = {"preference": "dpo", "kto": "kto"}
"""The training method that rows of a format are for; other rows are for SFT."""


def handed_over(values: SettingValues, shape: str) -> SettingValues:
    """What the train tab takes: settings of a run, and nothing that only this tab shows.

    The method of training is the one that rows of this shape are for; an unknown shape ("") leaves it as it is.
    """
    settings = {path: value for path, value in values.items() if path != PERCENTILES}
    return settings | ({"training.method": METHODS_OF.get(shape, "sft")} if shape else {})
