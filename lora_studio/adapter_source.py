"""Adapters that exist already: found by run, checkpoint or folder, and what a run that continues one takes from it.

Rank, strength and modules belong to the weights: a run that starts from an adapter has them from there, and its config
says so. No torch: only the small JSON files beside the weights are read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_card import read_card
from lora_studio.adapter_files import SETTINGS_FILE
from lora_studio.adapter_fit import unlike
from lora_studio.adapter_settings import read_lora, read_settings
from lora_studio.config import Config, Lora
from lora_studio.errors import StudioError
from lora_studio.parsing import parse
from lora_studio.workspace import RunFolder, Workspace

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
    named = (read_card(folder).base, read_settings(folder).get("base_model_name_or_path"))
    return [str(base) for base in dict.fromkeys(named) if base]


def continued(config: Config, workspace: Workspace) -> Config:
    """The config with its adapter by its whole path and the adapter's own LoRA settings; unchanged where it names none.

    Raises `StudioError` where the adapter is not there, can't be read safely, or belongs to another base.
    """
    name = config.model.adapter_name_or_path
    if name is None:
        return config
    folder = adapter_folder(workspace, name)
    settings = read_lora(folder)
    check_base(config, folder)
    values = config.model_dump()
    values["model"]["adapter_name_or_path"] = str(folder)
    kept = {key: value for key in Lora.model_fields if (value := _kept(key, settings)) is not None}
    values["lora"] |= {"init_lora_weights": "default", **kept}
    return parse(values)


def _kept(key: str, settings: dict[str, Any]) -> Any:
    """The adapter's own value of a LoRA setting; None where it has none or a run may choose it."""
    value = None if key in FREE else settings.get(key)
    if key == "target_modules":
        value = value or settings.get("target_parameters")
    if isinstance(value, float):
        return max(1, round(value))  # an alpha that is no whole number; what is computed with is the adapter's own
    return ", ".join(sorted(value)) if isinstance(value, list) else value


def check_base(config: Config, folder: Path) -> None:
    """Raises `StudioError` where the adapter was trained on another base than the config's."""
    card = read_card(folder)
    if same := unlike(card, config.model.name):
        raise StudioError(
            f"This adapter was trained on {card.base}, not on {config.model.name}: {same}",
            f"Set model.name to {card.base}, or leave model.adapter_name_or_path empty for a fresh adapter.",
        )
    if card.revision and config.model.revision and card.revision != config.model.revision:
        raise StudioError(
            f"This adapter was trained on revision {card.revision} of {card.base}, not on {config.model.revision}.",
            f"Set model.revision to {card.revision}.",
        )
