"""Adapters that exist already: found by run, checkpoint or folder, and what a run that continues one takes from it.

Rank, strength and modules belong to the weights: a run that starts from an adapter has them from there, and its config
says so. No torch: only the small JSON files beside the weights are read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_files import (
    SETTINGS_FILE,
    WEIGHTS_FILE,
    read_adapter_settings,
    read_studio_card,
)
from lora_studio.config import Config, Lora
from lora_studio.errors import StudioError
from lora_studio.parsing import parse
from lora_studio.workspace import RunFolder, Workspace, model_source

LORA = "LORA"
KINDS = {
    LORA: "LoRA",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "OFT": "OFT",
    "IA3": "(IA)³",
    "LN_TUNING": "layer norm tuning",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning",
    "PREFIX_TUNING": "prefix tuning",
}
"""Kinds of adapters that can answer, by peft's word for them. None of them reads another file or fetches anything."""
PROMPT_LEARNING = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
NEED_FULL_BASE = ("LOHA", "LOKR")
"""Kinds that peft can't put on a base in 4 or 8 bits."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""First weights (`init_lora_weights`) whose loading takes something out of the base itself."""
# Of the adapter's settings these are no part of its weights: a new run may choose them anew.
FREE = ("lora_dropout", "init_lora_weights")


def adapter_folder(workspace: Workspace, name: str) -> Path:
    """The folder of an adapter named by itself, by its run, or by a run's checkpoint."""
    workspace.check_path(name)
    path = Path(name).expanduser()
    # os.path, as a path asked itself fails for a name that no file can bear
    if os.path.isfile(path / SETTINGS_FILE):
        return path.resolve()
    if os.path.isdir(path) and not (path / "run.json").is_file():
        raise StudioError(
            f"{path} holds no adapter: there is no {SETTINGS_FILE}.", "Give an adapter's folder or a run."
        )
    run_name, _, checkpoint = name.rstrip("/").rpartition("/")
    if checkpoint.startswith("checkpoint-") and run_name:
        run = workspace.run(Path(run_name).name)
        names = [folder.name for folder in run.checkpoint_folders()]
        if checkpoint not in names:
            raise StudioError(
                f"Run {run.id} has no {checkpoint}.", f"It has: {', '.join(names) or 'no checkpoint yet'}."
            )
        return run.checkpoints / checkpoint
    run = workspace.run(path.name)
    if (run.adapter / SETTINGS_FILE).is_file():
        return run.adapter
    checkpoints = run.checkpoint_folders()
    if not checkpoints:
        raise StudioError(f"Run {run.id} has no adapter yet.", "It is there when the run is done, or has a checkpoint.")
    return checkpoints[-1]


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter as a person knows it; `run` is the id of the run that trained it, "" for one from elsewhere."""

    title: str
    folder: Path
    run: str


def named_adapter(workspace: Workspace, name: str) -> NamedAdapter:
    """The adapter of a run, RUN/checkpoint-N or folder, with its title. Raises `StudioError` unless it can be used."""
    folder = adapter_folder(workspace, name)
    for base in bases_of(folder):
        workspace.check_path(base)
    run = folder.parent if folder.parent.parent == workspace.runs_folder else folder.parent.parent
    inside = run.parent == workspace.runs_folder
    title = str(RunFolder(run).read_facts()["title"]) if inside else folder.name
    if inside and folder.name.startswith("checkpoint-"):
        title += f", step {folder.name.rpartition('-')[2]}"
    return NamedAdapter(title, folder, run.name if inside else "")


def bases_of(folder: Path) -> list[str]:
    """What an adapter's own files say of the base that it belongs on. Raises `StudioError` unless it is one to use."""
    settings = read_settings(folder)
    said = read_studio_card(folder)
    return [str(found) for found in (said.get("base_model"), settings.get("base_model_name_or_path")) if found]


def continued(config: Config, workspace: Workspace) -> Config:
    """The config with its adapter by its whole path and the adapter's own LoRA settings; unchanged where it names none.

    Raises `StudioError` where the adapter is not there, can't be read safely, or belongs to another base.
    """
    name = config.model.adapter_name_or_path
    if name is None:
        return config
    folder = adapter_folder(workspace, name)
    settings = read_lora(folder)
    check_base(config, folder, settings)
    values = config.model_dump()
    values["model"]["adapter_name_or_path"] = str(folder)
    kept = {key: value for key in Lora.model_fields if (value := _kept(key, settings)) is not None}
    values["lora"] |= {"init_lora_weights": "default", **kept}
    return parse(values)


def _kept(key: str, settings: dict[str, Any]) -> Any:
    """The adapter's own value of a LoRA setting; None where it has none or a run may choose it."""
    value = None if key in FREE else settings.get(key)
    if isinstance(value, float):
        return round(value)  # an alpha that grew by the root of 2; what is computed with is the adapter's own
    return ", ".join(sorted(value)) if isinstance(value, list) else value


def read_settings(folder: Path) -> dict[str, Any]:
    """The adapter's `adapter_config.json`.

    Raises `StudioError` unless it is of a known kind, in safetensors, which run no code, and leaves its base alone.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise StudioError(f"There is no adapter in {folder}.", "Choose a finished run or a checkpoint.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise StudioError(
            f"The adapter in {folder} is not stored as safetensors.",
            "Other formats can run code when read; convert it.",
        )
    settings = read_adapter_settings(folder / SETTINGS_FILE)
    kind, start = settings.get("peft_type"), str(settings.get("init_lora_weights"))
    if kind not in KINDS:
        raise StudioError(
            f"The adapter in {folder} is of the kind {kind}, which is not known here.",
            f"Known are {', '.join(KINDS.values())}.",
        )
    if start.startswith(CHANGE_THE_BASE):
        raise StudioError(
            f"The adapter in {folder} begins with {start}, which changes the base when it is loaded.",
            "Save it with peft's path_initial_model_for_weight_conversion: that makes a plain LoRA adapter of it.",
        )
    if settings.get("layer_replication"):
        raise StudioError(
            f"The adapter in {folder} repeats layers of its base (layer_replication): the base would be another model.",
            "Nothing can stand beside it; use it with peft alone.",
        )
    return settings


def virtual_tokens(folder: Path) -> int:
    """Tokens that an adapter of prompt learning puts before each prompt; 0 for all others."""
    settings = read_settings(folder)
    return int(settings["num_virtual_tokens"]) if settings["peft_type"] in PROMPT_LEARNING else 0


def read_lora(folder: Path) -> dict[str, Any]:
    """The same for what only LoRA can be used for. Raises `StudioError` for all other kinds."""
    settings = read_settings(folder)
    if settings["peft_type"] != LORA:
        raise StudioError(
            f"The adapter in {folder} is {KINDS[settings['peft_type']]}, not LoRA.",
            "It can answer in chat and be evaluated; only LoRA adapters can be trained further or exported.",
        )
    return settings


def check_base(config: Config, folder: Path, settings: dict[str, Any]) -> None:
    """Raises `StudioError` where the adapter says that it was trained on another base than the config's."""
    card = read_studio_card(folder)
    base = card.get("base_model") or settings.get("base_model_name_or_path")
    revision = card.get("revision") or settings.get("revision")
    if base and not same_model(base, config.model.name):
        raise StudioError(
            f"This adapter was trained on {base}, not on {config.model.name}: its weights mean nothing there.",
            f"Set model.name to {base}, or leave model.adapter_name_or_path empty for a fresh adapter.",
        )
    if revision and config.model.revision and revision != config.model.revision:
        raise StudioError(
            f"This adapter was trained on revision {revision} of {base}, not on {config.model.revision}.",
            f"Set model.revision to {revision}.",
        )


def same_model(first: str, second: str) -> bool:
    """The same name or folder, or a copy under the same last name, such as models/Qwen3-0.6B of Qwen/Qwen3-0.6B."""
    one, other = Path(model_source(first)), Path(model_source(second))
    if one == other or one.name.lower() == other.name.lower():
        return True
    return os.path.exists(one) and one.resolve() == other.resolve()
